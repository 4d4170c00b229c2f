"""Rows of different lengths in one array, such as the token ids of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class RaggedArray(Sequence[Ids]):
    """Rows of different lengths in one array of integers.

    Args:
        chunks: integer arrays of shape (items, ...) that hold the items of all rows in order. Their dtype stays, which
            may take less memory than the int64 of a row.
        lengths: items of each row.

    Example:
        >>> rows = RaggedArray([np.array([5, 6, 7]), np.array([8])], [2, 1, 1])
        >>> len(rows), rows[1].tolist(), [len(row) for row in rows]
        (3, [7], [2, 1, 1])
    """

    def __init__(self, chunks: Sequence[NDArray[Any]], lengths: Sequence[int]) -> None:
        self._values: NDArray[Any] = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int64)
        self._starts: Ids = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> Ids: ...
    @overload
    def __getitem__(self, row: slice) -> list[Ids]: ...
    def __getitem__(self, row: int | slice) -> Ids | list[Ids]:
        if isinstance(row, slice):
            return [self[index] for index in range(len(self))[row]]
        index = range(len(self))[row]
        return self._values[self._starts[index] : self._starts[index + 1]].astype(np.int64, copy=False)

    def first_row_above(self, limit: int) -> tuple[int, int] | None:
        """Find the first item above a limit: its row and its value, None if there is none.

        Example:
            >>> RaggedArray([np.array([5, 6, 7, 8])], [2, 1, 1]).first_row_above(6)
            (1, 7)
        """
        places = np.flatnonzero(self._values > limit)
        if not len(places):
            return None
        row = int(np.searchsorted(self._starts, places[0], side="right")) - 1
        return row, int(self._values[places[0]])

    def with_first(self, item: Any) -> RaggedArray:
        """Return rows with an item in front of each.

        >>> [row.tolist() for row in RaggedArray([np.array([5, 6, 7])], [2, 1]).with_first(1)]
        [[1, 5, 6], [1, 7]]
        """
        lengths = np.diff(self._starts) + 1
        return RaggedArray([np.insert(self._values, self._starts[:-1], item, axis=0)], lengths.tolist())

    def without(self, index: int) -> RaggedArray:
        """Return rows without the item at an index that every row has.

        >>> [row.tolist() for row in RaggedArray([np.array([5, 6, 7, 8])], [2, 2]).without(0)]
        [[6], [8]]
        """
        lengths = np.diff(self._starts) - 1
        return RaggedArray([np.delete(self._values, self._starts[:-1] + index, axis=0)], lengths.tolist())

    def rows_with(self, items: Sequence[int], start: int) -> Ids:
        """Return the rows that have these items from index `start` on; a negative start counts from the end.

        >>> RaggedArray([np.array([1, 1, 7, 1, 8])], [3, 2]).rows_with([1], 1).tolist()
        [0]
        """
        lengths = np.diff(self._starts)
        starts = np.where(start < 0, lengths, 0) + start
        fits = np.flatnonzero((starts >= 0) & (starts + len(items) <= lengths))
        places = (self._starts[:-1] + starts)[fits, None] + np.arange(len(items))
        rows: Ids = fits[(self._values[places] == np.asarray(items)).all(axis=1)]
        return rows
