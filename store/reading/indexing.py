"""Few rows of a block: which ranges of rows are read, and which of what was read is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Selection = slice | NDArray[np.intp]


@dataclass(frozen=True)
class RowRanges:
    """Ranges (start, stop) of rows that are read one behind the other, and the selection among what was read."""

    spans: list[tuple[int, int]]
    picks: Selection

    @cached_property
    def count(self) -> int:
        """Rows that are read."""
        return sum(stop - start for start, stop in self.spans)


def row_ranges(rows: Selection, block_size: int, gap: int) -> RowRanges | None:
    """The ranges for a selection of rows, or None where reading the whole block is no more work.

    Rows with at most `gap` others between them are read in one go.

    >>> row_ranges(np.array([9, 2, 3, 9]), 64, gap=1)
    FewRows(spans=[(2, 4), (9, 10)], picks=array([2, 0, 1, 2]))
    >>> row_ranges(np.array([2, 9]), 64, gap=1)
    FewRows(spans=[(2, 3), (9, 10)], picks=slice(0, 2, None))
    >>> row_ranges(slice(0, 60), 64, gap=1) is None
    True
    """
    half = block_size // 2
    if isinstance(rows, slice):
        return RowRanges([(rows.start, rows.stop)], slice(None)) if rows.stop - rows.start <= half else None
    wanted, places = np.unique(rows, return_inverse=True)
    apart = np.flatnonzero(np.diff(wanted) > gap + 1) + 1
    groups = np.split(wanted, apart)
    spans = [(int(group[0]), int(group[-1]) + 1) for group in groups]
    starts = np.cumsum([0, *(stop - start for start, stop in spans[:-1])])
    found = np.concatenate([group - group[0] + start for group, start in zip(groups, starts, strict=True)])
    few = RowRanges(spans, as_slice(found[places]))
    return few if few.count <= half else None


def as_slice(index: NDArray[np.intp]) -> Selection:
    """The same as a slice where the indices follow each other."""
    dense = index.size > 0 and bool((np.diff(index) == 1).all())
    return slice(int(index[0]), int(index[-1]) + 1) if dense else index
