"""Extrapolate to runs that are larger than this machine: bytes and files from the store's forecast, hours from rates.

Bytes, files and memory come from `stratalens.store.format.layout.forecast`, which scaling_growth compares with real
stores. Hours are amounts divided by rates that the script measures on this machine:

- *forward*: 2 operations for each parameter and token, including the output layer, which statistics need. The rate is
  that of transformers' forward pass of 32 prompts through random blocks of the model's own shape, float32, all cores. A
  GPU or bfloat16 is faster; the table shows the operations, so that you can divide them by another rate.
- *writing* through our writer to this disk; *reading* at the slower rate of the disk and of verifying and widening.
- *probes*: logistic probes of one pair with five folds at every layer, position and stage. The time is that of 2000
  rows as wide as the model (time grows faster than the width). The script assumes that it grows with the rows and that
  the cores share it.

The limit is the slowest component: of recording, where writing runs in parallel with the forward pass, and of reading
everything once for centroids. *A slab* is one layer of one stage with all of its positions as float32. Centroids
process it block by block. Probes need it in full, once for each worker, and cannot run in less memory.

    python -m benchmarks.scaling.extrapolation [FOLDER] [--tokens 20] [--positions 2] [--models SmolLM2-135M]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from transformers import LlamaConfig, LlamaModel

from benchmarks.analyses.centroids import GROUPS, make, read
from benchmarks.harness.document import Column, Report, Table, arguments, number, parse
from benchmarks.scaling import rates
from benchmarks.store.formats import DTYPE
from benchmarks.store.write import D_MODEL, LAYERS, ROWS, TOKENS, write_filled
from stratalens.analyses.centroids.centroids import centroids
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store import open_store
from stratalens.store.format.layout import forecast
from stratalens.store.format.schema import site_variable, statistic_variables
from stratalens.store.threads import cores

TITLE, THEME = "Extrapolation to larger runs", "Growth"
# layers, width, parameters; heads, key and value heads, hidden width, blocks to run for the rate
MODELS = {
    "SmolLM2-135M": (30, 576, 134.5e6, (9, 3, 1536, 12)),
    "Llama-3-8B": (32, 4096, 8.03e9, (32, 8, 14336, 1)),
    "Llama-3-70B": (80, 8192, 70.6e9, (64, 8, 28672, 1)),
}
RUNS = ((100_000, 1), (1_000_000, 20))
PAIR = 2000


def forward(width: int, shape: tuple[int, int, int, int], tokens: int) -> float:
    """Measure operations a second of a forward pass of 32 prompts through random blocks."""
    heads, groups, hidden, blocks = shape
    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=hidden, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=groups,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    ids = torch.randint(0, 1000, (32, tokens), generator=torch.Generator().manual_seed(0))
    parameters = sum(p.numel() for p in model.layers.parameters())
    with torch.inference_mode():
        return 2 * parameters * ids.numel() / rates.best_of(lambda: model(ids, use_cache=False), 3)


def probing(width: int) -> float:
    """Measure rows x features a second of logistic probes of one pair on one core, times the cores."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, PAIR, 1, width), dtype=np.float32)
    x[:, PAIR // 2 :] += rng.standard_normal(width, dtype=np.float32) * np.float32(2 / np.sqrt(width))
    stage = np.repeat(np.array(["s1", "s2"], object), PAIR // 2)
    dims = ("layer", "entity", "token", "d_model")
    data = xr.DataArray(x, dims=dims, coords={"trained_stage": ("entity", stage)}, name="resid_post")
    return x.size / rates.best_of(lambda: probe(data, workers=1, progress=False), 1) * cores()


def measured(folder: Path, blocks: int, entities: int) -> dict[str, float]:
    """Measure the bytes a second that do not depend on the model's shape."""
    rate = {"disk": rates.disk(folder)["cold"]}
    values = np.random.default_rng(0).standard_normal((LAYERS, ROWS, TOKENS, D_MODEL), dtype=np.float32).astype(DTYPE)
    shape = (1, LAYERS, ROWS * blocks, TOKENS, D_MODEL)
    turns = [write_filled(folder, shape, values).wall for _ in range(3)]
    rate["writing"] = values.nbytes * blocks / statistics.median(turns)
    ds = open_store(make(folder / "run.zarr", 1, 8, entities))
    source = SiteData(ds)
    stored = ds.resid_post.size * 2
    order = [f"s{g + 1}" for g in range(GROUPS)]
    rate["reading"] = stored / rates.best_of(lambda: run_slabs(source, read, progress=False), 3)
    quiet = {"cache": False, "progress": False, "order": order}
    rate["centroids"] = stored / rates.best_of(lambda: centroids(ds, **quiet), 3)
    return rate


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir(), help="on a disk")
    parser.add_argument("--tokens", type=int, default=20, help="tokens of a prompt")
    parser.add_argument("--positions", type=int, default=2, help="recorded positions")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of 67 MB to write for the rate")
    parser.add_argument("--entities", type=int, default=7200, help="entities to read for the rate")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parse(parser, quick={"blocks": 2, "entities": 1800, "models": ["SmolLM2-135M"]})
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "torch", "transformers", "scipy", folders=[folder]) as report:
            run(report, measured(folder, options.blocks, options.entities), options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, rate: dict[str, float], options: argparse.Namespace) -> None:
    known = Table("rates", "Measured rates", [Column("name", ""), Column("rate", "rate"), Column("unit", "")])
    by_model = {n: (forward(w, shape, options.tokens), probing(w)) for n, (_, w, _, shape) in MODELS.items()
                if n in options.models}  # fmt: skip
    for name, value, unit in (
        *((f"forward pass, float32, blocks of {n}", a / 1e9, "GFLOP/s") for n, (a, _) in by_model.items()),
        ("our writer, to the disk", rate["writing"] / 1e6, "MB/s"),
        ("a raw file from the disk", rate["disk"] / 1e6, "MB/s"),
        ("verifying and widening from the page cache", rate["reading"] / 1e6, "MB/s of the file"),
        ("centroids from the page cache", rate["centroids"] / 1e6, "MB/s of the file"),
        *(
            (f"logistic probes of a pair, five folds, {MODELS[n][1]} wide", b / 1e6, "million rows x features/s")
            for n, (_, b) in by_model.items()
        ),
    ):
        known.add(name=name, rate=value, unit=unit)
    report.add(known)
    sizes = Table("sizes", "Bytes and files", [
        Column("name", ""), Column("run", "entities x stages"), Column("size", "size", "TB"), Column("files", "files"),
        Column("records", "commit records at most"), Column("rows", "rows of a block"),
        Column("memory", "buffers", "GiB"), Column("slab", "a slab", "GB"),
    ], note=f"{options.positions} positions, bfloat16, with statistics; two buffers, at most 2 GiB")  # fmt: skip
    hours = Table("hours", "Hours at these rates", [
        Column("name", ""), Column("run", "entities x stages"), Column("operations", "forward passes", "PFLOP"),
        Column("forward", "forward", "h"), Column("writing", "writing", "h"), Column("reading", "reading once", "h"),
        Column("centroids", "centroids", "h"), Column("probes", "probes of a pair", "h"),
        Column("records", "recording waits for"), Column("analyses", "centroids wait for"),
    ], note=f"prompts of {options.tokens} tokens")  # fmt: skip
    for name, (passing, probes) in by_model.items():
        layers, width, parameters, _ = MODELS[name]
        site = site_variable("resid_post", ["d_model"], [width], "bfloat16", "blocks.{layer}.hook_out")
        variables = [site, *statistic_variables(site)]
        for entities, stages in RUNS:
            size = forecast(variables, entities=entities, layers=layers, tokens=options.positions, stages=stages)
            run_label = f"{number(entities)} x {stages}"
            sizes.add(
                name=name, run=run_label, size=size.nbytes / 1e12, files=size.files, records=size.commit_records,
                rows=size.block_size, memory=size.memory / 2**30, slab=4.0 * entities * options.positions * width / 1e9,
            )  # fmt: skip
            operations = 2 * parameters * options.tokens * entities * stages
            values = 2.0 * entities * stages * layers * options.positions * width
            seconds = {
                "forward": operations / passing,
                "writing": size.nbytes / rate["writing"],
                "reading": values / min(rate["disk"], rate["reading"]),
                "centroids": values / min(rate["disk"], rate["centroids"]),
                "probes": values / 2 / probes / 3,  # a pair of six groups is a third of the rows
            }
            hours.add(
                name=name, run=run_label, operations=operations / 1e15, **{k: v / 3600 for k, v in seconds.items()},
                records="the forward passes" if seconds["forward"] > seconds["writing"] else "the disk",
                analyses="the disk" if rate["disk"] < rate["centroids"] else "verifying, widening and summing",
            )  # fmt: skip
    report.add(sizes)
    report.add(hours)


if __name__ == "__main__":
    main()
