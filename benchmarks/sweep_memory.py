"""A store larger than memory, swept within a limit that the kernel enforces.

Makes a store of --gib GiB on disk (bfloat16; twice that once decoded), then sweeps it in a second process for what
--jobs names, with its data segment limited to --limit-mib, imports included (RLIMIT_DATA: an allocation beyond it
raises MemoryError). Prints seconds, the peak of resident memory, and how many times the sweep decoded what it may
hold. As a check of the limit itself, the process ends by asking for more than is left, which must fail.

    python benchmarks/sweep_memory.py [FOLDER] [--gib 2] [--limit-mib 2048] [--workers 2] [--jobs centroids]

The run that the aim speaks of, 30 GB within 2 GB (about ten minutes of two cores, most of them logistic probes):

    python benchmarks/sweep_memory.py /path/with/40/GB --gib 30 --limit-mib 2048 --jobs centroids,ridge,logistic
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from centroids_speed import GROUPS, TOKENS, WIDTH, make
from common import describe, peak_memory_mib

from stratalens.analyses.centroids import centroids
from stratalens.analyses.probes import probe
from stratalens.store import open_store


def child(path: str, limit_mib: int, workers: int, jobs: list[str]) -> None:
    """Sweep under the limit."""
    limit = limit_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    ds = open_store(path)
    order = [f"s{g + 1}" for g in range(GROUPS)]
    quiet = {"cache": False, "progress": False, "workers": workers, "order": order}
    print(f"imports and opening: peak {peak_memory_mib():.0f} MiB", flush=True)
    for job in jobs:
        start, cpu = time.perf_counter(), time.process_time()
        if job == "centroids":
            centroids(ds, **quiet)
        else:
            probe(ds, pairs=[("s1", "s6")], method=job, C=0.1, resamples=100, **quiet)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        decoded = ds.resid_post.size * 4 / 2**20
        print(
            f"{job:10s} {wall:8.1f} s wall, {cpu:8.1f} s CPU, peak {peak_memory_mib():6.0f} MiB resident; "
            f"decoded {decoded:.0f} MiB, {decoded / peak_memory_mib():.1f} times the peak",
            flush=True,
        )
    try:
        np.ones(limit // 8)
    except MemoryError:
        return
    raise SystemExit("the limit was not enforced on this system")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--entities", type=int, default=24_000)
    parser.add_argument("--limit-mib", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", default="centroids", help="of centroids, ridge, lda, diffmeans, logistic")
    parser.add_argument("--child", default=None)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.limit_mib, options.workers, options.jobs.split(","))
        return
    print(describe("xarray", "dask"))
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        slab = options.entities * len(TOKENS) * WIDTH * 2
        slabs = max(2, round(options.gib * 2**30 / slab))
        layers = min(30, slabs)
        stages = max(1, round(slabs / layers))
        make(folder / "run.zarr", stages, layers, options.entities)
        print(
            f"# {stages} stages x {layers} layers, slabs of {2 * slab / 2**20:.0f} MiB decoded, "
            f"{stages * layers * slab / 2**30:.1f} GiB on disk; limit {options.limit_mib} MiB, "
            f"{options.workers} workers",
            flush=True,
        )
        command = [sys.executable, __file__, "--child", str(folder / "run.zarr"), "--jobs", options.jobs]
        subprocess.run([*command, "--limit-mib", str(options.limit_mib), "--workers", str(options.workers)], check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
