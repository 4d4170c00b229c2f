"""Compare two distributed workers with one: the same sweeps over a store, on clusters of one and of two processes.

Each worker is a process with one thread and one BLAS thread, and reads its own slabs. Runs alternate between the two
clusters, whose workers have started and imported everything before. Two controls measure the machine itself. The first
runs matrix products in memory on the same clusters, without reading or sending data (two hyperthreads of one core are
not two cores). The second runs the same slabs in one and in two bare processes without dask, each with its own list; no
scheduler can be faster. The target of 1.6 assumes two real cores. The store has one gigabyte: the startup cost of some
hundredths of a second dominates sweeps of less than half a second (try --stages 4 --layers 6). CPU seconds are those of
the workers and, in a separate column, those of this process. It runs the client and the scheduler and has no core for
itself while two workers are busy.

    python -m benchmarks.scaling.cluster [FOLDER] [--entities 1800] [--layers 12] [--stages 12] [--rounds 5]
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from benchmarks.analyses.centroids import GROUPS, make
from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import Timing, scratch
from stratalens.analyses.centroids.centroids import project
from stratalens.analyses.data.slabs import SiteData, Slab
from stratalens.analyses.sweep.run import run_slabs
from stratalens.analyses.sweep.tasks import SharedContext, run_slab_task
from stratalens.store import open_store

TITLE, THEME = "Two distributed workers against one", "Scale-out"
BARE = "second moments, bare processes"
ORDER = [f"s{g + 1}" for g in range(GROUPS)]


def gram(slab: Slab) -> xr.Dataset:
    """Compute second moments; compute-bound, as ridge and LDA are."""
    total = 0.0
    for _, values in slab.blocks():
        flat = values.reshape(-1, values.shape[-1])
        total += float((flat.T @ flat).trace())
    return xr.Dataset({"trace": total})


def products(seed: int) -> float:
    """Compute matrix products in memory with NumPy, for comparison."""
    with threadpool_limits(1):
        x = np.random.default_rng(seed).standard_normal((3000, 576), dtype=np.float32)
        return sum(float((x.T @ x).trace()) for _ in range(6))


def bare(path: str, first: int, step: int) -> float:
    """Compute second moments of every `step`-th slab in this process; return its CPU seconds."""
    began = time.process_time()
    slabs = SiteData(open_store(path)).slabs()
    for slab in slabs[first::step]:
        run_slab_task(gram, slab)
    return time.process_time() - began


def used() -> float:
    """Return the CPU seconds of this worker so far."""
    return time.process_time()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--entities", type=int, default=1800)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--stages", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resamples", type=int, default=30, help="permutations of project, and bootstrap samples")
    options = parse(parser, quick={"entities": 600, "layers": 3, "stages": 2, "rounds": 2, "resamples": 20})
    logging.getLogger("distributed").setLevel(logging.WARNING)  # hide messages about closing clusters
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    clusters: dict[int, Any] = {}
    pools: dict[int, ProcessPoolExecutor] = {}
    try:
        with Report(__file__, options, "dask", "distributed", folders=[folder]) as report:
            path = make(folder / "run.zarr", options.stages, options.layers, options.entities)
            ds = open_store(path)
            for n in (1, 2):
                cluster = distributed.LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=":0")
                clusters[n] = distributed.Client(cluster, set_as_default=False)
                pools[n] = ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"))
            run(report, str(path), ds, clusters, pools, options.rounds, options.resamples)
    finally:
        for client in clusters.values():
            client.shutdown()
        for pool in pools.values():
            pool.shutdown()
        shutil.rmtree(folder)


def run(
    report: Report, path: str, ds: xr.Dataset, clusters: dict[int, Any], pools: dict[int, ProcessPoolExecutor],
    rounds: int, resamples: int,
) -> None:  # fmt: skip
    size = ds.resid_post.size * 4 / 2**20
    slabs = ds.resid_post.sizes["stage"] * ds.resid_post.sizes["layer"]

    def on(n: int, job: Any) -> float:
        """Run a job on a cluster of n workers; return their CPU seconds."""
        before = sum(clusters[n].run(used).values())
        job(clusters[n])
        return float(sum(clusters[n].run(used).values()) - before)

    def processes(n: int) -> float:
        return sum(pools[n].map(bare, [path] * n, range(n), [n] * n))

    jobs: dict[str, Any] = {
        "pure NumPy": lambda client: client.gather(client.map(products, range(slabs), pure=False)),
        "second moments": lambda client: run_slabs(ds, gram, scheduler=client, progress=False),
        "project": lambda client: project(
            ds, order=ORDER, permutations=resamples, bootstrap=resamples, scheduler=client, cache=False, progress=False
        ),
    }
    methods = {name: partial(on, job=job) for name, job in jobs.items()} | {BARE: processes}
    table = Table("speedup", f"Sweeps over {size:.0f} MiB of float32 in {slabs} slabs", [
        Column("name", ""), Column("one", "one worker", "s"), Column("one_cpu", "its CPU", "s"),
        Column("two", "two workers", "s"), Column("two_cpu", "their CPU", "s"),
        Column("client", "client and scheduler's CPU, of two workers", "s"), Column("speedup", "times as fast"),
    ], note=f"project with {resamples} permutations and bootstrap samples")  # fmt: skip
    walls: dict[str, dict[int, list[Timing]]] = {name: {1: [], 2: []} for name in methods}
    client: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(-1, rounds):
        for name, method in methods.items():
            for n in (1, 2):
                start, own = time.perf_counter(), time.process_time()
                cpu = method(n)
                wall, own = time.perf_counter() - start, time.process_time() - own
                if turn >= 0:
                    walls[name][n].append(Timing(wall, cpu))
                    client[name] += [own] if n == 2 else []
    gains = {name: ratios(runs[1], runs[2]) for name, runs in walls.items()}
    for name, runs in walls.items():
        seconds = {key: [t.wall for t in runs[n]] for n, key in ((1, "one"), (2, "two"))}
        cpu_seconds = {key: [t.cpu for t in runs[n]] for n, key in ((1, "one_cpu"), (2, "two_cpu"))}
        table.add(name=name, speedup=gains[name], client=client[name], **seconds, **cpu_seconds)
    report.add(table)
    report.target("speed of two workers relative to one, second moments", gains["second moments"], at_least=1.6)
    report.target("speed of two workers relative to one, project", gains["project"], at_least=1.6)
    shares = [a / b for a, b in zip(gains["second moments"], gains[BARE], strict=True)]
    report.target("speedup of second moments relative to that of two bare processes", shares, at_least=0.9)
    source = SiteData(ds)
    common = SharedContext(gram, source, every := source.slabs())
    parcels = [len(cloudpickle.dumps(common.pack(slab))) for slab in every]
    report.note(
        f"Sent to the workers: {max(parcels) / 1024:.1f} KiB a slab of {size / len(parcels):.0f} MiB, and "
        f"{len(cloudpickle.dumps(common)) / 1024:.0f} KiB of labels once."
    )


if __name__ == "__main__":
    main()
