"""Rates of the machine itself: matrix products, copies in memory, checksums and the disk; and a sampling profiler.

These functions measure NumPy and the operating system without our code. Other benchmarks compute floors and hours from
them.
"""

from __future__ import annotations

import collections
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.harness.measure import drop_cache, time_once
from stratalens.store.format.checksum import extend

CHUNK = 8 << 20


def best_of(work: Callable[[], object], turns: int = 5) -> float:
    """Return the median wall seconds of some turns, after one warm-up."""
    work()
    return statistics.median(time_once(work).wall for _ in range(turns))


def gemm(threads: int = 1, size: int = 1536) -> float:
    """Measure floating point operations a second of a product of float32 matrices."""
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    b, out = a.T.copy(), np.empty_like(a)
    with threadpool_limits(threads):
        return 2 * size**3 / best_of(lambda: np.matmul(a, b, out=out))


def copying(megabytes: int = 256) -> float:
    """Measure the bytes a second that one thread copies in memory."""
    a = np.ones(megabytes << 20, np.uint8)
    b = np.empty_like(a)
    return a.nbytes / best_of(lambda: np.copyto(b, a))


def checksumming() -> float:
    """Measure bytes a second of crc32c on one thread."""
    a = np.ones(32 << 20, np.uint8)
    return a.nbytes / best_of(lambda: extend(0, a))


def write_file(path: Path, data: np.ndarray, times: int = 1) -> None:
    """Write the bytes `times` times into a new file and wait for the disk."""
    view = data.reshape(-1).view(np.uint8)
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            for start in range(0, len(view), CHUNK):
                file.write(view[start : start + CHUNK].data)
        os.fsync(file.fileno())


def read_file(path: Path, count: int) -> np.ndarray:
    """Read the first `count` bytes of a file into new memory."""
    out = np.empty(count, np.uint8)
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < count and (got := file.readinto(out[done:].data)):
            done += got
    return out


def read_shared(pool: Executor, threads: int, path: Path, count: int) -> np.ndarray:
    """Read the same with the threads of a pool, each with its own range."""
    out = np.empty(count, np.uint8)
    edges = [count * n // threads for n in range(threads + 1)]

    def read_range(start: int, end: int) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end and (got := file.readinto(out[start:end].data)):
                start += got

    list(pool.map(read_range, edges[:-1], edges[1:]))
    return out


def disk(folder: Path, megabytes: int = 256) -> dict[str, float]:
    """Measure bytes a second of writing with fsync, and of reading outside and inside the page cache."""
    path = folder / "rates"
    data = np.random.default_rng(0).integers(0, 255, megabytes << 20, dtype=np.uint8)

    def cold() -> float:
        drop_cache(path)
        return time_once(lambda: read_file(path, data.nbytes)).wall

    written = best_of(lambda: write_file(path, data), 3)
    fresh = statistics.median(cold() for _ in range(3))
    cached = best_of(lambda: read_file(path, data.nbytes), 3)
    path.unlink()
    return {"write": data.nbytes / written, "cold": data.nbytes / fresh, "cached": data.nbytes / cached}


def profile(work: Callable[[], object], most: int = 4, interval: float = 0.002) -> str:
    """Sample where the threads of this process are while `work` runs: "file.py:function 41 %, ...".

    The samples exclude threads that wait for others (a lock, a queue, a selector). Time inside compiled code counts for
    the Python function that called it.
    """
    samples: collections.Counter[str] = collections.Counter()
    done = threading.Event()
    waiting = {"threading.py", "selectors.py", "queue.py", "thread.py", "_base.py", "rates.py", "connection.py"}
    waiting |= {"measure.py", "shutil.py"}  # frames around the timed work

    def watch() -> None:
        while not done.wait(interval):
            for frame in sys._current_frames().values():
                name = Path(frame.f_code.co_filename).name
                if name not in waiting:
                    samples[f"{name}:{frame.f_code.co_name}"] += 1

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    end = time.perf_counter() + 0.5
    try:
        work()
        while time.perf_counter() < end:  # short work gives too few samples
            work()
    finally:
        done.set()
        watcher.join()
    total = sum(samples.values()) or 1
    return ", ".join(f"{name} {count / total:.0%}" for name, count in samples.most_common(most))
