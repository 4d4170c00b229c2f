"""Sweep a store that is larger than the available memory, under a limit that the kernel enforces.

The script writes a store of the given size on disk (bfloat16; twice that size once decoded). It then sweeps the store
in a separate process for each job and limits the data segment of that process, imports included (RLIMIT_DATA: an
allocation beyond it raises MemoryError). The table shows seconds, the peak of resident memory, and the decoded size
relative to that peak. To check the limit itself, each process finally requests more memory than is left, which must
fail.

    python -m benchmarks.analyses.sweep_memory [FOLDER] [--gib 6] [--limit-mib 2048] [--workers 2] [--jobs ridge]

The run of the target, 30 GB within 2 GB, takes about eleven minutes of CPU, most of it for the probes:

    python -m benchmarks.analyses.sweep_memory /path/with/40/GB --gib 30 --jobs centroids ridge logistic
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.analyses.centroids import GROUPS, TOKENS, WIDTH, make
from benchmarks.harness.document import Column, Report, Table, arguments, parse
from benchmarks.harness.measure import module_of, peak_memory_mib, time_once
from stratalens.analyses.centroids.centroids import centroids
from stratalens.analyses.probes.probe import probe
from stratalens.store import open_store

TITLE, THEME = "A store larger than memory", "Growth"
JOBS = ("centroids", "ridge", "lda", "diffmeans", "logistic")


def child(path: str, limit_mib: int, workers: int, job: str) -> None:
    """Sweep under the limit; print one JSON object."""
    limit = limit_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    ds = open_store(path)
    order = [f"s{g + 1}" for g in range(GROUPS)]
    quiet = {"cache": False, "progress": False, "workers": workers, "order": order}
    before = peak_memory_mib()

    def sweep() -> None:
        if job == "centroids":
            centroids(ds, **quiet)
        else:
            probe(ds, pairs=[("s1", "s6")], method=job, C=0.1, resamples=100, **quiet)

    took = time_once(sweep)
    peak = peak_memory_mib()
    decoded = ds.resid_post.size * 4 / 2**20
    try:
        np.ones(limit // 8)
    except MemoryError:
        print(json.dumps({"wall": took.wall, "cpu": took.cpu, "peak": peak, "before": before, "decoded": decoded}))
        return
    raise SystemExit("the limit was not enforced on this system")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--gib", type=float, default=6.0)
    parser.add_argument("--entities", type=int, default=24_000)
    parser.add_argument("--limit-mib", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", nargs="+", default=["centroids", "ridge"], choices=JOBS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parse(parser, quick={"gib": 0.5, "entities": 6000, "limit_mib": 768, "jobs": ["centroids"]})
    if options.child:
        child(options.child, options.limit_mib, options.workers, options.jobs[0])
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "xarray", "dask", "scikit-learn", folders=[folder]) as report:
            run(report, folder, options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, folder: Path, options: argparse.Namespace) -> None:
    slab = options.entities * len(TOKENS) * WIDTH * 2
    slabs = max(2, round(options.gib * 2**30 / slab))
    layers = min(30, slabs)
    stages = max(1, round(slabs / layers))
    make(folder / "run.zarr", stages, layers, options.entities)
    size = stages * layers * slab / 2**30
    title = f"{size:.1f} GiB on disk swept within {options.limit_mib} MiB by {options.workers} workers"
    table = Table("sweeps", title, [
        Column("name", ""), Column("wall", "wall", "s"), Column("cpu", "CPU", "s"),
        Column("before", "imports and opening", "MiB"), Column("peak", "resident peak", "MiB"),
        Column("times", "decoded / peak"),
    ], note=f"{stages} stages x {layers} layers, slabs of {2 * slab / 2**20:.0f} MiB decoded")  # fmt: skip
    for job in options.jobs:
        command = [sys.executable, "-m", module_of(__file__), "--child", str(folder / "run.zarr"), "--jobs", job]
        command += ["--limit-mib", str(options.limit_mib), "--workers", str(options.workers)]
        # pandas imports pyarrow if it is installed, and pyarrow's allocator reserves an unused GiB.
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=3600)
        results = json.loads(done.stdout.splitlines()[-1])
        table.add(
            name=job, times=results["decoded"] / results["peak"], **{k: results[k] for k in results if k != "decoded"}
        )
    report.add(table)


if __name__ == "__main__":
    main()
