"""Number of local workers, and the limit on BLAS threads of this process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import threadpoolctl
from threadpoolctl import ThreadpoolController

from stratalens.store.threads import cores


class BlasLimit:
    """Limit on the BLAS threads of this process, for blocks of code that overlap in several threads.

    BLAS libraries have one number of threads for the whole process. While blocks overlap, the smallest limit is in
    force, for all threads of the process. The last block to end restores the numbers from before the first one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: list[int] = []  # of the blocks that are running
        self._in_force: int | None = None
        self._original: Any = None  # restores the numbers of threads
        self._libraries: Any = None
        self._modules = 0

    @contextmanager
    def at_most(self, threads: int | None = None) -> Iterator[None]:
        """Limit BLAS to `threads` threads while the block runs.

        Args:
            threads: the limit; None = the limit in force, or one thread without one.
        """
        with self._lock:
            limit = threads or min(self._limits, default=1)
            self._limits.append(limit)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._limits.remove(limit)
                self._set()

    def _set(self) -> None:
        limit = min(self._limits, default=None)
        if limit == self._in_force:
            return
        self._in_force = limit
        # New modules may have loaded a BLAS library. Looking for libraries takes 3 to 8 ms.
        if self._original is None and self._modules != len(sys.modules):
            self._modules, self._libraries = len(sys.modules), ThreadpoolController()
        _release_control()
        if limit is None:
            self._original.restore_original_limits()
            self._original = None
        else:
            limiter = self._libraries.limit(limits=limit, user_api="blas")
            self._original = self._original or limiter
        _release_control()


def _release_control() -> None:
    """Allow every thread to set the limit next.

    From threadpoolctl 3.8 on, the first thread that sets a limit controls OpenBLAS, and the calls of all other threads
    have no effect. The first and the last of several overlapping blocks are often in different threads.
    """
    release = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)


blas_limit = BlasLimit()


def worker_count(workers: int | None, tasks: int) -> int:
    """Number of local workers: `workers`, else dask's `num_workers`, else one a core; at most one a task."""
    wanted = workers or dask.config.get("num_workers", None) or cores()
    return max(1, min(int(wanted), tasks))
