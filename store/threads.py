"""Threads of the reading side: one shared pool, and memory that a thread uses again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

_pool: ThreadPoolExecutor | None = None
_scratch = threading.local()


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(tasks: Sequence[Callable[[], None]], *, parallel: bool) -> None:
    """Run tasks on one shared pool with a thread for each core, or one after the other."""
    global _pool
    if not parallel or len(tasks) < 2 or cores() < 2:
        for task in tasks:
            task()
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(cores(), thread_name_prefix="stratalens-read")
    for future in [_pool.submit(task) for task in tasks]:
        future.result()


def scratch(nbytes: int) -> NDArray[np.uint8]:
    """Memory of this thread that is good until its next call."""
    memory: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if memory is None or memory.size < nbytes:
        memory = _scratch.memory = np.empty(nbytes, dtype=np.uint8)
    return memory[:nbytes]
