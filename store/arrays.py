"""Lazy arrays behind the dataset: variables, labels, flags and exposure, as xarray reads them.

Each is a `BackendArray` whose selections are orthogonal; nothing is read before
somebody asks for values. They can be pickled, so dask workers read for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from stratalens.store import labels
from stratalens.store.rows import Selection
from stratalens.store.scaling import restore
from stratalens.store.schema import AXES
from stratalens.store.seam import Storage
from stratalens.store.slabs import SlabReader
from stratalens.store.watch import Watch

DASK_BYTES = 128 << 20


class LazyArray(BackendArray):
    """Base: turns an xarray or NumPy key into one selection for each dim."""

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
        return self._orthogonal(indexing.expanded_indexer(key, self.ndim))  # type: ignore[no-untyped-call]

    def _orthogonal(self, key: tuple[Any, ...]) -> NDArray[Any]:
        selections: list[Selection] = []
        scalars = []
        for axis, (part, size) in enumerate(zip(key, self.shape, strict=True)):
            if isinstance(part, slice):
                backwards = part.step is not None and part.step < 0
                selections.append(np.arange(size)[part] if backwards else part)
                continue
            if isinstance(part, int | np.integer) or np.ndim(part) == 0:
                place = int(part) + size if part < 0 else int(part)
                if not 0 <= place < size:
                    raise IndexError(f"index {part} is out of bounds for axis {axis} with size {size}")
                scalars.append(axis)
                selections.append(slice(place, place + 1))
                continue
            index = np.asarray(part, dtype=np.intp)
            index = np.where(index < 0, index + size, index)
            if index.size and (index.min() < 0 or index.max() >= size):
                raise IndexError(f"index out of bounds for axis {axis} with size {size}")
            dense = index.size > 0 and bool((np.diff(index) == 1).all())
            selections.append(slice(int(index[0]), int(index[-1]) + 1) if dense else index)
        values = self.select(selections)
        return values.squeeze(axis=tuple(scalars)) if scalars else values

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Values of an orthogonal selection."""
        raise TypeError(f"{type(self).__name__} defines no select")


def positions(selection: Selection, size: int) -> list[int]:
    """Indices that a selection stands for."""
    if isinstance(selection, slice):
        return list(range(*selection.indices(size)))
    return [int(i) for i in selection]


class VariableArray(LazyArray):
    """One variable of one store; `stages` maps the dataset's stage axis to the one on disk."""

    def __init__(
        self,
        reader: SlabReader,
        stages: Sequence[int],
        *,
        view: np.dtype[Any] | None = None,
    ) -> None:
        self.reader = reader
        self.stages = list(stages)
        self.view = view
        self.shape = reader.layout.array_shape(len(self.stages), reader.entities)
        self.dtype = view or reader.dtype.newbyteorder("=")

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Values of an orthogonal selection."""
        variable = self.reader.layout.variable
        by_dim = dict(zip(variable.dims, selections, strict=True))
        layers = positions(by_dim["layer"], self.reader.layout.layers) if variable.has("layer") else [0]
        tokens = positions(by_dim["token"], self.reader.layout.tokens) if variable.has("token") else [0]
        stages = [self.stages[i] for i in positions(by_dim["stage"], len(self.stages))]
        values = self.reader.read(stages, layers, by_dim["entity"], tokens)
        lacking = [axis for axis, name in enumerate(AXES) if not variable.has(name)]
        if lacking:
            values = values.squeeze(axis=tuple(lacking))
        for axis, dim in enumerate(variable.dims):
            chosen = by_dim[dim]
            if dim not in AXES and not (isinstance(chosen, slice) and chosen == slice(None)):
                values = values[(slice(None),) * axis + (chosen,)]
        return values.view(self.view) if self.view is not None else values

    def dask_chunks(self, itemsize: int | None = None) -> tuple[tuple[int, ...] | int, ...]:
        """Chunks of several blocks for dask: one stage, one layer, up to 128 MiB, so that most slabs are one chunk."""
        layout = self.reader.layout
        items = layout.inner_layers * layout.row_nbytes // layout.variable.storage_dtype.itemsize
        per_row = items * (itemsize or self.dtype.itemsize)
        blocks = max(1, DASK_BYTES // max(1, per_row * layout.block_size))
        sizes = {
            "stage": 1,
            "layer": layout.inner_layers,
            "entity": min(blocks * layout.block_size, self.reader.entities),
            "token": layout.token_chunk,
        }
        return tuple(sizes.get(dim, size) for dim, size in zip(layout.variable.dims, self.shape, strict=True))


class ScaledArray(LazyArray):
    """A site in int8 with the scales of its rows: float32 on reading."""

    def __init__(self, numbers: VariableArray, scale: VariableArray) -> None:
        self.numbers, self.scale = numbers, scale
        self.shape = numbers.shape
        self.dtype = np.dtype(np.float32)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Values of an orthogonal selection."""
        return restore(self.numbers.select(selections), self.scale.select(selections[:-1]))

    def dask_chunks(self) -> tuple[tuple[int, ...] | int, ...]:
        """Chunks for dask, by the size of the values that come out."""
        return self.numbers.dask_chunks(self.dtype.itemsize)


class LabelArray(LazyArray):
    """One label column, decoded chunk by chunk when asked for."""

    def __init__(self, storage: Storage, name: str, size: int, chunk: int, data_type: str, watch: Watch) -> None:
        self.storage, self.name, self.chunk, self.data_type, self.watch = storage, name, chunk, data_type, watch
        self.shape = (size,)
        self.dtype = np.dtype(object) if data_type == "string" else np.dtype(data_type)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Labels of a selection of rows."""
        (selection,) = selections
        self.watch.check()
        rows = np.arange(self.shape[0])[selection]
        out = np.empty(len(rows), dtype=self.dtype)
        for number in np.unique(rows // self.chunk):
            key = f"{self.name}/c.{number}"
            part = labels.decode_chunk(
                self.storage.get(key), self.data_type, f"label column {self.name!r} ({self.storage.path(key)})"
            )
            inside = rows // self.chunk == number
            out[inside] = part[rows[inside] - number * self.chunk]
        return out


class FunctionArray(LazyArray):
    """An array computed from others: `function(selections)`."""

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], function: Callable[[Sequence[Selection]], NDArray[Any]]
    ) -> None:
        self.shape, self.dtype, self.function = shape, dtype, function

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """What the function says."""
        return self.function(selections)


class AllOf:
    """`recorded` of a store whose variables came in several groups: a row counts where all groups have it."""

    def __init__(self, parts: Sequence[LazyArray]) -> None:
        self.parts = list(parts)

    def __call__(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Flags of a selection."""
        everywhere: NDArray[Any] = np.logical_and.reduce([part.select(selections) for part in self.parts])
        return everywhere


class Exposure:
    """stage_order minus the order of the stage a row was trained on; NaN where that is unknown."""

    def __init__(self, stage_order: NDArray[np.int64], orders: dict[str, int], trained: LazyArray) -> None:
        self.stage_order, self.orders, self.trained = stage_order, orders, trained

    def __call__(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Exposure of a selection."""
        stage, entity = selections
        trained = self.trained.select([entity])
        if trained.dtype == object:
            order = np.array([self.orders.get(t, math.nan) for t in trained], dtype=np.float32)
        else:
            order = trained.astype(np.float32)
        return (self.stage_order[stage].astype(np.float32)[:, None] - order[None]).astype(np.float32)


class Joined(LazyArray):
    """Arrays one after the other along one axis."""

    def __init__(self, parts: Sequence[LazyArray], axis: int) -> None:
        self.parts, self.axis = list(parts), axis
        self.sizes = [part.shape[axis] for part in parts]
        shape = list(parts[0].shape)
        shape[axis] = sum(self.sizes)
        self.shape = tuple(shape)
        self.dtype = parts[0].dtype

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Values of an orthogonal selection over all parts."""
        rows = np.arange(self.shape[self.axis])[selections[self.axis]]
        pieces, places, start = [], [], 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            inside = np.flatnonzero((rows >= start) & (rows < start + size))
            if inside.size:
                local = rows[inside] - start
                dense = bool((np.diff(local) == 1).all())
                chosen = list(selections)
                chosen[self.axis] = slice(int(local[0]), int(local[-1]) + 1) if dense else local
                pieces.append(part.select(chosen))
                places.append(inside)
            start += size
        if not pieces:
            return self.parts[0].select([*selections[: self.axis], slice(0, 0), *selections[self.axis + 1 :]])
        values = np.concatenate(pieces, axis=self.axis)
        order = np.concatenate(places)
        if (np.diff(order) == 1).all():
            return values
        return np.take(values, np.argsort(order), axis=self.axis)


def lazy(dims: Sequence[str], array: LazyArray, attrs: dict[str, Any] | None = None) -> xr.Variable:
    """xarray variable that reads on demand."""
    return xr.Variable(tuple(dims), indexing.LazilyIndexedArray(array), attrs=attrs)
