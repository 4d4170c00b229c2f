"""Rows of different lengths in one array: an array of its own for each row takes many times as much as its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class PackedRows(Sequence[Ids]):
    """Rows one behind the other; each is a view.

    >>> rows = PackedRows([np.array([5, 6, 7]), np.array([8])], [2, 1, 1])
    >>> len(rows), rows[1].tolist(), [len(row) for row in rows]
    (3, [7], [2, 1, 1])
    """

    def __init__(self, parts: Sequence[Ids], lengths: Sequence[int]) -> None:
        """Args:
        parts: the items of all rows, shape (items, ...), in as many arrays as they came in.
        lengths: items of each row.
        """
        self._values: Ids = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        self._starts: Ids = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> Ids: ...
    @overload
    def __getitem__(self, row: slice) -> list[Ids]: ...
    def __getitem__(self, row: int | slice) -> Ids | list[Ids]:
        if isinstance(row, slice):
            return [self[place] for place in range(len(self))[row]]
        place = range(len(self))[row]
        return self._values[self._starts[place] : self._starts[place + 1]]
