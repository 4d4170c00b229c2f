"""Lazy arrays of a dataset: stored variables, label columns, computed values.

Each is a `BackendArray` with orthogonal selections that reads when values are requested. They can be pickled, so dask
workers read by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing  # of it, only what xarray documents for authors of backends

from stratalens.store.format import label_codec as labels
from stratalens.store.format.int8 import restore
from stratalens.store.format.schema import AXES
from stratalens.store.reading.indexing import Selection, as_slice
from stratalens.store.reading.slabs import SlabReader
from stratalens.store.reading.staleness import StalenessCheck
from stratalens.store.state.manifest import Store
from stratalens.store.threads import run_tasks


class LazyArray(BackendArray):
    """Base of all lazy arrays.

    It converts a key of xarray or NumPy into one selection a dim.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, indexing.VectorizedIndexer):
            result: NDArray[Any] = indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._orthogonal
            )
            return result
        if isinstance(key, indexing.ExplicitIndexer):
            return self._orthogonal(key.tuple)
        key = key if isinstance(key, tuple) else (key,)
        return self._orthogonal((*key, *[slice(None)] * (self.ndim - len(key))))

    def _orthogonal(self, key: tuple[Any, ...]) -> NDArray[Any]:
        selections, scalars = self.normalize_key(key)
        values = self.select(selections)
        return values.squeeze(axis=scalars) if scalars else values

    def normalize_key(self, key: tuple[Any, ...]) -> tuple[list[Selection], tuple[int, ...]]:
        """Return one selection a dim, and the axes that an integer removes.

        The selections have non-negative indices and positive steps.
        """
        selections: list[Selection] = []
        scalars = []
        for axis, (index, size) in enumerate(zip(key, self.shape, strict=True)):
            if isinstance(index, slice):
                backwards = index.step is not None and index.step < 0
                selections.append(np.arange(size)[index] if backwards else index)
                continue
            if isinstance(index, int | np.integer) or np.ndim(index) == 0:
                position = int(index) + size if index < 0 else int(index)
                if not 0 <= position < size:
                    raise IndexError(f"index {index} is out of bounds for axis {axis} with size {size}")
                scalars.append(axis)
                selections.append(slice(position, position + 1))
                continue
            positions = np.asarray(index, dtype=np.intp)
            positions = np.where(positions < 0, positions + size, positions)
            if positions.size and (positions.min() < 0 or positions.max() >= size):
                raise IndexError(f"index out of bounds for axis {axis} with size {size}")
            selections.append(as_slice(positions))
        return selections, tuple(scalars)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the values of an orthogonal selection."""
        raise TypeError(f"{type(self).__name__} defines no select")

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Write the values of an orthogonal selection into an array.

        The array has their shape and dtype.
        """
        out[...] = self.select(selections)

    @property
    def high_latency(self) -> bool:
        """Whether reads wait for a network, so that many parallel reads are faster."""
        return False

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Return chunk sizes along each dim for efficient reads of about `nbytes`.

        By default, the whole array is one chunk.
        """
        return tuple((size,) for size in self.shape)


class VariableArray(LazyArray):
    """One stored variable.

    Args:
        reader: reads the variable.
        stages: position on disk of each stage of the dataset.
        view: dtype of the same size in which to return the values.
    """

    def __init__(self, reader: SlabReader, stages: Sequence[int], *, view: np.dtype[Any] | None = None) -> None:
        self.reader = reader
        self.stages = list(stages)
        self.view = view
        self.shape = reader.layout.array_shape(len(self.stages), reader.store.entities)
        self.dtype = view or reader.dtype.newbyteorder("=")

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the values of an orthogonal selection."""
        variable = self.reader.layout.variable
        values = self.reader.read(*self._reader_selection(selections))
        absent = self._absent_axes()
        if absent:
            values = values.squeeze(axis=absent)
        for axis, dim in enumerate(variable.dims):
            if dim not in AXES and not _selects_all(selections[axis], self.shape[axis]):
                values = values[(slice(None),) * axis + (selections[axis],)]
        return values.view(self.view) if self.view is not None else values

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Read an orthogonal selection into an array, without a copy if possible."""
        features = [axis for axis, dim in enumerate(self.reader.layout.variable.dims) if dim not in AXES]
        if out.flags.c_contiguous and all(_selects_all(selections[axis], self.shape[axis]) for axis in features):
            expanded = np.expand_dims(out.view(self.reader.dtype), self._absent_axes())
            self.reader.read(*self._reader_selection(selections), out=expanded)
        else:
            out[...] = self.select(selections)

    @property
    def high_latency(self) -> bool:
        """Whether reads wait for a network."""
        return self.reader.store.storage.high_latency

    def bits(self) -> VariableArray:
        """Return the same array in its stored form: bfloat16 as uint16."""
        return VariableArray(replace(self.reader, decode=False), self.stages)

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Return chunks of several blocks of one stage, layer and token chunk."""
        return self.grid_of(nbytes, self.dtype.itemsize)

    def grid_of(self, nbytes: int, itemsize: int) -> tuple[tuple[int, ...], ...]:
        """Return the grid for values that take `itemsize` bytes once they are decoded."""
        layout = self.reader.layout
        items = layout.inner_layers * layout.row_nbytes // layout.variable.storage_dtype.itemsize
        blocks = max(1, nbytes // max(1, items * itemsize * layout.block_size))
        steps = {
            "stage": 1,
            "layer": layout.inner_layers,
            "entity": blocks * layout.block_size,
            "token": layout.token_chunk,
        }
        return tuple(
            chunk_sizes(size, steps.get(dim, size)) for dim, size in zip(layout.variable.dims, self.shape, strict=True)
        )

    def _reader_selection(
        self, selections: Sequence[Selection]
    ) -> tuple[list[int], Sequence[int], Selection, Sequence[int]]:
        """Return stages on disk, layers, entities and tokens, which the reader expects."""
        layout = self.reader.layout
        by_dim = dict(zip(layout.variable.dims, selections, strict=True))
        layers = _positions(by_dim["layer"], layout.layers) if "layer" in by_dim else (0,)
        tokens = _positions(by_dim["token"], layout.tokens) if "token" in by_dim else (0,)
        stages = [self.stages[i] for i in _positions(by_dim["stage"], len(self.stages))]
        return stages, layers, by_dim["entity"], tokens

    def _absent_axes(self) -> tuple[int, ...]:
        """Return the axes of the reader that the variable does not have."""
        return tuple(axis for axis, name in enumerate(AXES) if not self.reader.layout.variable.has(name))


class ScaledArray(LazyArray):
    """A site stored as int8 with one scale a row, read as float32."""

    def __init__(self, numbers: VariableArray, scale: VariableArray) -> None:
        self.numbers, self.scale = numbers, scale
        self.shape = numbers.shape
        self.dtype = np.dtype(np.float32)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the values of an orthogonal selection."""
        return restore(self.numbers.select(selections), self.scale.select(selections[:-1]))

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Return the grid of the int8 numbers, for the size of the float32 values."""
        return self.numbers.grid_of(nbytes, self.dtype.itemsize)


class ConcatenatedArray(LazyArray):
    """Arrays concatenated along one axis."""

    def __init__(self, arrays: Sequence[LazyArray], axis: int) -> None:
        self.arrays, self.axis = list(arrays), axis
        self.sizes = [array.shape[axis] for array in arrays]
        shape = list(arrays[0].shape)
        shape[axis] = sum(self.sizes)
        self.shape = tuple(shape)
        self.dtype = arrays[0].dtype

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the values of an orthogonal selection."""
        reads = self._split(selections)
        if not reads:
            return self.arrays[0].select([*selections[: self.axis], slice(0, 0), *selections[self.axis + 1 :]])
        if len(reads) == 1:
            array, inner, _ = reads[0]
            return array.select(inner)
        values = np.concatenate([array.select(inner) for array, inner, _ in reads], axis=self.axis)
        order = np.concatenate([positions for _, _, positions in reads])
        if (np.diff(order) == 1).all():
            return values
        return np.take(values, np.argsort(order), axis=self.axis)

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Write the values of an orthogonal selection into an array.

        There is no copy if one of the concatenated arrays has all of them.
        """
        reads = self._split(selections)
        if len(reads) == 1:
            array, inner, _ = reads[0]
            array.fill(out, inner)
        else:
            out[...] = self.select(selections)

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Return the grids of the arrays, concatenated along the axis."""
        grids = [array.grid(nbytes) for array in self.arrays]
        along = tuple(size for grid in grids for size in grid[self.axis])
        return (*grids[0][: self.axis], along, *grids[0][self.axis + 1 :])

    def _split(self, selections: Sequence[Selection]) -> list[tuple[LazyArray, list[Selection], NDArray[np.intp]]]:
        """Return the reads of a selection.

        One tuple (array, selection in it, positions in the result) for each array that has selected rows.
        """
        rows = np.arange(self.shape[self.axis])[selections[self.axis]]
        reads, start = [], 0
        for array, size in zip(self.arrays, self.sizes, strict=True):
            positions = np.flatnonzero((rows >= start) & (rows < start + size))
            if positions.size:
                inner = list(selections)
                inner[self.axis] = as_slice(rows[positions] - start)
                reads.append((array, inner, positions))
            start += size
        return reads


class LabelArray(LazyArray):
    """One label column, decoded chunk by chunk."""

    def __init__(self, store: Store, name: str, staleness: StalenessCheck) -> None:
        self.store, self.name, self.staleness = store, name, staleness
        self.data_type, self.chunk = store.label_types[name], store.label_chunk
        self.shape = (store.entities,)
        self.dtype = np.dtype(object) if self.data_type == "string" else np.dtype(self.data_type)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the labels of some rows."""
        rows = np.arange(self.shape[0])[selections[0]]
        out = np.empty(len(rows), dtype=self.dtype)
        keys = {int(n): self.store.label_key(self.name, int(n)) for n in np.unique(rows // self.chunk)}
        storage = self.store.storage
        pinned = all(storage.is_pinned(key) for key in keys.values())
        raw: dict[int, bytes | None] = {}

        def read(number: int) -> None:
            raw[number] = storage.get(keys[number])

        if storage.high_latency:
            run_tasks([partial(read, number) for number in keys], high_latency=True)
        else:
            for number in keys:
                read(number)
        if not pinned or not all(storage.is_pinned(key) for key in keys.values()):
            self.staleness.check(now=True)  # after the read: the bytes are labels of this store, not of a later one
        for number, key in keys.items():
            where = f"label column {self.name!r} ({self.store.storage.path(key)})"
            values = labels.decode_chunk(raw[number], self.data_type, where, self.chunk)
            inside = rows // self.chunk == number
            out[inside] = values[rows[inside] - number * self.chunk]
        return out


class RecordedInAllGroups(LazyArray):
    """`recorded` of a store with several groups: whether all have the row."""

    def __init__(self, flags: Sequence[LazyArray]) -> None:
        self.flags = list(flags)
        self.shape, self.dtype = flags[0].shape, np.dtype(bool)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the values of an orthogonal selection."""
        everywhere: NDArray[Any] = np.logical_and.reduce([flag.select(selections) for flag in self.flags])
        return everywhere


class Exposure(LazyArray):
    """`exposure`: stage_order minus the order of the stage that trained a row.

    A label is matched with the stages by its text, numbers too. It is NaN if the training stage is unknown.
    """

    def __init__(self, stage_order: NDArray[np.int64], orders: dict[str, int], trained: LazyArray) -> None:
        self.stage_order, self.orders, self.trained = stage_order, orders, trained
        self.shape, self.dtype = (len(stage_order), *trained.shape), np.dtype(np.float32)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the values of an orthogonal selection."""
        stage, entity = selections
        trained = self.trained.select([entity])
        labels, codes = (trained, ...) if trained.dtype == object else np.unique(trained, return_inverse=True)
        order = np.array([self.orders.get(_text(t), math.nan) for t in labels.tolist()], dtype=np.float32)[codes]
        return (self.stage_order[stage].astype(np.float32)[:, None] - order[None]).astype(np.float32)


def _text(label: object) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def concatenate(arrays: Sequence[LazyArray], axis: int) -> LazyArray:
    """Concatenate arrays along one axis; a single array is returned unchanged."""
    return arrays[0] if len(arrays) == 1 else ConcatenatedArray(arrays, axis)


def lazy_variable(dims: Sequence[str], array: LazyArray, attrs: dict[str, Any] | None = None) -> xr.Variable:
    """Return an xarray variable that reads on demand."""
    return xr.Variable(tuple(dims), indexing.LazilyIndexedArray(array), attrs=attrs)


def chunk_sizes(size: int, step: int) -> tuple[int, ...]:
    """Return the sizes of chunks of `step`; the last one may be smaller.

    >>> chunk_sizes(7, 3), chunk_sizes(6, 3), chunk_sizes(0, 3)
    ((3, 3, 1), (3, 3), (0,))
    """
    count, rest = divmod(size, max(1, step))
    return (step,) * count + ((rest,) if rest or not count else ())


def _positions(selection: Selection, size: int) -> Sequence[int]:
    """Return the positions along a dim that a selection selects."""
    if isinstance(selection, slice):
        return range(*selection.indices(size))
    positions: list[int] = selection.tolist()
    return positions


def _selects_all(selection: Selection, size: int) -> bool:
    return isinstance(selection, slice) and selection.indices(size) == (0, size, 1)
