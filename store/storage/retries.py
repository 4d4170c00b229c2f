"""Repeated requests to servers whose client library does not repeat them."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds before the second attempt; every further wait is twice as long
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that another attempt may change


def with_retries(request: Callable[[], T]) -> T:
    """Call a function until it does not fail for a passing reason, up to `ATTEMPTS` times with growing pauses.

    Passing reasons are a lost connection, a cut or late answer, and the HTTP statuses of `TRANSIENT`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except Exception as error:  # clients raise their own errors, too
            if attempt + 1 == ATTEMPTS or not is_transient(error):
                raise
            time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25))
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed.

    >>> is_transient(ConnectionResetError()), is_transient(TimeoutError()), is_transient(FileNotFoundError())
    (True, True, False)
    """
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status in TRANSIENT
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    aiohttp = sys.modules.get("aiohttp")  # only its file system raises its errors
    return aiohttp is not None and isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError)
