"""What runs would take that are larger than this machine: bytes and files as the store forecasts them, hours at rates.

Bytes, files and memory come from `stratalens.store.layout.forecast`, which growth.py compares with real stores. Hours
are amounts divided by rates that were measured here, on this machine, moments before: the forward passes at the rate of
NumPy's product of float32 matrices with all cores (2 operations for each parameter and token; a GPU or bfloat16 does it
faster, and the operations are shown so that they can be divided by another rate), writing through our writer onto this
disk, reading back at the slower of the disk and of checking and widening, centroids, and logistic probes of one pair
with five folds at every layer and stage, scaled with rows x width from a layer of 6000 rows x 576 features.

What limits is what takes longest: of recording, where writing goes on beside the forward pass, and of reading it all
back once for centroids.

    python benchmarks/extrapolation.py [FOLDER] [--tokens 20] [--positions 2]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np

import rates
from centroids_speed import GROUPS, make, read
from formats import DTYPE
from probes_speed import as_data, gaussian
from report import Column, Report, Table, arguments, number, parse
from store_write import D_MODEL, LAYERS, ROWS, TOKENS, write_filled
from stratalens.analyses.centroids import centroids
from stratalens.analyses.engine.slabs import SiteData
from stratalens.analyses.probes import probe
from stratalens.analyses.sweep import run_slabs
from stratalens.store import open_store
from stratalens.store.layout import forecast
from stratalens.store.schema import site_variable, statistic_variables
from stratalens.store.threads import cores

TITLE, THEME = "What larger runs would take", "Growth"
MODELS = {"SmolLM2-135M": (30, 576, 134.5e6), "Llama-3-8B": (32, 4096, 8.03e9), "Llama-3-70B": (80, 8192, 70.6e9)}
RUNS = ((100_000, 1), (1_000_000, 20))


def measured(folder: Path, blocks: int, entities: int) -> dict[str, float]:
    """Bytes a second (operations a second for `forward`, rows x features a second for `probes`)."""
    found = {"forward": rates.gemm(cores()), "disk": rates.disk(folder)["cold"]}
    values = np.random.default_rng(0).standard_normal((LAYERS, ROWS, TOKENS, D_MODEL), dtype=np.float32).astype(DTYPE)
    shape = (1, LAYERS, ROWS * blocks, TOKENS, D_MODEL)
    turns = [write_filled(folder, shape, values).wall for _ in range(3)]
    found["writing"] = values.nbytes * blocks / statistics.median(turns)
    ds = open_store(make(folder / "run.zarr", 1, 8, entities))
    source = SiteData(ds)
    stored = ds.resid_post.size * 2
    order = [f"s{g + 1}" for g in range(GROUPS)]
    found["reading"] = stored / rates.best_of(lambda: run_slabs(source, read, progress=False), 3)
    quiet = {"cache": False, "progress": False, "order": order}
    found["centroids"] = stored / rates.best_of(lambda: centroids(ds, **quiet), 3)
    data = as_data(gaussian(1)).isel(token=[0])
    took = rates.best_of(lambda: probe(data, pairs=[("s1", "s2")], workers=1, progress=False), 3)
    found["probes"] = data.sizes["entity"] / GROUPS * 2 * data.sizes["d_model"] / took * cores()
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir(), help="on a disk")
    parser.add_argument("--tokens", type=int, default=20, help="of a prompt")
    parser.add_argument("--positions", type=int, default=2, help="that are recorded")
    parser.add_argument("--blocks", type=int, default=4, help="of 67 MB that are written for the rate")
    parser.add_argument("--entities", type=int, default=7200, help="that are read for the rate")
    options = parse(parser, quick={"blocks": 2, "entities": 1800})
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "scipy", folders=[folder]) as report:
            run(report, measured(folder, options.blocks, options.entities), options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, rate: dict[str, float], options: argparse.Namespace) -> None:
    known = Table("rates", "Rates that were measured", [Column("name", ""), Column("rate", "rate"), Column("unit", "")])
    for name, value, unit in (
        (f"product of float32 matrices, {cores()} threads", rate["forward"] / 1e9, "GFLOP/s"),
        ("our writer, onto the disk", rate["writing"] / 1e6, "MB/s"),
        ("a raw file from the disk", rate["disk"] / 1e6, "MB/s"),
        ("checking and widening from the page cache", rate["reading"] / 1e6, "MB/s of the file"),
        ("centroids from the page cache", rate["centroids"] / 1e6, "MB/s of the file"),
        ("logistic probes of a pair, five folds", rate["probes"] / 1e6, "million rows x features/s"),
    ):
        known.add(name=name, rate=value, unit=unit)
    report.add(known)
    sizes = Table("sizes", "Bytes and files", [
        Column("name", ""), Column("run", "entities x stages"), Column("size", "size", "TB"), Column("files", "files"),
        Column("records", "commit records at most"), Column("rows", "rows of a block"),
        Column("memory", "buffers", "GiB"),
    ], note=f"{options.positions} positions, bfloat16, with statistics; two buffers, at most 2 GiB")  # fmt: skip
    hours = Table("hours", "Hours at these rates", [
        Column("name", ""), Column("run", "entities x stages"), Column("operations", "forward passes", "PFLOP"),
        Column("forward", "forward", "h"), Column("writing", "writing", "h"), Column("reading", "reading once", "h"),
        Column("centroids", "centroids", "h"), Column("probes", "probes of a pair", "h"),
        Column("records", "recording waits for"), Column("analyses", "centroids wait for"),
    ], note=f"prompts of {options.tokens} tokens")  # fmt: skip
    for name, (layers, width, parameters) in MODELS.items():
        site = site_variable("resid_post", ["d_model"], [width], "bfloat16", "blocks.{layer}.hook_out")
        variables = [site, *statistic_variables(site)]
        for entities, stages in RUNS:
            size = forecast(variables, entities=entities, layers=layers, tokens=options.positions, stages=stages)
            told = f"{number(entities)} x {stages}"
            sizes.add(
                name=name, run=told, size=size.nbytes / 1e12, files=size.files, records=size.commit_records,
                rows=size.block_size, memory=size.memory / 2**30,
            )  # fmt: skip
            operations = 2 * parameters * options.tokens * entities * stages
            values = 2.0 * entities * stages * layers * options.positions * width
            seconds = {
                "forward": operations / rate["forward"],
                "writing": size.nbytes / rate["writing"],
                "reading": values / min(rate["disk"], rate["reading"]),
                "centroids": values / min(rate["disk"], rate["centroids"]),
                "probes": values / 2 / rate["probes"] / 3,  # a pair of six groups is a third of the rows
            }
            hours.add(
                name=name, run=told, operations=operations / 1e15, **{k: v / 3600 for k, v in seconds.items()},
                records="the forward passes" if seconds["forward"] > seconds["writing"] else "the disk",
                analyses="the disk" if rate["disk"] < rate["centroids"] else "checking, widening and summing",
            )  # fmt: skip
    report.add(sizes)
    report.add(hours)


if __name__ == "__main__":
    main()
