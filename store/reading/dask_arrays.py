"""Stored variables as dask arrays whose selections stay selections of the files.

Dask selects from chunks: a few rows over all layers become one task a layer, and dask copies the result of a single
chunk. Here a selection is a new array with its own chunks, and a small one is a single chunk. Any computation on it
gives an ordinary dask array. Reading one row of 24 slabs takes 1.4 ms; with a plain dask array it takes 37 ms.
"""

# mypy: disable-error-code="no-untyped-call"
# The methods of dask.array.Array have no types.

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import dask.array
import numpy as np
from dask.base import tokenize

from stratalens.store.compat import has_dask_callbacks
from stratalens.store.reading.lazy_arrays import LazyArray
from stratalens.store.reading.selection import SelectedArray

CHUNK_BYTES = 128 << 20  # several blocks, so that most slabs are one chunk
FEW_BYTES = 4 << 20  # a selection of at most so many bytes is one task


class StoredArray(dask.array.Array):
    """Selection of a stored variable as a dask array.

    Attributes:
        selected: the selection that it reads.
        variable: name of the whole variable, derived from the content of the store and unique.
    """

    selected: SelectedArray
    variable: str

    def __getitem__(self, index: Any) -> Any:
        """Return a stored array for an orthogonal index, else dask's own result."""
        key = index if isinstance(index, tuple) else (index,)
        lists = [item for item in key if not isinstance(item, slice | int | np.integer)]
        if len(lists) > 1 or len(key) > self.ndim or not all(_is_integer_list(item) for item in lists):
            return super().__getitem__(index)
        selected = self.selected.narrow((*key, *[slice(None)] * (self.ndim - len(key))))
        if selected.nbytes > FEW_BYTES and not selected.in_order:
            return super().__getitem__(index)
        return dask_array(selected, self.variable)

    def __array__(self, dtype: Any = None, copy: bool | None = None, **options: Any) -> Any:
        """Read a small selection in this thread.

        A scheduler takes many times as long as the read.
        """
        if options or copy is False or self.selected.nbytes > FEW_BYTES or _results_are_shared():
            return super().__array__(dtype=dtype, copy=copy, **options)
        values = self.selected.select([slice(0, size) for size in self.selected.shape])
        return values if dtype is None else values.astype(dtype, copy=False)

    def __reduce__(self) -> Any:
        return dask_array, (self.selected, self.variable)

    def __dask_postcompute__(self) -> Any:
        """Return the function that joins the results without copying a single one."""
        join, arguments = super().__dask_postcompute__()
        return (join, arguments) if _results_are_shared() else (_join_chunks, (join, arguments))


def dask_array(source: LazyArray, variable: str) -> Any:
    """Return a stored variable, or a selection of one, as a dask array.

    The name of the array is derived from its content, so another process finds cached results under the same name.

    Args:
        source: array to read.
        variable: name of the whole variable.
    """
    selected = source if isinstance(source, SelectedArray) else SelectedArray(source)
    if selected.is_whole:
        name, chunks = variable, selected.grid(CHUNK_BYTES)
    else:
        name = f"{variable.split('-')[0]}-{tokenize(variable, selected.selections, selected.dropped)}"
        small = selected.nbytes <= FEW_BYTES
        chunks = tuple((size,) for size in selected.shape) if small else selected.grid(CHUNK_BYTES)
    array = dask.array.from_array(selected, chunks=chunks, name=name, meta=_meta(selected))
    return _stored_array(array, selected, variable) if subclass_works() else array


@cache
def subclass_works() -> bool:
    """Check `StoredArray` with the installed version of dask.

    If the result is False, `dask_array` returns plain dask arrays.
    Dask documents the methods that `StoredArray` overrides, but does not promise that a subclass may override them.
    The check runs no task, which a progress bar of the caller would show.
    """
    values = np.arange(6).reshape(2, 3)
    source = LazyArray()
    source.shape, source.dtype = values.shape, values.dtype
    selected = SelectedArray(source)
    plain = dask.array.from_array(selected, chunks=(1, 3), name="stratalens-check", meta=_meta(selected))
    try:
        array = _stored_array(plain, selected, "stratalens-check")
        join, arguments = array.__dask_postcompute__()
        joined = join([[values[:1]], [values[1:]]], *arguments)
    except Exception:
        return False
    same_chunks = (array.chunks, array.name, array.dtype) == (plain.chunks, plain.name, plain.dtype)
    return same_chunks and np.array_equal(joined, values)


def _stored_array(array: Any, selected: SelectedArray, variable: str) -> StoredArray:
    """Return a dask array that reads a selection as a `StoredArray`."""
    stored = StoredArray(array.dask, array.name, array.chunks, meta=_meta(selected))
    stored.selected, stored.variable = selected, variable
    return stored


def _meta(selected: SelectedArray) -> np.ndarray[Any, np.dtype[Any]]:
    return np.empty((0,) * selected.ndim, selected.dtype)


def _is_integer_list(item: Any) -> bool:
    if not isinstance(item, list | np.ndarray):
        return False
    values = np.asarray(item)
    return values.ndim == 1 and values.dtype.kind in "iu"


def _results_are_shared() -> bool:
    """Return whether others may keep a result.

    The workers of a cluster keep results, and so does a callback such as `dask.cache`.
    """
    return has_dask_callbacks() or default_dask_client() is not None


def default_dask_client() -> Any:
    """Return the active client of a dask cluster; None without one."""
    if "distributed" not in sys.modules:
        return None
    try:
        return sys.modules["distributed"].default_client()
    except ValueError:
        return None


def _join_chunks(results: Any, join: Any, arguments: tuple[Any, ...]) -> Any:
    """Join the results of all chunks.

    A single one is returned without a copy, because no one else has it.
    """
    single = results
    while isinstance(single, list | tuple) and len(single) == 1:
        single = single[0]
    return single if isinstance(single, np.ndarray) else join(results, *arguments)
