"""Run one method of recording in its own process: load, warm up, then measure each setting once.

    python -m benchmarks.peers.worker MODULE CLASS FOLDER RESULT [--settings last,two,all] [--reference FOLDER]
        [--keep] [--kill N]

The worker writes JSON to RESULT. For each setting it holds {wall, cpu, peak, loaded, bytes, files, forwards,
difference, compared}, or {missing}. Peak memory counts from the loaded model on: the worker resets the kernel's
high-water mark before each run. With --keep it writes the first values to the folder of the reference. With --kill N
the process kills itself before the N-th forward pass.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measure import peak_memory_mib
from benchmarks.peers.method import CannotError, Method
from benchmarks.peers.workload import Workload


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 2**10
    raise OSError("/proc/self/status has no VmRSS")


def reset_peak() -> None:
    """Reset the high-water mark of memory (Linux; other systems only report that of the full process)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def compared(method: Method, workload: Workload, setting: str, folder: Path, reference: Path) -> tuple[float, int]:
    """Return the largest absolute difference to the reference and the number of compared layers; both float16."""
    worst, count = 0.0, workload.layers - method.layers_missing
    for layer in range(count):
        wanted = np.load(reference / f"{setting}.npy", mmap_mode="r")[layer]
        try:
            values = method.read(workload, setting, folder, layer)
        except CannotError:  # a layer that was not run
            count -= 1
            continue
        if values.shape != wanted.shape:
            raise ValueError(f"{method.name} returned values of shape {values.shape}; expected {wanted.shape}")
        worst = max(worst, float(np.abs(values.astype(np.float32) - wanted.astype(np.float32)).max()))
    return worst, count


def measure(method: Method, workload: Workload, setting: str, folder: Path, forwards: Any) -> dict[str, Any]:
    """Measure one run from the model in memory to the disk."""
    os.sync()
    reset_peak()
    loaded, before = resident(), next(forwards)
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        method.run(workload, setting, folder)
    except CannotError as error:
        return {"missing": str(error)}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    files = [p for p in folder.rglob("*") if p.is_file()]
    factor = getattr(method, "factor", 1.0)
    return {
        "wall": wall * factor,
        "cpu": cpu * factor,
        "peak": peak_memory_mib(),
        "loaded": loaded,
        "bytes": sum(p.stat().st_size for p in files) * getattr(method, "copies", 1.0),
        "files": len(files),
        "forwards": next(forwards) - before - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--workload", default="main")
    parser.add_argument("--settings", default="last,two,all")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--kill", type=int)
    parser.add_argument("--into", type=Path, help="write the files to this folder and leave them there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    module = importlib.import_module(f"benchmarks.peers.{options.module}")
    method: Method = next(kind for kind in module.METHODS if kind.__name__ == options.name)()
    workload = Workload(options.folder / options.workload)
    forwards = itertools.count()
    entry = method.load(workload)

    def count(*_: Any) -> None:
        if next(forwards) == options.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    scratch = Path(tempfile.mkdtemp(prefix="method-", dir=options.folder))
    results: dict[str, Any] = {}
    try:
        if options.kill is None and options.into is None:
            for setting in options.settings.split(","):  # imports and caches of the first use
                (scratch / f"warm-{setting}").mkdir()
                try:
                    method.run(Workload(options.folder / "warm"), setting, scratch / f"warm-{setting}")
                except CannotError:
                    continue
        entry.register_forward_pre_hook(count)
        for setting in options.settings.split(","):
            folder = options.into or scratch / setting
            folder.mkdir(exist_ok=True)
            results[setting] = measure(method, workload, setting, folder, forwards)
            if "missing" in results[setting] or not method.writes:
                continue
            if options.keep:
                values = np.stack([method.read(workload, setting, folder, n) for n in range(workload.layers)])
                np.save(options.reference / f"{setting}.npy", values.astype(np.float16))
            elif options.reference:
                worst, layers = compared(method, workload, setting, folder, options.reference)
                results[setting] |= {"difference": worst, "compared": layers}
            if options.into is None:
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch)
    options.result.write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(main())
