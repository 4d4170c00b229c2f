"""A store larger than memory, swept within a limit that the kernel enforces.

A child process makes a store of --gib GiB (float32 equivalents of bfloat16), then a second one, with its data
segment limited to --limit-mib above what the imports take (RLIMIT_DATA: an allocation beyond it raises MemoryError),
sweeps it for centroids, ridge probes and logistic probes. Prints seconds and the peak of resident memory.

    python benchmarks/sweep_memory.py [FOLDER] [--gib 4] [--limit-mib 2048] [--workers 2]
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

from centroids_speed import GROUPS, TOKENS, WIDTH, make
from common import describe, peak_memory_mib


def child(path: str, limit_mib: int, workers: int) -> None:
    """Sweep under the limit."""
    from stratalens.analyses.centroids import centroids
    from stratalens.analyses.probes import probe
    from stratalens.store import open_store

    limit = limit_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    ds = open_store(path)
    order = [f"s{g + 1}" for g in range(GROUPS)]
    options = {"cache": False, "progress": False, "workers": workers, "order": order}
    start = time.perf_counter()
    centroids(ds, **options)
    print(f"centroids       {time.perf_counter() - start:8.1f} s, peak {peak_memory_mib():6.0f} MiB", flush=True)
    for method in ("ridge", "logistic"):
        start = time.perf_counter()
        probe(ds, pairs=[("s1", "s6")], method=method, C=0.1, resamples=100, **options)
        print(f"{method:8s} probes {time.perf_counter() - start:8.1f} s, peak {peak_memory_mib():6.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--entities", type=int, default=24_000)
    parser.add_argument("--limit-mib", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child", default=None)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.limit_mib, options.workers)
        return
    print(describe("xarray", "dask"))
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        slab = options.entities * len(TOKENS) * WIDTH * 4
        slabs = max(2, round(options.gib * 2**30 / slab))
        layers = min(12, slabs)
        stages = max(1, round(slabs / layers))
        make(folder / "run.zarr", stages, layers, options.entities)
        print(
            f"# {stages} stages x {layers} layers, slabs of {slab / 2**20:.0f} MiB, "
            f"{stages * layers * slab / 2**30:.1f} GiB as float32; "
            f"limit {options.limit_mib} MiB, {options.workers} workers"
        )
        command = [sys.executable, __file__, "--child", str(folder / "run.zarr")]
        subprocess.run([*command, "--limit-mib", str(options.limit_mib), "--workers", str(options.workers)], check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
