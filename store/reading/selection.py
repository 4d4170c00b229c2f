"""Orthogonal selections of lazy arrays that are not read yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from stratalens.store.compat import lazy_selection
from stratalens.store.reading.indexing import Selection, as_slice
from stratalens.store.reading.lazy_arrays import LazyArray, VariableArray, chunk_sizes


class SelectedArray(LazyArray):
    """Orthogonal selection of a lazy array.

    A selection of it is again a SelectedArray, and reads only its own values.

    Args:
        source: the whole array.
        selections: one for each dim of the source; None selects all.
        dropped: axes of the source that the selection does not have; each has a selection of one index.
    """

    def __init__(
        self, source: LazyArray, selections: Sequence[Selection] | None = None, dropped: Sequence[int] = ()
    ) -> None:
        self.source = source
        self.selections = [slice(0, size) for size in source.shape] if selections is None else list(selections)
        self.dropped = tuple(dropped)
        self.axes = tuple(axis for axis in range(source.ndim) if axis not in self.dropped)
        sizes = [_count(selection, size) for selection, size in zip(self.selections, source.shape, strict=True)]
        self.shape = tuple(sizes[axis] for axis in self.axes)
        self.dtype = source.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the selected values."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether the selection is the whole source."""
        return not self.dropped and all(
            isinstance(selection, slice) and selection.indices(size) == (0, size, 1)
            for selection, size in zip(self.selections, self.source.shape, strict=True)
        )

    @property
    def high_latency(self) -> bool:
        """Whether reads wait for a network."""
        return self.source.high_latency

    @property
    def in_order(self) -> bool:
        """Whether every dim has the order of the source."""
        return all(
            isinstance(selection, slice) or bool((np.diff(selection) >= 0).all()) for selection in self.selections
        )

    def narrow(self, key: tuple[Any, ...]) -> SelectedArray:
        """Return the selection for an orthogonal key, without reading it."""
        selections, scalars = self.normalize_key(key)
        dropped = (*self.dropped, *(self.axes[axis] for axis in scalars))
        return SelectedArray(self.source, self._in_source(selections), dropped)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the values of an orthogonal selection."""
        values = self.source.select(self._in_source(selections))
        return values.squeeze(axis=self.dropped) if self.dropped else values

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Write the values of an orthogonal selection into an array.

        The array has their shape and dtype.
        """
        self.source.fill(np.expand_dims(out, tuple(sorted(self.dropped))), self._in_source(selections))

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Return the chunks of the source, cut to the selection.

        Unordered indices get chunks of the same size.
        """
        source_grid = self.source.grid(nbytes)
        return tuple(
            _chunks_within(self.selections[axis], self.source.shape[axis], source_grid[axis]) for axis in self.axes
        )

    def bits(self) -> SelectedArray | None:
        """Return the same selection of stored bfloat16 bits.

        The result is None if the source does not widen bfloat16 to float32.
        """
        source = self.source
        if not isinstance(source, VariableArray) or not source.reader.decode:
            return None
        return SelectedArray(source.bits(), self.selections, self.dropped)

    def _in_source(self, selections: Sequence[Selection]) -> list[Selection]:
        """Return the selections of the source for selections of this array."""
        combined = list(self.selections)
        for axis, selection in zip(self.axes, selections, strict=True):
            outer = combined[axis]
            if not isinstance(outer, slice):
                combined[axis] = as_slice(outer[selection])
                continue
            rows = range(*outer.indices(self.source.shape[axis]))
            if isinstance(selection, slice):
                inner = rows[selection]
                combined[axis] = slice(inner.start, inner.stop, inner.step)
            else:
                combined[axis] = as_slice(selection * rows.step + rows.start)
        return combined


def stored_selection(variable: xr.Variable) -> SelectedArray | None:
    """Return the selection that a variable of `open_store` reads.

    The result is None if the variable was not only narrowed.
    """
    selected: Any = None
    if variable.chunks is not None:
        selected = getattr(variable.data, "selected", None)  # an attribute of our own dask arrays
    elif lazy := lazy_selection(variable):
        array, key = lazy
        selected = SelectedArray(array).narrow(key) if isinstance(array, LazyArray) else None
    return selected if isinstance(selected, SelectedArray) and selected.shape == variable.shape else None


def _count(selection: Selection, size: int) -> int:
    return len(range(*selection.indices(size))) if isinstance(selection, slice) else len(selection)


def _chunks_within(selection: Selection, size: int, chunks: Sequence[int]) -> tuple[int, ...]:
    """Return how many selected indices each chunk of a dim has, without empty chunks."""
    edges = np.cumsum([0, *chunks])
    if isinstance(selection, slice):
        start, stop, step = selection.indices(size)
        counts = np.diff(np.clip(-((start - edges) // step), 0, len(range(start, stop, step))))
    elif bool((np.diff(selection) >= 0).all()):
        counts = np.diff(np.searchsorted(selection, edges))
    else:
        return chunk_sizes(len(selection), max(chunks, default=1))
    return tuple(counts[counts > 0].tolist()) or (0,)
