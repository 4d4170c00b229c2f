"""Lazy arrays behind the dataset: variables as they lie on disk, as xarray reads them; the base of all lazy arrays.

Each is a `BackendArray` whose selections are orthogonal; nothing is read before
somebody asks for values. They can be pickled, so dask workers read for themselves.
What is computed from other arrays, and labels, are in `derived`; a part of one in `selected`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from stratalens.store.format import label_codec as labels
from stratalens.store.format.int8 import restore
from stratalens.store.format.schema import AXES
from stratalens.store.reading.indexing import Selection, as_slice
from stratalens.store.reading.slabs import SlabReader
from stratalens.store.reading.staleness import StalenessCheck
from stratalens.store.state.manifest import Store


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
        selections, scalars = self.normalised(key)
        values = self.select(selections)
        return values.squeeze(axis=scalars) if scalars else values

    def normalised(self, key: tuple[Any, ...]) -> tuple[list[Selection], tuple[int, ...]]:
        """A selection for each dim, indices from 0 on and steps forwards, and the dims that a number takes away."""
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
            selections.append(as_slice(index))
        return selections, tuple(scalars)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Values of an orthogonal selection."""
        raise TypeError(f"{type(self).__name__} defines no select")

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Put the values of an orthogonal selection into memory of their shape and dtype."""
        out[...] = self.select(selections)

    @property
    def high_latency(self) -> bool:
        """Whether a read waits for a network, so that many at a time pay off."""
        return False

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Sizes along each dim of parts of at most about `nbytes` that are well read at once; the whole by default."""
        return tuple((size,) for size in self.shape)


def chunk_sizes(size: int, step: int) -> tuple[int, ...]:
    """Sizes of parts of `step`, the last one perhaps shorter.

    >>> chunk_sizes(7, 3), chunk_sizes(6, 3), chunk_sizes(0, 3)
    ((3, 3, 1), (3, 3), (0,))
    """
    whole, rest = divmod(size, max(1, step))
    return (step,) * whole + ((rest,) if rest or not whole else ())


def positions(selection: Selection, size: int) -> Sequence[int]:
    """Indices that a selection stands for."""
    if isinstance(selection, slice):
        return range(*selection.indices(size))
    indices: list[int] = selection.tolist()
    return indices


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
        values = self.reader.read(*self._places(selections))
        lacking = self._lacking()
        if lacking:
            values = values.squeeze(axis=lacking)
        for axis, dim in enumerate(variable.dims):
            chosen = selections[axis]
            if dim not in AXES and not _everything(chosen, self.shape[axis]):
                values = values[(slice(None),) * axis + (chosen,)]
        return values.view(self.view) if self.view is not None else values

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Read an orthogonal selection straight into memory of its shape and dtype."""
        features = [axis for axis, dim in enumerate(self.reader.layout.variable.dims) if dim not in AXES]
        if out.flags.c_contiguous and all(_everything(selections[axis], self.shape[axis]) for axis in features):
            whole = np.expand_dims(out.view(self.reader.dtype), self._lacking())
            self.reader.read(*self._places(selections), out=whole)
        else:
            out[...] = self.select(selections)

    @property
    def high_latency(self) -> bool:
        """Whether a read waits for a network."""
        return self.reader.storage.high_latency

    def bits(self) -> VariableArray:
        """The same as it is stored: bfloat16 as uint16."""
        return VariableArray(replace(self.reader, decode=False), self.stages)

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Several blocks of one stage, one layer, one run of tokens."""
        return self.parts(nbytes, self.dtype.itemsize)

    def parts(self, nbytes: int, itemsize: int) -> tuple[tuple[int, ...], ...]:
        """The same for values that become others of `itemsize` bytes."""
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

    def _places(self, selections: Sequence[Selection]) -> tuple[list[int], Sequence[int], Selection, Sequence[int]]:
        layout = self.reader.layout
        by_dim = dict(zip(layout.variable.dims, selections, strict=True))
        layers = positions(by_dim["layer"], layout.layers) if "layer" in by_dim else (0,)
        tokens = positions(by_dim["token"], layout.tokens) if "token" in by_dim else (0,)
        stages = [self.stages[i] for i in positions(by_dim["stage"], len(self.stages))]
        return stages, layers, by_dim["entity"], tokens

    def _lacking(self) -> tuple[int, ...]:
        """Dims that the reader has and the variable has not."""
        return tuple(axis for axis, name in enumerate(AXES) if not self.reader.layout.variable.has(name))


def _everything(chosen: Selection, size: int) -> bool:
    return isinstance(chosen, slice) and chosen.indices(size) == (0, size, 1)


class ScaledArray(LazyArray):
    """A site in int8 with the scales of its rows: float32 on reading."""

    def __init__(self, numbers: VariableArray, scale: VariableArray) -> None:
        self.numbers, self.scale = numbers, scale
        self.shape = numbers.shape
        self.dtype = np.dtype(np.float32)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Values of an orthogonal selection."""
        return restore(self.numbers.select(selections), self.scale.select(selections[:-1]))

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """As those of the whole numbers, by the size of the values that come out."""
        return self.numbers.parts(nbytes, self.dtype.itemsize)


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
        found = self._split(selections)
        if not found:
            return self.parts[0].select([*selections[: self.axis], slice(0, 0), *selections[self.axis + 1 :]])
        if len(found) == 1:
            part, chosen, _ = found[0]
            return part.select(chosen)
        values = np.concatenate([part.select(chosen) for part, chosen, _ in found], axis=self.axis)
        order = np.concatenate([inside for _, _, inside in found])
        if (np.diff(order) == 1).all():
            return values
        return np.take(values, np.argsort(order), axis=self.axis)

    def fill(self, out: NDArray[Any], selections: Sequence[Selection]) -> None:
        """Straight into the memory where one part has it all."""
        found = self._split(selections)
        if len(found) == 1:
            part, chosen, _ = found[0]
            part.fill(out, chosen)
        else:
            out[...] = self.select(selections)

    def grid(self, nbytes: int) -> tuple[tuple[int, ...], ...]:
        """Parts of the parts."""
        grids = [part.grid(nbytes) for part in self.parts]
        along = tuple(size for grid in grids for size in grid[self.axis])
        return (*grids[0][: self.axis], along, *grids[0][self.axis + 1 :])

    def _split(self, selections: Sequence[Selection]) -> list[tuple[LazyArray, list[Selection], NDArray[np.intp]]]:
        """(part, selection in it, places in the result) of those that have something."""
        rows = np.arange(self.shape[self.axis])[selections[self.axis]]
        found, start = [], 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            inside = np.flatnonzero((rows >= start) & (rows < start + size))
            if inside.size:
                chosen = list(selections)
                chosen[self.axis] = as_slice(rows[inside] - start)
                found.append((part, chosen, inside))
            start += size
        return found


def lazy(dims: Sequence[str], array: LazyArray, attrs: dict[str, Any] | None = None) -> xr.Variable:
    """xarray variable that reads on demand."""
    return xr.Variable(tuple(dims), indexing.LazilyIndexedArray(array), attrs=attrs)


class LabelArray(LazyArray):
    """One label column, decoded chunk by chunk when asked for."""

    def __init__(self, store: Store, name: str, watch: StalenessCheck) -> None:
        self.store, self.name, self.watch = store, name, watch
        self.data_type, self.chunk = store.label_types[name], store.label_chunk
        self.shape = (store.entities,)
        self.dtype = np.dtype(object) if self.data_type == "string" else np.dtype(self.data_type)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Labels of a selection of rows."""
        (selection,) = selections
        rows = np.arange(self.shape[0])[selection]
        out = np.empty(len(rows), dtype=self.dtype)
        keys = {int(n): self.store.label_key(self.name, int(n)) for n in np.unique(rows // self.chunk)}
        raw = {number: self.store.storage.get(key) for number, key in keys.items()}
        self.watch.check(now=True)  # what was read belongs to the labels of this store, not to later ones
        for number, key in keys.items():
            where = f"label column {self.name!r} ({self.store.storage.path(key)})"
            part = labels.decode_chunk(raw[number], self.data_type, where)
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
