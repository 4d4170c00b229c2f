"""How many workers run at once, and one BLAS thread in each of them.

BLAS libraries set their number of threads for the whole process, so that
overlapping workers must share one limit: the first one in sets it, the last
one out restores it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from threadpoolctl import ThreadpoolController

from stratalens.store.threads import cores

_lock = threading.Lock()


_inside = 0


_limiter: Any = None


_libraries: list[Any] = [0, None]


@contextmanager
def blas_threads(limit: int = 1) -> Iterator[None]:
    """Hold BLAS to `limit` threads while inside; safe for overlapping use by many threads.

    The limit of the first one in holds until the last one is out.
    """
    global _inside, _limiter
    with _lock:
        if _inside == 0:
            if _libraries[0] != len(sys.modules):  # libraries may have been loaded since the last look, which costs
                _libraries[:] = len(sys.modules), ThreadpoolController()
            _limiter = _libraries[1].limit(limits=limit, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limiter.restore_original_limits()
                _limiter = None


def worker_count(workers: int | None, tasks: int) -> int:
    """Local workers: what is asked for, else dask's `num_workers`, else one a core; never more than tasks."""
    wanted = workers or dask.config.get("num_workers", None) or cores()
    return max(1, min(int(wanted), tasks))
