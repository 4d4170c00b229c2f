"""Threads of the reading side: helpers on one shared pool, and memory that a thread uses again."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Task = Callable[[], None]


NETWORK_THREADS = 16  # reads at a time where they wait for a network rather than for the processor


_pool: ThreadPoolExecutor | None = None


_reading = 0


_lock = threading.Lock()


_scratch = threading.local()


def _after_fork() -> None:
    global _pool, _reading, _lock
    _pool, _reading, _lock = None, 0, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _drain(tasks: deque[Task]) -> None:
    while True:
        try:
            task = tasks.popleft()
        except IndexError:
            return
        try:
            task()
        except BaseException:
            tasks.clear()
            raise


def run_tasks(tasks: Sequence[Task], *, high_latency: bool = False) -> None:
    """Run tasks in the calling thread, with helpers where processors are free.

    All callers together have one thread for each core at most: several threads that read
    (a sweep's, dask's) read each on its own, one alone is helped. A child of multiprocessing
    (a worker of dask or of torch's DataLoader) has siblings that use the other cores, and gets
    no help. Reads that wait for a network (`high_latency`) get `NETWORK_THREADS` threads.
    """
    global _pool, _reading
    with _lock:
        _reading += 1
        free = cores() - _reading if multiprocessing.parent_process() is None else 0
        if high_latency:
            free = NETWORK_THREADS - 1
        helpers = max(0, min(free, len(tasks) - 1))
        if helpers and _pool is None:
            _pool = ThreadPoolExecutor(max(cores(), NETWORK_THREADS), thread_name_prefix="stratalens-read")
        pool = _pool
    left = deque(tasks)
    jobs = [pool.submit(_drain, left) for _ in range(helpers)] if pool is not None else []
    try:
        _drain(left)
        for job in jobs:
            if not job.cancel():
                job.result()
    finally:
        for job in jobs:  # after an error: nobody writes into the caller's memory any more
            if not job.cancel():
                job.exception()
        with _lock:
            _reading -= 1


def scratch(nbytes: int) -> NDArray[np.uint8]:
    """Memory of this thread that is good until its next call."""
    memory: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if memory is None or memory.size < nbytes:
        memory = _scratch.memory = np.empty(nbytes, dtype=np.uint8)
    return memory[:nbytes]
