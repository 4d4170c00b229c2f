"""Measure how fast each file format writes values that are in memory, without any other work.

Blocks of float16 values of shape (layers, rows, tokens, d_model) arrive one after another, as from a forward pass, and
each format writes them to its own files. The timing excludes the creation of the empty files. It covers everything from
the first block until the last byte is in its file. On a disk every format also waits until its bytes are there (fsync).
stratalens does so for every block before it counts as recorded, the others once at the end. The baseline is the minimum
for any format with checksums: a raw file of the same bytes and the crc32c of each layer. *Buffers filled before* leaves
out the copy of the values into our buffers, which capture makes while the model computes. For all peers the timing
includes this copy.

    python -m benchmarks.store.write [FOLDER ...] [--blocks 4] [--rounds 5]

Pass a folder in memory and one on a disk. Each round has a new random order, and ratios are taken within a round.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness.document import Report, arguments, parse, ratios
from benchmarks.harness.measure import Timing, alternate, filesystem, is_installed, scratch
from benchmarks.store.formats import DTYPE, Format, Ours, Raw, RawChecked, Shape
from benchmarks.store.peer_formats import PEERS

TITLE, THEME = "Writing values from memory", "Store"
LAYERS, D_MODEL, TOKENS, ROWS = 16, 2048, 1, 1024
BASE = "raw file with crc32c"
FILLED = "stratalens, buffers filled before"


def write(kind: type[Format], base: Path, shape: Shape, values: np.ndarray, sync: bool) -> Timing:
    """Write all blocks in one format and return the time of the writing alone."""
    folder = Path(tempfile.mkdtemp(dir=base))
    files = kind(folder / "files", shape, ROWS)
    files.begin()
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, shape[2], ROWS):
        files.put(0, start, values)
    files.finish(sync)
    timing = Timing(time.perf_counter() - wall, time.process_time() - cpu)
    shutil.rmtree(folder)
    return timing


def write_filled(base: Path, shape: Shape, values: np.ndarray) -> Timing:
    """Write our store from buffers that capture would fill while the model computes."""
    folder = Path(tempfile.mkdtemp(dir=base))
    files = Ours(folder / "files", shape, ROWS)
    files.begin()
    stage = files.writer.stage("s", order=0, fingerprint="f")
    blocks = list(stage.pending())
    buffers = []
    for block in blocks[:2]:
        buffer = stage.buffer(block)
        buffer.write("resid_post", block.rows, values)
        buffers.append(buffer)
    wall, cpu = time.perf_counter(), time.process_time()
    for buffer in buffers:
        stage.submit(buffer)
    for block in blocks[2:]:
        buffer = stage.buffer(block)
        buffer.skip([])
        for (
            written
        ) in buffer._written.values():  # the buffer reuses the memory of an earlier block with the same values
            written[...] = True
        stage.submit(buffer)
    stage.close()
    timing = Timing(time.perf_counter() - wall, time.process_time() - cpu)
    files.writer.close()
    shutil.rmtree(folder)
    return timing


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folders", nargs="*", default=[scratch(), tempfile.gettempdir()])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parse(parser, quick={"blocks": 2, "rounds": 2})
    packages = ("zarr", "tensorstore", "zarrs", "h5py", "safetensors", "pyarrow", "torch", "crc32c")
    with Report(__file__, options, *packages, folders=options.folders) as report:
        for folder in options.folders:
            base = Path(tempfile.mkdtemp(prefix="bench-", dir=folder))
            try:
                measure(report, base, options.blocks, options.rounds)
            finally:
                shutil.rmtree(base)


def measure(report: Report, base: Path, blocks: int, rounds: int) -> None:
    """Add one table for a folder."""
    shape = (1, LAYERS, ROWS * blocks, TOKENS, D_MODEL)
    values = np.random.default_rng(0).standard_normal((LAYERS, ROWS, TOKENS, D_MODEL), dtype=np.float32).astype(DTYPE)
    megabytes = values.nbytes * blocks / 1e6
    kind = filesystem(base)["kind"]
    sync = kind == "disk"
    missing = {k.name: f"not installed: pip install {k.module}" for k in PEERS if not is_installed(k.module or "numpy")}
    methods: dict[str, Callable[[], Timing]] = {
        k.name: partial(write, k, base, shape, values, sync)
        for k in (RawChecked, Raw, Ours, *PEERS)
        if k.name not in missing
    }
    methods[FILLED] = partial(write_filled, base, shape, values)
    runs = alternate(methods, rounds, shuffle=True)
    report.timings(
        f"write-{kind}",
        f"{megabytes:.0f} MB in blocks of {values.nbytes / 1e6:.0f} MB, {'with fsync' if sync else 'into memory'}",
        runs,
        BASE,
        ours=["stratalens", FILLED],
        amount=megabytes,
        missing=missing,
    )
    target = 0.85 if sync else 0.9
    report.target(f"writing speed relative to {BASE}, {kind}", ratios(runs[BASE], runs[FILLED]), at_least=target)
    for peer in ("TensorStore", "zarr-python, sharded, crc32c"):
        if peer in runs:
            gain = ratios(runs[peer], runs["stratalens"])
            report.target(f"writing speed from an array relative to {peer}, {kind}", gain, at_least=1)
    if not sync:
        for peer, least in (("TensorStore", 1.5), ("zarr-python, sharded, crc32c", 1.5)):
            if peer in runs:
                report.target(
                    f"writing speed relative to {peer}, {kind}", ratios(runs[peer], runs[FILLED]), at_least=least
                )


if __name__ == "__main__":
    main()
