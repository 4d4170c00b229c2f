"""Two distributed workers against one: the same sweeps over a store, on clusters of one and of two processes.

Each worker is a process with one thread and one BLAS thread, and reads its own slabs. Runs alternate between the two
clusters, whose workers are started and have imported everything before. What the machine itself can give is measured
beside it: the same clusters at products of matrices in memory, which read and send nothing (two hyperthreads of one
core are no two cores); an aim of 1.6 is for two real cores. CPU seconds are those which the workers themselves used.

    python benchmarks/cluster_speedup.py [FOLDER] [--entities 1800] [--layers 6] [--stages 4] [--rounds 5]
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from centroids_speed import GROUPS, make
from common import Timing, scratch
from report import Column, Report, Table, arguments, parse, ratios
from stratalens.analyses.centroids import project
from stratalens.analyses.engine.parcels import Common
from stratalens.analyses.engine.slabs import SiteData, Slab
from stratalens.analyses.sweep import run_slabs
from stratalens.store import open_store

TITLE, THEME = "Two distributed workers against one", "Scale-out"
ORDER = [f"s{g + 1}" for g in range(GROUPS)]


def gram(slab: Slab) -> xr.Dataset:
    """Second moments: compute-bound, as ridge and LDA are."""
    total = 0.0
    for _, values in slab.blocks():
        flat = values.reshape(-1, values.shape[-1])
        total += float((flat.T @ flat).trace())
    return xr.Dataset({"trace": total})


def products(seed: int) -> float:
    """Pure NumPy on arrays in memory, for comparison."""
    with threadpool_limits(1):
        x = np.random.default_rng(seed).standard_normal((3000, 576), dtype=np.float32)
        return sum(float((x.T @ x).trace()) for _ in range(6))


def used() -> float:
    """CPU seconds of this worker so far."""
    return time.process_time()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--entities", type=int, default=1800)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resamples", type=int, default=200, help="permutations of project, and bootstrap samples")
    options = parse(parser, quick={"entities": 600, "layers": 3, "stages": 2, "rounds": 2, "resamples": 20})
    logging.getLogger("distributed").setLevel(logging.WARNING)  # closing a cluster is no news
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    clusters: dict[int, Any] = {}
    try:
        with Report(__file__, options, "dask", "distributed", folders=[folder]) as report:
            ds = open_store(make(folder / "run.zarr", options.stages, options.layers, options.entities))
            for n in (1, 2):
                cluster = distributed.LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=":0")
                clusters[n] = distributed.Client(cluster, set_as_default=False)
            run(report, ds, clusters, options.rounds, options.resamples)
    finally:
        for client in clusters.values():
            client.shutdown()
        shutil.rmtree(folder)


def run(report: Report, ds: xr.Dataset, clusters: dict[int, Any], rounds: int, resamples: int) -> None:
    size = ds.resid_post.size * 4 / 2**20
    slabs = ds.resid_post.sizes["stage"] * ds.resid_post.sizes["layer"]
    jobs = {
        "pure NumPy": lambda client: client.gather(client.map(products, range(slabs), pure=False)),
        "second moments": lambda client: run_slabs(ds, gram, scheduler=client, progress=False),
        "project": lambda client: project(
            ds, order=ORDER, permutations=resamples, bootstrap=resamples, scheduler=client, cache=False, progress=False
        ),
    }
    table = Table("speedup", f"Sweeps over {size:.0f} MiB of float32 in {slabs} slabs", [
        Column("name", ""), Column("one", "one worker", "s"), Column("one_cpu", "its CPU", "s"),
        Column("two", "two workers", "s"), Column("two_cpu", "their CPU", "s"), Column("speedup", "times as fast"),
    ], note=f"project with {resamples} permutations and bootstrap samples")  # fmt: skip
    gains = {}
    for name, job in jobs.items():
        runs: dict[int, list[Timing]] = {1: [], 2: []}
        for turn in range(-1, rounds):
            for n, client in clusters.items():
                before, start = sum(client.run(used).values()), time.perf_counter()
                job(client)
                wall = time.perf_counter() - start
                if turn >= 0:
                    runs[n].append(Timing(wall, sum(client.run(used).values()) - before))
        gains[name] = ratios(runs[1], runs[2])
        seconds = {key: [t.wall for t in runs[n]] for n, key in ((1, "one"), (2, "two"))}
        cpu = {key: [t.cpu for t in runs[n]] for n, key in ((1, "one_cpu"), (2, "two_cpu"))}
        table.add(name=name, speedup=gains[name], **seconds, **cpu)
    report.add(table)
    report.aim("two workers by one, second moments", gains["second moments"], at_least=1.6)
    source = SiteData(ds)
    common = Common(gram, source)
    parcels = [len(cloudpickle.dumps(common.pack(slab))) for slab in source.slabs()]
    report.note(
        f"Sent to the workers: {max(parcels) / 1024:.1f} KiB a slab of {size / len(parcels):.0f} MiB, and "
        f"{len(cloudpickle.dumps(common)) / 1024:.0f} KiB of labels once."
    )


if __name__ == "__main__":
    main()
