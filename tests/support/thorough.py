"""Two sizes of the suite: `make test` runs a part of each long repetition, `make test-all` runs all of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")

THOROUGH = os.environ.get("STRATALENS_THOROUGH") == "1"

thorough = pytest.mark.skipif(not THOROUGH, reason="`make test-all` runs it: a longer form of a test that runs here")


def some(items: Sequence[T], step: int) -> Sequence[T]:
    """Return every `step`-th item and the last one; all items in the thorough suite.

    Example:
        >>> some(range(8), 3)
        [0, 3, 6, 7]
    """
    if THOROUGH:
        return items
    return [*items[: len(items) - 1 : step], items[-1]]
