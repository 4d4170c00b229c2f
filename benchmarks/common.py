"""What every benchmark prints and how it measures: the machine, the versions, alternating runs, medians and spread.

Import it from a script in this folder: `from common import alternate, describe, table`.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: wall clock, and CPU time of the whole process (user + system, all threads)."""

    wall: float
    cpu: float


def describe(*packages: str) -> str:
    """One line on the machine and the versions that a number belongs to."""
    versions = []
    for package in ("stratalens", "numpy", *packages):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return (
        f"# {_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}; {', '.join(versions)}; load {os.getloadavg()[0]:.1f}"
    )


def time_once(function: Callable[[], object]) -> Timing:
    """Run once; wall and CPU seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 1,
    before: Callable[[], object] | None = None,
) -> dict[str, list[Timing]]:
    """Run the functions in turn, A B C A B C ..., so that a drift of the machine meets all of them alike.

    `before` runs before every timed call, untimed (to drop a file, say).
    """
    timings: dict[str, list[Timing]] = {name: [] for name in functions}
    for turn in range(-warmup, rounds):
        for name, function in functions.items():
            if before is not None:
                before()
            timing = time_once(function)
            if turn >= 0:
                timings[name].append(timing)
    return timings


def table(timings: Mapping[str, Sequence[Timing]], baseline: str, extra: Mapping[str, str] | None = None) -> str:
    """Median (min .. max) seconds of each, and the median of its ratios to `baseline`, taken round by round."""
    lines = [f"{'':32s} {'wall s (min .. max)':>28s} {'cpu s':>9s} {'wall ratio (min .. max)':>28s} {'cpu ratio':>10s}"]
    for name, runs in timings.items():
        wall = [run.wall for run in runs]
        pairs = list(zip(runs, timings[baseline], strict=True))
        ratio = [run.wall / base.wall for run, base in pairs]
        cpu_ratio = [run.cpu / base.cpu for run, base in pairs if base.cpu > 0]
        lines.append(
            f"{name:32s} {statistics.median(wall):10.3f} ({min(wall):.3f} .. {max(wall):.3f})".ljust(62)
            + f"{statistics.median(run.cpu for run in runs):9.3f}"
            + f"{statistics.median(ratio):12.3f} ({min(ratio):.3f} .. {max(ratio):.3f})".rjust(29)
            + (f"{statistics.median(cpu_ratio):11.3f}" if cpu_ratio else f"{'':>11s}")
            + (f"   {extra[name]}" if extra and name in extra else "")
        )
    return "\n".join(lines)


def peak_memory_mib() -> float:
    """Largest resident set of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child process starts with what its parent had
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
