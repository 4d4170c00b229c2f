"""Threads that help to read, and scratch memory of each thread."""

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


NETWORK_THREADS = 16  # parallel reads of a high-latency storage, whose threads wait and need no processor


_scratch = threading.local()


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ReaderPool:
    """Helper threads shared by all readers of a process.

    All readers together use at most one thread for each core: a single reader gets helpers, while
    several readers (a sweep's, dask's) each run in their own thread. A child of multiprocessing (a worker of
    dask or of torch's DataLoader) has siblings on the other cores and gets no helpers.

    The pool starts no thread before it is needed. A forked child starts with an empty pool: threads do not
    survive a fork, and another thread may have held the lock at that moment.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.active_readers = 0

    def run(self, tasks: Sequence[Task], *, high_latency: bool = False) -> None:
        """Run tasks in the calling thread and in helper threads.

        Args:
            tasks: functions without arguments.
            high_latency: use up to `NETWORK_THREADS` threads, because reads wait for a network.

        Raises:
            BaseException: the first error of a task. No task runs any more when it is raised, so no thread
                still writes into the caller's memory.
        """
        with self._lock:
            self.active_readers += 1
            free = cores() - self.active_readers if multiprocessing.parent_process() is None else 0
            if high_latency:
                free = NETWORK_THREADS - 1
            helpers = max(0, min(free, len(tasks) - 1))
            if helpers and self._executor is None:
                workers = max(cores(), NETWORK_THREADS)
                self._executor = ThreadPoolExecutor(workers, thread_name_prefix="stratalens-read")
            executor = self._executor
        queue = deque(tasks)
        jobs = [executor.submit(_drain, queue) for _ in range(helpers)] if executor is not None else []
        try:
            _drain(queue)
            for job in jobs:
                if not job.cancel():
                    job.result()
        finally:
            for job in jobs:  # after an error: wait for tasks that still write into the caller's memory
                if not job.cancel():
                    job.exception()
            with self._lock:
                self.active_readers -= 1


reader_pool = ReaderPool()


def run_tasks(tasks: Sequence[Task], *, high_latency: bool = False) -> None:
    """Run tasks in the calling thread and in helpers of the `reader_pool` of this process."""
    reader_pool.run(tasks, high_latency=high_latency)


def scratch(nbytes: int) -> NDArray[np.uint8]:
    """Return memory of the calling thread, valid until its next call."""
    memory: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if memory is None or memory.size < nbytes:
        memory = _scratch.memory = np.empty(nbytes, dtype=np.uint8)
    return memory[:nbytes]


def _drain(queue: deque[Task]) -> None:
    while True:
        try:
            task = queue.popleft()
        except IndexError:
            return
        try:
            task()
        except BaseException:
            queue.clear()
            raise
