"""Variables as dask arrays that stay close to the disk as long as they are only narrowed.

Dask's own arrays cut a selection out of chunks: few rows over all layers become a task for
each layer, and a result of one chunk is copied before it is given out. Here a selection is
an array of its own with chunks of its own, and few bytes are one chunk. As soon as anything
is computed from it, it is a dask array like any other.
"""

from __future__ import annotations

import sys
from typing import Any

import dask.array
import dask.array.core
import numpy as np
from dask.base import tokenize
from dask.callbacks import Callback

from stratalens.store.reading.lazy_arrays import LazyArray
from stratalens.store.reading.selection import SelectedArray

CHUNK_BYTES = 128 << 20  # several blocks, so that most slabs are one chunk


FEW_BYTES = 4 << 20  # one task, whatever it touches


_dask: Any = dask.array  # its functions have no types


_Array: Any = dask.array.core.Array


class StoredArray(_Array):  # type: ignore[misc]
    """A part of a stored variable as a dask array.

    Attributes
    ----------
    selected
        What it reads.
    variable
        Name of the whole variable, which nothing else has: made of the store's content.
    """

    selected: SelectedArray
    variable: str

    def __getitem__(self, index: Any) -> Any:
        """A part of this part where the index is orthogonal; else what dask makes of it."""
        key = index if isinstance(index, tuple) else (index,)
        lists = [part for part in key if not isinstance(part, slice | int | np.integer)]
        if len(lists) > 1 or len(key) > self.ndim or not all(_whole_numbers(part) for part in lists):
            return super().__getitem__(index)
        selected = self.selected.narrow((*key, *[slice(None)] * (self.ndim - len(key))))
        if selected.nbytes > FEW_BYTES and not selected.in_order:
            return super().__getitem__(index)
        return stored(selected, self.variable)

    def __array__(self, dtype: Any = None, copy: bool | None = None, **rest: Any) -> Any:
        """Few values are read right here: a scheduler would take many times as long as the reading."""
        if rest or copy is False or self.selected.nbytes > FEW_BYTES or _may_be_kept():
            return super().__array__(dtype=dtype, copy=copy, **rest)
        values = self.selected.select([slice(0, size) for size in self.selected.shape])
        return values if dtype is None else values.astype(dtype, copy=False)

    def __reduce__(self) -> Any:
        return stored, (self.selected, self.variable)

    def __dask_postcompute__(self) -> Any:
        return (super().__dask_postcompute__()[0] if _may_be_kept() else _finalised), ()


def stored(source: LazyArray, variable: str) -> Any:
    """A variable, or a part of one, as a dask array; `variable` is the name of the whole.

    The array is named after what it holds, so that cached results find it again in another process.
    """
    selected = source if isinstance(source, SelectedArray) else SelectedArray(source)
    if selected.whole:
        name, chunks = variable, selected.grid(CHUNK_BYTES)
    else:
        name = f"{variable.split('-')[0]}-{tokenize(variable, selected.selections, selected.dropped)}"
        few = selected.nbytes <= FEW_BYTES
        chunks = tuple((size,) for size in selected.shape) if few else selected.grid(CHUNK_BYTES)
    meta = np.empty((0,) * selected.ndim, selected.dtype)
    array = _dask.from_array(selected, chunks=chunks, name=name, meta=meta)
    if type(array) is not _Array:  # dask's query planning is switched on, or a plugin
        return array
    made = StoredArray(array.dask, name, array.chunks, meta=meta)
    made.selected, made.variable = selected, variable
    return made


def _whole_numbers(part: Any) -> bool:
    if not isinstance(part, list | np.ndarray):
        return False
    values = np.asarray(part)
    return values.ndim == 1 and values.dtype.kind in "iu"


def _may_be_kept() -> bool:
    """Whether others may hold a result: workers of a cluster, or callbacks (dask.cache)."""
    return bool(Callback.active) or default_dask_client() is not None


def default_dask_client() -> Any:
    """Return the active client of a dask cluster; None without one."""
    if "distributed" not in sys.modules:
        return None
    try:
        return sys.modules["distributed"].default_client()
    except ValueError:
        return None


def _finalised(results: Any) -> Any:
    """The values of all chunks; those of a single one as they are, since it was read for this call alone."""
    single = results
    while isinstance(single, list | tuple) and len(single) == 1:
        single = single[0]
    return single if isinstance(single, np.ndarray) else dask.array.core.finalize(results)  # type: ignore[no-untyped-call]
