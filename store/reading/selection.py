"""A part of a lazy array: which rows, layers, ... of it, not read yet.

A selection of a selection is one again, so that whatever was narrowed reads just what is left.
`stored_selection` finds the one that an xarray variable stands for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core import indexing

from stratalens.store.reading.indexing import Selection, as_slice
from stratalens.store.reading.lazy_arrays import LazyArray, VariableArray, chunk_sizes


class SelectedArray(LazyArray):
    """Orthogonal selection of a lazy array; dims of which a number was chosen are not there any more.

    Parameters
    ----------
    source
        The whole array.
    selections
        One for each of its dims; None takes all.
    dropped
        Its dims that are taken away; the selection of each is of one index.
    """

    def __init__(
        self, source: LazyArray, selections: Sequence[Selection] | None = None, dropped: Sequence[int] = ()
    ) -> None:
        self.source = source
        self.selections = [slice(0, size) for size in source.shape] if selections is None else list(selections)
        self.dropped = tuple(dropped)
        self.kept = tuple(axis for axis in range(source.ndim) if axis not in self.dropped)
        sizes = [_count(chosen, size) for chosen, size in zip(self.selections, source.shape, strict=True)]
        self.shape = tuple(sizes[axis] for axis in self.kept)
        self.dtype = source.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it is all of the source, as it is."""
        return not self.dropped and all(
            isinstance(chosen, slice) and chosen.indices(size) == (0, size, 1)
            for chosen, size in zip(self.selections, self.source.shape, strict=True)
        )

    @property
    def high_latency(self) -> bool:
        """Whether a read waits for a network."""
        return self.source.high_latency

    @property
    def in_order(self) -> bool:
        """Whether every dim is in the order of the source."""
        return all(isinstance(chosen, slice) or bool((np.diff(chosen) >= 0).all()) for chosen in self.selections)

    def narrow(self, key: tuple[Any, ...]) -> SelectedArray:
        """The part of this part that an orthogonal key stands for; nothing is read."""
        selections, numbers = self.normalised(key)
        return SelectedArray(
            self.source, self._inside(selections), (*self.dropped, *(self.kept[axis] for axis in numbers))
        )

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Values of an orthogonal selection."""
        values = self.source.select(self._inside(selections))
        return values.squeeze(axis=self.dropped) if self.dropped else values

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Into memory of their shape and dtype."""
        self.source.fill(np.expand_dims(out, tuple(sorted(self.dropped))), self._inside(selections))

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """The source's parts as far as they lie in the selection; of scattered indices, as many as in a part of it."""
        whole = self.source.grid(nbytes)
        return tuple(_within(self.selections[axis], self.source.shape[axis], whole[axis]) for axis in self.kept)

    def bits(self) -> SelectedArray | None:
        """The same part of the stored bits, where what is read are bfloat16 values widened to float32."""
        source = self.source
        if not isinstance(source, VariableArray) or not source.reader.decode:
            return None
        return SelectedArray(source.bits(), self.selections, self.dropped)

    def _inside(self, selections: Sequence[Selection]) -> list[Selection]:
        """Selections of the source for selections of this."""
        found = list(self.selections)
        for axis, chosen in zip(self.kept, selections, strict=True):
            held, size = found[axis], self.source.shape[axis]
            if isinstance(held, slice):
                rows = range(*held.indices(size))
                if isinstance(chosen, slice):
                    part = rows[chosen]
                    found[axis] = slice(part.start, part.stop, part.step)
                else:
                    found[axis] = as_slice(chosen * rows.step + rows.start)
            else:
                found[axis] = as_slice(held[chosen])
        return found


def _count(chosen: Selection, size: int) -> int:
    return len(range(*chosen.indices(size))) if isinstance(chosen, slice) else len(chosen)


def _within(chosen: Selection, size: int, parts: Sequence[int]) -> tuple[int, ...]:
    """Sizes of what a selection has of each part of a dim."""
    edges = np.cumsum([0, *parts])
    if isinstance(chosen, slice):
        start, stop, step = chosen.indices(size)
        counts = np.diff(np.clip(-((start - edges) // step), 0, len(range(start, stop, step))))
    elif bool((np.diff(chosen) >= 0).all()):
        counts = np.diff(np.searchsorted(chosen, edges))
    else:
        return chunk_sizes(len(chosen), max(parts, default=1))
    return tuple(counts[counts > 0].tolist()) or (0,)


def stored_selection(variable: xr.Variable) -> SelectedArray | None:
    """What a variable of `open_store` reads from, as long as it was only narrowed; None for any other."""
    data: Any = variable._data
    while isinstance(data, indexing.CopyOnWriteArray | indexing.MemoryCachedArray):
        data = data.array
    found = getattr(data, "selected", None)  # of our dask arrays
    if isinstance(data, indexing.LazilyIndexedArray) and isinstance(data.array, LazyArray):
        found = SelectedArray(data.array).narrow(data.key.tuple)
    return found if isinstance(found, SelectedArray) and found.shape == variable.shape else None
