"""Centroids of a whole store against merely reading the same slabs, and what the held-out projection costs.

Reading means: verified, decoded to float32, block by block, with the same workers. Alternating runs; the ratio
(speed of centroids / speed of reading) is taken within each round. Aim: at least 0.7.

    python benchmarks/centroids_speed.py [FOLDER] [--entities 1800] [--layers 12] [--rounds 7] [--projection]

With --projection: `project` with 1000 permutations, 1000 bootstrap samples and 20 splits over 7 stages (--stages) x 12
layers x 2 tokens x 1800 entities x 576, wall seconds and seconds a slab.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from common import alternate, describe, peak_memory_mib, table

from stratalens.analyses.centroids import centroids, project
from stratalens.analyses.engine.slabs import SiteData, Slab
from stratalens.analyses.sweep import run_slabs
from stratalens.store import open_store
from stratalens.store.create import create
from stratalens.store.schema import site_variable
from stratalens.store.writer import ActivationWriter

WIDTH, TOKENS, GROUPS = 576, ("entity_last", "last"), 6


def make(path: Path, stages: int, layers: int, entities: int, dtype: str = "bfloat16") -> Path:
    """A store of normal noise, groups cycling over entities; blocks are windows of one pool, so that it is quick."""
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
    """Touch every block and throw it away."""
    return xr.Dataset({"rows": sum(len(rows) for rows, _ in slab.blocks())})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default="/dev/shm")
    parser.add_argument("--entities", type=int, default=1800)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--stages", type=int, help="3; with --projection 7")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--projection", action="store_true")
    options = parser.parse_args()
    print(describe("xarray", "dask"))
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        stages = options.stages or (7 if options.projection else 3)
        ds = open_store(make(folder / "run.zarr", stages, options.layers, options.entities))
        size = ds.resid_post.size * 4 / 2**20
        print(f"# {dict(ds.resid_post.sizes)}, {size:.0f} MiB as float32, page cache")
        if options.projection:
            start, cpu = time.perf_counter(), time.process_time()
            project(ds, order=[f"s{g + 1}" for g in range(GROUPS)], cache=False, progress=False)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            slabs = stages * options.layers
            print(f"project: {wall:.1f} s wall, {cpu:.1f} s CPU, {cpu / slabs:.2f} CPU s a slab")
            return
        source = SiteData(ds)
        order = [f"s{g + 1}" for g in range(GROUPS)]
        found = alternate(
            {
                "read only": lambda: run_slabs(source, read, progress=False),
                "centroids": lambda: centroids(ds, order=order, cache=False, progress=False),
            },
            rounds=options.rounds,
        )
        print(table(found, "read only"))
        pairs = list(zip(found["read only"], found["centroids"], strict=True))
        for unit in ("cpu", "wall"):  # CPU seconds are the fairer measure where others use the machine too
            ratios = sorted(getattr(a, unit) / getattr(b, unit) for a, b in pairs)
            print(
                f"speed of centroids / speed of reading, in {unit} seconds: {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} .. {ratios[-1]:.2f})"
            )
        print(f"{size / statistics.median(r.wall for r in found['read only']):.0f} MiB/s read")
        print(f"peak memory {peak_memory_mib():.0f} MiB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
