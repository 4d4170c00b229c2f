"""Describe the machine and the versions, time functions in alternating runs, and measure memory."""

from __future__ import annotations

import importlib.util
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Child processes (`python -m benchmarks.X`) find the package from any working directory.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *(p for p in [os.environ.get("PYTHONPATH", "")] if p and str(ROOT) not in p.split(os.pathsep))]
)


def module_of(script: str | Path) -> str:
    """Return the module name of a script of this folder, for `python -m`.

    >>> module_of("benchmarks/store/read.py")
    'benchmarks.store.read'
    """
    return ".".join(("benchmarks", Path(script).parent.name, Path(script).stem))


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: wall clock, and CPU time of the whole process (user + system, all threads)."""

    wall: float
    cpu: float


def versions_of(*packages: str) -> dict[str, str]:
    """Return the installed version of each package, or "not installed"."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def machine(folders: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, system, Python, load and file systems of the folders."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _processor(),
        "cores": usable,
        "memory_gib": round(_memory_gib(), 1),
        "os": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "folders": [filesystem(f) for f in folders],
    }


def describe(*packages: str) -> str:
    """Return one line with the machine and the versions."""
    known = machine()
    versions = ", ".join(
        f"{name} {versions}" for name, versions in versions_of("stratalens", "numpy", *packages).items()
    )
    return (
        f"# {known['cpu']}, {known['cores']} cores, {known['memory_gib']:.0f} GiB, {known['os']}, "
        f"Python {known['python']}; {versions}; load {known['load']:.1f}"
    )


def filesystem(folder: str | Path) -> dict[str, str]:
    """Return the type of a folder's file system ("tmpfs", "ext4") and its kind: memory or disk."""
    best, kind = "", "unknown"
    mounts = Path("/proc/mounts")
    if mounts.exists():
        place = Path(folder).resolve()
        for line in mounts.read_text().splitlines():
            point, type_ = line.split()[1:3]
            if place.is_relative_to(point) and len(point) >= len(best):
                best, kind = point, type_
    return {"filesystem": kind, "kind": "memory" if kind in ("tmpfs", "ramfs") else "disk"}


def scratch() -> str:
    """Return a folder in memory (Linux), or else the system's folder for temporary files."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()


def is_installed(module: str) -> bool:
    """Return whether a peer can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def drop_cache(folder: str | Path) -> None:
    """Flush a folder or a file and drop it from the page cache (Linux).

    Mapped pages stay in memory, so drop no file while a memmap of it is open. A virtual machine's host may still cache
    the file: "cold" means that this system has to read from its disk.
    """
    top = Path(folder)
    for path in [top] if top.is_file() else top.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def fill_cache(folders: Iterable[str | Path]) -> None:
    """Read every file in the folders once, to fill the page cache."""
    for path in {path for folder in folders for path in Path(folder).rglob("*") if path.is_file()}:
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass


def time_once(function: Callable[[], object]) -> Timing:
    """Run once and return wall and CPU seconds; a Timing that the function returns takes precedence."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    timing = Timing(time.perf_counter() - wall, time.process_time() - cpu)
    return result if isinstance(result, Timing) else timing


def alternate(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 1,
    before: Callable[[], object] | None = None,
    shuffle: bool = False,
) -> dict[str, list[Timing]]:
    """Run the functions in turn, A B C A B C ..., so that a drift of the machine affects all equally.

    Args:
        functions: Functions by name.
        rounds: Number of timed rounds.
        warmup: Number of rounds before them that are not timed.
        before: Function that runs before every timed call, untimed, for example to drop a file.
        shuffle: Use a different order in each round (the same orders in every run), so that no function always
            follows the same other one.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in functions}
    dice = random.Random(0)
    for turn in range(-warmup, rounds):
        order = list(functions.items())
        if shuffle:
            dice.shuffle(order)
        for name, function in order:
            if before is not None:
                before()
            timing = time_once(function)
            if turn >= 0:
                timings[name].append(timing)
        if sys.stderr.isatty():
            print(f"\r  round {turn + 1} of {rounds} ", end="\n" if turn + 1 == rounds else "", file=sys.stderr)
    return timings


def peak_memory_mib() -> float:
    """Return the largest resident set of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child process starts at the value of its parent
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
