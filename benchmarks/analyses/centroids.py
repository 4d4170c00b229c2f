"""Measure centroids of a full store relative to reading the same slabs, and the cost of the held-out projection.

The baseline verifies the slabs and decodes them to float32, block by block, with the same workers. No analysis that
uses every value can be faster. Runs alternate; ratios are taken within each round.

    python -m benchmarks.analyses.centroids [FOLDER] [--entities 1800] [--layers 12] [--stages 3] [--rounds 7]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import alternate, peak_memory_mib, scratch, time_once
from stratalens.analyses.centroids.centroids import centroids, project
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.run import run_slabs
from stratalens.store import open_store
from stratalens.store.format.schema import site_variable
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter

TITLE, THEME = "Centroids compared with reading", "Analyses"
WIDTH, TOKENS, GROUPS = 576, ("entity_last", "last"), 6


def make(path: Path, stages: int, layers: int, entities: int, dtype: str = "bfloat16") -> Path:
    """Write a store of normal noise with groups cycling over entities; blocks are windows of one pool, for speed."""
    rng = np.random.default_rng(0)
    pool = np.empty((0, 0, 0, 0), np.uint16)
    labels = np.array([f"s{i % GROUPS + 1}" for i in range(entities)], object)
    store = create(
        path,
        entities={
            "entity": np.array([f"r{i:06d}" for i in range(entities)], object),
            "entity_id": np.array([f"e{i:06d}" for i in range(entities)], object),
            "trained_stage": labels,
        },
        layers=range(layers),
        tokens=TOKENS,
        variables=[site_variable("resid_post", ["d_model"], [WIDTH], dtype, "blocks.{layer}.hook_out")],
        provenance={"model": "synthetic"},
    )
    with ActivationWriter(store) as writer:
        for s in range(stages):
            with writer.stage(f"s{s}", order=s, fingerprint=f"f{s}") as stage:
                for block in stage.pending():
                    buffer = stage.buffer(block)
                    n, offset = len(block.rows), int(rng.integers(0, 64))
                    if pool.size == 0:
                        x = rng.standard_normal((layers, n + 64, len(TOKENS), WIDTH), dtype=np.float32)
                        pool = (x.view(np.uint32) >> 16).astype(np.uint16)
                    buffer.write("resid_post", block.rows, pool[:, offset : offset + n])
                    stage.submit(buffer)
    return path


def read(slab: Slab) -> xr.Dataset:
    """Read every block and discard it."""
    return xr.Dataset({"rows": sum(len(rows) for rows, _ in slab.blocks())})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--entities", type=int, default=1800)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    options = parse(parser, quick={"entities": 600, "layers": 4, "stages": 1, "rounds": 3})
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "xarray", "dask", "scipy", folders=[folder]) as report:
            run(report, folder, options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, folder: Path, options: argparse.Namespace) -> None:
    ds = open_store(make(folder / "run.zarr", options.stages, options.layers, options.entities))
    size = ds.resid_post.size * 4 / 2**20
    source = SiteData(ds)
    order = [f"s{g + 1}" for g in range(GROUPS)]
    runs = alternate(
        {
            "read only": lambda: run_slabs(source, read, progress=False),
            "centroids": lambda: centroids(ds, order=order, cache=False, progress=False),
        },
        rounds=options.rounds,
    )
    report.timings(
        "centroids",
        f"Centroids of {size:.0f} MiB of float32 compared with reading it",
        runs,
        "read only",
        ours=["centroids"],
        amount=size,
        unit="MiB",
        note=f"{dict(ds.resid_post.sizes)} in bfloat16, page cache; peak memory {peak_memory_mib():.0f} MiB",
    )
    for unit in ("wall", "cpu"):  # CPU seconds are the fairer measure on a shared machine
        speed = ratios(runs["read only"], runs["centroids"], unit)
        report.target(f"speed of centroids relative to reading, {unit} seconds", speed, at_least=0.7)

    def projected() -> None:
        project(ds, order=order, cache=False, progress=False)

    turns = [time_once(projected)]
    slabs = options.stages * options.layers
    table = Table("projection", "Held-out projection", [
        Column("name", ""), Column("slabs", "slabs"), Column("wall", "wall", "s"), Column("cpu", "CPU", "s"),
        Column("each", "CPU of a slab", "s"),
    ], note="1000 permutations, 1000 bootstrap samples, 20 splits")  # fmt: skip
    wall, cpu = [t.wall for t in turns], [t.cpu for t in turns]
    table.add(name="project", slabs=slabs, wall=wall, cpu=cpu, each=[c / slabs for c in cpu])
    report.add(table)


if __name__ == "__main__":
    main()
