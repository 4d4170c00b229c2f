"""Two distributed workers against one: the same sweeps over a store, on clusters of one and of two processes.

Each worker is a process with one thread and one BLAS thread, and reads its own slabs. Runs alternate between the two
clusters, whose workers are started and have imported everything before. Aim: at least 1.6x on two idle cores; on a
busy machine look at the CPU seconds too, which the workers themselves used and which must not grow with their
number. What the machine itself can give is measured beside it: the same clusters at products of matrices in memory,
which read and send nothing (two hyperthreads of one core are no two cores). Last it says how much was sent.

    python benchmarks/cluster_speedup.py [FOLDER] [--entities 1800] [--layers 6] [--stages 4] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import numpy as np
import xarray as xr
from centroids_speed import GROUPS, make
from common import describe
from threadpoolctl import threadpool_limits

from stratalens.analyses.centroids import project
from stratalens.analyses.engine.parcels import Common
from stratalens.analyses.engine.slabs import SiteData, Slab
from stratalens.analyses.sweep import run_slabs
from stratalens.store import open_store

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
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default="/dev/shm")
    parser.add_argument("--entities", type=int, default=1800)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(describe("dask", "distributed"))
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    clusters: dict[int, Any] = {}
    try:
        ds = open_store(make(folder / "run.zarr", options.stages, options.layers, options.entities))
        size = ds.resid_post.size * 4 / 2**20
        print(f"# {dict(ds.resid_post.sizes)}, {size:.0f} MiB as float32")
        for n in (1, 2):
            cluster = distributed.LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=":0")
            clusters[n] = distributed.Client(cluster, set_as_default=False)
        quiet = {"cache": False, "progress": False}
        jobs = {
            "pure NumPy, nothing read or sent": lambda client: client.gather(
                client.map(products, range(options.stages * options.layers), pure=False)
            ),
            "second moments": lambda client: run_slabs(ds, gram, scheduler=client, progress=False),
            "project, 200 permutations": lambda client: project(
                ds, order=ORDER, permutations=200, bootstrap=100, scheduler=client, **quiet
            ),
        }
        for name, job in jobs.items():
            wall: dict[int, list[float]] = {1: [], 2: []}
            cpu: dict[int, list[float]] = {1: [], 2: []}
            for turn in range(-1, options.rounds):
                for n, client in clusters.items():
                    before, start = sum(client.run(used).values()), time.perf_counter()
                    job(client)
                    seconds = time.perf_counter() - start
                    if turn >= 0:
                        wall[n].append(seconds)
                        cpu[n].append(sum(client.run(used).values()) - before)
            speedup = sorted(a / b for a, b in zip(wall[1], wall[2], strict=True))
            print(
                f"{name}: one worker {statistics.median(wall[1]):.2f} s ({statistics.median(cpu[1]):.2f} CPU s), two "
                f"{statistics.median(wall[2]):.2f} s ({statistics.median(cpu[2]):.2f} CPU s); speed-up "
                f"{statistics.median(speedup):.2f} ({speedup[0]:.2f} .. {speedup[-1]:.2f}); "
                f"load {os.getloadavg()[0]:.1f}"
            )
        source = SiteData(ds)
        common = Common(gram, source)
        parcels = [len(cloudpickle.dumps(common.pack(slab))) for slab in source.slabs()]
        print(
            f"sent to the workers: {max(parcels) / 1024:.1f} KiB a slab of {size / len(parcels):.0f} MiB, and "
            f"{len(cloudpickle.dumps(common)) / 1024:.0f} KiB of labels once"
        )
    finally:
        for client in clusters.values():
            client.shutdown()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
