"""Cancellation of a running analysis from another thread.

Long loops of the analyses call `raise_if_cancelled`, which costs well under a microsecond where no one can cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_cancelled: ContextVar[Callable[[], bool] | None] = ContextVar("stratalens_cancelled", default=None)


class AnalysisCancelled(Exception):  # noqa: N818 - a request of the user, not an error
    """A running analysis was cancelled; finished slabs stay in the cache."""


@contextmanager
def cancel_when(cancelled: Callable[[], bool]) -> Iterator[None]:
    """Let `cancelled` end the analyses that run inside the block, also in the threads of a sweep.

    Args:
        cancelled: returns whether to stop; it is called often and must be fast.

    Example:
        >>> with cancel_when(lambda: True):
        ...     raise_if_cancelled()
        Traceback (most recent call last):
            ...
        stratalens.analyses.data.cancellation.AnalysisCancelled
    """
    token = _cancelled.set(cancelled)
    try:
        yield
    finally:
        _cancelled.reset(token)


def raise_if_cancelled() -> None:
    """Raise `AnalysisCancelled` if the analysis that runs in this context is cancelled."""
    cancelled = _cancelled.get()
    if cancelled is not None and cancelled():
        raise AnalysisCancelled
