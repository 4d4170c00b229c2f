"""Row ranges to read for a sparse selection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Selection = slice | NDArray[np.intp]


@dataclass(frozen=True)
class RowRanges:
    """Row ranges read into consecutive memory, and the selected rows in it.

    Attributes:
        spans: (start, stop) of each range.
        picks: index of the selected rows in the rows that were read.
    """

    spans: list[tuple[int, int]]
    picks: Selection

    @cached_property
    def count(self) -> int:
        """Number of rows that are read."""
        return sum(stop - start for start, stop in self.spans)


def row_ranges(rows: Selection, block_size: int, gap: int) -> RowRanges | None:
    """Return the row ranges of a selection.

    The result is None if reading the whole block is as fast.
    A range includes unselected rows where at most `gap` of them separate two selected rows.

    >>> row_ranges(np.array([9, 2, 3, 9]), 64, gap=1)
    RowRanges(spans=[(2, 4), (9, 10)], picks=array([2, 0, 1, 2]))
    >>> row_ranges(np.array([2, 9]), 64, gap=1)
    RowRanges(spans=[(2, 3), (9, 10)], picks=slice(0, 2, None))
    >>> row_ranges(slice(0, 60), 64, gap=1) is None
    True
    """
    half = block_size // 2
    if isinstance(rows, slice):
        return RowRanges([(rows.start, rows.stop)], slice(None)) if rows.stop - rows.start <= half else None
    unique, inverse = np.unique(rows, return_inverse=True)
    breaks = np.flatnonzero(np.diff(unique) > gap + 1) + 1
    groups = np.split(unique, breaks)
    spans = [(int(group[0]), int(group[-1]) + 1) for group in groups]
    offsets = np.cumsum([0, *(stop - start for start, stop in spans[:-1])])
    read_positions = [group - group[0] + offset for group, offset in zip(groups, offsets, strict=True)]
    ranges = RowRanges(spans, as_slice(np.concatenate(read_positions)[inverse]))
    return ranges if ranges.count <= half else None


def as_slice(index: NDArray[np.intp]) -> Selection:
    """Return consecutive indices as a slice, and any other index unchanged."""
    consecutive = index.size > 0 and bool((np.diff(index) == 1).all())
    return slice(int(index[0]), int(index[-1]) + 1) if consecutive else index
