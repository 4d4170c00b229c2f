"""Compare each hot path with the lower bound of this machine.

The script measures each floor in turn with the path itself: transferring as many bytes through the disk or through
memory without other work, as many floating point operations as the result needs at the rate of NumPy's matrix product,
or the forward pass alone. 1 is the floor. A sampling profiler shows the functions in which the threads spend their
time.

- *write*: blocks of float16 values from filled buffers, with checksums and commit records, to the disk; floor: as many
  bytes into raw files, one for each block, with fsync, by a thread for each core.
- *read, cold* and *read, warm*: one layer of all entities, bfloat16, verified and widened to float32; floor: as many
  bytes into new memory, from the disk and from the page cache, by a thread for each core.
- *centroids*: all slabs of a store; floor: reading, verifying and widening them with the same workers.
- *lda* and *logistic*: all pairs of six groups, five folds and a refit, including scores, AUCs and intervals; floor,
  with all cores: for lda one product X'X of all rows and a Cholesky factor for each fit, as a direct solution needs
  them; for logistic two products with the rows of the pair for every iteration of every fit.
- *capture*: a random model of the shape of SmolLM2's first blocks, one position, statistics off; floor: its forward
  pass over the same batches.

    python -m benchmarks.scaling.roofline [FOLDER] [--rounds 5]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.analyses.centroids import GROUPS, make, read
from benchmarks.analyses.probes import FOLDS, as_data, gaussian
from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import Timing, alternate, drop_cache, time_once
from benchmarks.scaling import rates
from benchmarks.store.formats import DTYPE
from benchmarks.store.write import D_MODEL, LAYERS, ROWS, TOKENS, write_filled
from stratalens.analyses.centroids.centroids import centroids
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store import open_store
from stratalens.store.threads import cores

TITLE, THEME = "Hot paths compared with the limits of the machine", "Limits"
ORDER = [f"s{g + 1}" for g in range(GROUPS)]
POOL = ThreadPoolExecutor(cores())  # for the floors
Path_ = tuple[str, Callable[[], Any], Callable[[], Any], str]


def writing(folder: Path, blocks: int) -> Path_:
    """Compare writing our blocks to the disk with raw files."""
    values = np.random.default_rng(0).standard_normal((LAYERS, ROWS, TOKENS, D_MODEL), dtype=np.float32).astype(DTYPE)
    shape = (1, LAYERS, ROWS * blocks, TOKENS, D_MODEL)

    def floor() -> Timing:
        paths = [folder / f"raw-{number}" for number in range(blocks)]
        took = time_once(lambda: list(POOL.map(lambda path: rates.write_file(path, values), paths)))
        for path in paths:
            path.unlink()
        return took

    return "write", lambda: write_filled(folder, shape, values), floor, f"{values.nbytes * blocks / 1e6:.0f} MB"


def reading(folder: Path, store: Path, cold: bool) -> Path_:
    """Compare reading one layer with reading as many bytes."""
    site = open_store(store, chunks=None).resid_post
    count = site.isel(stage=0, layer=0).size * 2
    raw = folder / "bytes"
    rates.write_file(raw, np.random.default_rng(0).integers(0, 255, count, dtype=np.uint8))
    turn = [0]

    def ours() -> Timing:
        turn[0] += 1
        if cold:
            drop_cache(store)
        fresh = open_store(store, chunks=None).resid_post  # a new handle has no verified chunks yet
        return time_once(lambda: fresh.isel(stage=0, layer=turn[0] % site.sizes["layer"]).values)

    def floor() -> Timing:
        if cold:
            drop_cache(raw)
        return time_once(lambda: rates.read_shared(POOL, cores(), raw, count))

    return f"read, {'cold' if cold else 'warm'}", ours, floor, f"{count / 1e6:.0f} MB"


def summing(store: Path) -> Path_:
    """Compare centroids with reading."""
    ds = open_store(store)
    source = SiteData(ds)
    return (
        "centroids",
        lambda: centroids(ds, order=ORDER, cache=False, progress=False),
        lambda: run_slabs(source, read, progress=False),
        f"{ds.resid_post.size * 2 / 1e6:.0f} MB",
    )


def fitting(method: str, rate: float, every: int) -> Path_:
    """Compare probes of one layer with their necessary products at the rate of all cores."""
    data = as_data(gaussian(1)).isel(token=[0], entity=slice(None, None, every))
    work = partial(probe, data, method=method, workers=cores(), progress=False)
    rows, width = data.sizes["entity"], data.sizes["d_model"]
    slabs = data.sizes["layer"] * data.sizes["token"]
    fits = GROUPS * (GROUPS - 1) // 2 * (FOLDS + 1)
    operations = (2.0 * rows * width**2 + fits * width**3 / 3) * slabs
    if method == "logistic":
        iterations = float(work().iterations.sum()) * (FOLDS + 1)
        operations = 4.0 * iterations * rows / GROUPS * 2 * width
    seconds = operations / rate
    return method, work, lambda: Timing(seconds, seconds * cores()), f"{operations / 1e9:.0f} GFLOP"


def recording(folder: Path, layers: int, rows: int) -> Path_:
    """Compare capture() with the forward pass of the same batches."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.data.tiny_model import prompts, tokenizer
    from stratalens import capture
    from stratalens.plugin.models.adapters import adapt
    from stratalens.plugin.models.hooks import evaluation_mode

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.config.architectures = ["LlamaForCausalLM"]
    words = tokenizer()
    hooked: Any = TransformerBridge.boot_transformers("random", hf_model=model, tokenizer=words, device="cpu")
    table = prompts(rows, words=24)
    tokenized = table.tokenize(words)
    adapter = adapt(hooked)
    batches = [tokenized.batch(np.arange(at, at + 32), int(tokenized.lengths.max())) for at in range(0, rows, 32)]

    def floor() -> None:
        with torch.no_grad(), evaluation_mode(hooked):
            for ids, mask in batches:
                adapter.run(torch.from_numpy(ids), torch.from_numpy(mask), "none")

    def ours() -> Timing:
        target = Path(tempfile.mkdtemp(dir=folder))
        took = time_once(
            lambda: capture(hooked, table, target / "run.zarr", batch_size=32, statistics=False, progress=False)
        )
        shutil.rmtree(target)
        return took

    return "capture", ours, floor, f"{int(tokenized.lengths.sum())} tokens"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir(), help="on a disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=4, help="blocks of 67 MB to write")
    parser.add_argument(
        "--layers", type=int, default=12, help="layers of the store to read, and of the model to record"
    )
    parser.add_argument("--entities", type=int, default=7200)
    parser.add_argument("--rows", type=int, default=192, help="prompts to record")
    parser.add_argument("--every", type=int, default=1, help="fit probes to every n-th of the 6000 rows")
    quick = {"rounds": 2, "blocks": 1, "layers": 4, "entities": 1800, "rows": 64, "every": 6}
    options = parse(parser, quick=quick)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "torch", "transformer-lens", "scipy", folders=[folder]) as report:
            run(report, folder, options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, folder: Path, options: argparse.Namespace) -> None:
    known = rates.disk(folder)
    rate = {n: rates.gemm(n) for n in (1, cores())}
    machine = Table("machine", "Rates of the machine", [Column("name", ""), Column("rate", "rate"), Column("unit", "")])
    for name, value, unit in (
        ("matrix product in float32, one thread", rate[1] / 1e9, "GFLOP/s"),
        (f"the same, {cores()} threads", rate[cores()] / 1e9, "GFLOP/s"),
        ("copying in memory, one thread", rates.copying() / 1e6, "MB/s"),
        ("crc32c, one thread", rates.checksumming() / 1e6, "MB/s"),
        ("raw file, write and fsync", known["write"] / 1e6, "MB/s"),
        ("raw file, read from the disk", known["cold"] / 1e6, "MB/s"),
        ("raw file, read from the page cache", known["cached"] / 1e6, "MB/s"),
    ):
        machine.add(name=name, rate=value, unit=unit)
    report.add(machine)
    store = make(folder / "run.zarr", 1, options.layers, options.entities)
    paths = [
        lambda: writing(folder, options.blocks),
        lambda: reading(folder, store, True),
        lambda: reading(folder, store, False),
        lambda: summing(store),
        lambda: fitting("lda", rate[cores()], options.every),
        lambda: fitting("logistic", rate[cores()], options.every),
        lambda: recording(folder, options.layers, options.rows),
    ]
    table = Table("floors", "Hot paths and their floors", [
        Column("name", ""), Column("amount", "amount"), Column("wall", "wall", "s"), Column("floor", "floor", "s"),
        Column("times", "times the floor"), Column("profile", "profile"),
    ])  # fmt: skip
    multiples = {}
    for begin in paths:
        name, ours, floor, amount = begin()
        runs = alternate({"ours": ours, "floor": floor}, options.rounds)
        multiples[name] = ratios(runs["ours"], runs["floor"])
        table.add(
            name=name,
            amount=amount,
            wall=[t.wall for t in runs["ours"]],
            floor=[t.wall for t in runs["floor"]],
            times=multiples[name],
            profile=rates.profile(ours, most=10),
        )
    report.add(table)
    for name, times in multiples.items():
        report.target(f"{name}: seconds relative to its floor", times, at_most=1.3)
    far = [f"{n} ({statistics.median(t):.1f})" for n, t in multiples.items() if statistics.median(t) > 1.3]
    report.note(f"Above 1.3 times the floor: {', '.join(far) or 'none'}.")


if __name__ == "__main__":
    main()
