"""Measure the peak memory of a capture, a streamed write and a full read sweep as the number of entities grows.

Each size runs in its own process. The table shows how far the peak of resident memory rises while values stream, above
the memory that the process used once its labels, prompts and tokens were loaded. Those grow with the rows, up to 2 kB
each, and have their own column. The rise should stay the same for any number of entities: two block buffers when
writing, one slab's block of rows when reading. The capture runs a random model that only adds vectors, as wide as a
real one.

    python -m benchmarks.store.memory [FOLDER] [--sizes 1 4 16] [--jobs capture write read]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

TITLE, THEME = "Peak memory of capture, writing and reading", "Growth"
LAYERS, D_MODEL, BLOCK = 4, 2048, 128
JOBS = ("capture", "write", "read")
Job = Callable[[Callable[[], None]], None]  # calls its argument when the measurement of memory starts


def write(path: Path, blocks: int) -> Job:
    """Return a job that streams `blocks` blocks of 4 MiB into a store from one small array."""
    from stratalens.store import ActivationWriter, create
    from stratalens.store.format.schema import site_variable

    names = np.arange(blocks * BLOCK).astype(str).astype(object)
    site = site_variable("resid_post", ["d_model"], [D_MODEL], "float32", "blocks.{layer}.hook_out")
    store = create(
        path,
        entities={"entity": names, "entity_id": names},
        layers=range(LAYERS),
        tokens=["last"],
        variables=[site],
        block_size=BLOCK,
    )
    values = np.random.default_rng(0).standard_normal((1, BLOCK, 1, D_MODEL), dtype=np.float32)

    def stream(start: Callable[[], None]) -> None:
        start()
        with ActivationWriter(store) as writer, writer.stage("s", order=0, fingerprint="f") as stage:
            for block in stage.pending():
                buffer = stage.buffer(block)
                for layer in range(LAYERS):
                    buffer.write("resid_post", block.rows, values, layers=[layer])
                stage.submit(buffer)

    return stream


def read(path: Path, blocks: int) -> Job:
    """Return a job that reads every layer of the store of `write`, verified, by blocks of rows."""
    from stratalens.store import open_store

    site = open_store(path, chunks=None).resid_post

    def sweep(start: Callable[[], None]) -> None:
        start()
        for layer in range(LAYERS):
            for row in range(0, site.sizes["entity"], BLOCK):
                site.isel(stage=0, layer=layer, entity=slice(row, row + BLOCK)).values.sum()

    return sweep


def recorded(path: Path, blocks: int) -> Job:
    """Return a job that captures a small random model of the same layers and width, with statistics."""
    from benchmarks.data.tiny_model import Adding, prompts, record, tokenizer

    table, words = prompts(blocks * BLOCK), tokenizer()

    def run(target: Path, width: int, start: Callable[[], None]) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            if done == 0:  # before the first batch, prompts, labels and tokens are in memory
                start()

        record(Adding(LAYERS, width), table, target, words, block_size=BLOCK, batch_size=32, progress=progress)

    # The same prompts through a narrow model, so that the memory of torch's first use is not measured.
    run(path.with_name(f"{path.name}.narrow"), 16, lambda: None)
    return lambda start: run(path, D_MODEL, start)


def memory(key: str) -> float:
    """Return the current ("VmRSS") or the highest ("VmHWM") resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def child(job: str, path: Path, blocks: int) -> None:
    """Run one job; print its memory before its values stream, and the rise above that."""
    work = {"capture": recorded, "write": write, "read": read}[job](path, blocks)
    before = 0.0

    def start() -> None:
        nonlocal before
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = memory("VmRSS")

    work(start)
    print(json.dumps({"before": before, "rise": memory("VmHWM") - before}))


def measure(folder: Path, sizes: list[int], jobs: tuple[str, ...] = JOBS) -> dict[str, dict[int, dict[str, float]]]:
    """Return for each job and size (times 8 blocks) the MiB in use before, and the rise above it."""
    from benchmarks.harness.measure import module_of

    results: dict[str, dict[int, dict[str, float]]] = {job: {} for job in jobs}
    for size in sizes:
        for job in jobs:
            path = folder / f"{size}-{job.replace('read', 'write')}.zarr"
            command = [sys.executable, "-m", module_of(__file__), "--child", job, str(path), str(8 * size)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            results[job][size] = json.loads(run.stdout)
    return results


def main() -> None:
    from benchmarks.harness.document import Column, Report, Table, arguments, parse

    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir())
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    options = parse(parser, quick={"sizes": [1, 4], "jobs": ["write", "read"]})
    block = LAYERS * BLOCK * D_MODEL * 4 / 2**20
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
        Report(__file__, options, "torch", "zarr", "xarray", folders=[folder]) as report,
    ):
        table = Table("peaks", "Peak of resident memory while values stream", [
            Column("name", ""), Column("size", "size"), Column("rows", "rows"), Column("values", "values", "MiB"),
            Column("rise", "peak above that", "MiB"), Column("before", "in use before", "MiB"),
        ])  # fmt: skip
        results = measure(Path(folder), options.sizes, tuple(options.jobs))
        for job, runs in results.items():
            for size, run in runs.items():
                rise_and_before = {"rise": run["rise"], "before": run["before"]}
                rows = 8 * size * BLOCK
                table.add(name=job, size=f"{size}x", rows=rows, values=8 * size * block, **rise_and_before)
        report.add(table)
        for job, runs in results.items():
            least, most = min(options.sizes), max(options.sizes)
            more = runs[most]["rise"] - runs[least]["rise"]
            text = f"{job}: additional memory for {8 * (most - least) * block:.0f} MiB more of values, MiB"
            report.target(text, more, at_most=12)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
