"""One way of recording in a process of its own: load, warm up, then every setting once, measured.

    python -m benchmarks.peers.worker MODULE CLASS FOLDER RESULT [--settings last,two,all] [--reference FOLDER]
        [--kill N]

Writes JSON to RESULT: by setting either {wall, cpu, peak, loaded, bytes, files, forwards, difference, compared} or
{missing}. Peak memory counts from the loaded model on: the kernel's high-water mark is set back before each run. With
--keep the first values are written to the folder of the reference; with --kill N the process kills itself before the
N-th forward pass.
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
from benchmarks.peers.method import CannotError, Way
from benchmarks.peers.workload import Work


def resident() -> float:
    """MiB of this process in memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 2**10
    raise OSError("/proc/self/status has no VmRSS")


def reset_peak() -> None:
    """Let the high-water mark begin anew (Linux; elsewhere it is that of the whole process)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def compared(way: Way, work: Work, setting: str, folder: Path, reference: Path) -> tuple[float, int]:
    """(largest absolute difference to the reference, layers compared); both float16."""
    worst, count = 0.0, work.layers - way.layers_missing
    for layer in range(count):
        wanted = np.load(reference / f"{setting}.npy", mmap_mode="r")[layer]
        try:
            found = way.read(work, setting, folder, layer)
        except CannotError:  # a layer that was not run
            count -= 1
            continue
        if found.shape != wanted.shape:
            raise ValueError(f"{way.name} gives values of shape {found.shape}, not {wanted.shape}")
        worst = max(worst, float(np.abs(found.astype(np.float32) - wanted.astype(np.float32)).max()))
    return worst, count


def measure(way: Way, work: Work, setting: str, folder: Path, forwards: Any) -> dict[str, Any]:
    """One run from the model in memory to the disk."""
    os.sync()
    reset_peak()
    loaded, before = resident(), next(forwards)
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        way.run(work, setting, folder)
    except CannotError as error:
        return {"missing": str(error)}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    files = [p for p in folder.rglob("*") if p.is_file()]
    factor = getattr(way, "factor", 1.0)
    return {
        "wall": wall * factor,
        "cpu": cpu * factor,
        "peak": peak_memory_mib(),
        "loaded": loaded,
        "bytes": sum(p.stat().st_size for p in files) * getattr(way, "copies", 1.0),
        "files": len(files),
        "forwards": next(forwards) - before - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--work", default="main")
    parser.add_argument("--settings", default="last,two,all")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--kill", type=int)
    parser.add_argument("--into", type=Path, help="keep the files here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    module = importlib.import_module(f"benchmarks.peers.{options.module}")
    way: Way = next(kind for kind in module.WAYS if kind.__name__ == options.name)()
    work = Work(options.folder / options.work)
    forwards = itertools.count()
    entry = way.load(work)

    def count(*_: Any) -> None:
        if next(forwards) == options.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    scratch = Path(tempfile.mkdtemp(prefix="way-", dir=options.folder))
    found: dict[str, Any] = {}
    try:
        if options.kill is None and options.into is None:
            for setting in options.settings.split(","):  # whatever is imported and made on first use
                (scratch / f"warm-{setting}").mkdir()
                try:
                    way.run(Work(options.folder / "warm"), setting, scratch / f"warm-{setting}")
                except CannotError:
                    continue
        entry.register_forward_pre_hook(count)
        for setting in options.settings.split(","):
            folder = options.into or scratch / setting
            folder.mkdir(exist_ok=True)
            found[setting] = measure(way, work, setting, folder, forwards)
            if "missing" in found[setting] or not way.writes:
                continue
            if options.keep:
                values = np.stack([way.read(work, setting, folder, n) for n in range(work.layers)])
                np.save(options.reference / f"{setting}.npy", values.astype(np.float16))
            elif options.reference:
                worst, layers = compared(way, work, setting, folder, options.reference)
                found[setting] |= {"difference": worst, "compared": layers}
            if options.into is None:
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch)
    options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
