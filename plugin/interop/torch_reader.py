"""One lazy array read as samples: the activations of one (stage, entity, token), or of one (entity, token).

Samples are numbered in the order (stage, entity, token) over all rows of the array. Aligned samples have the dims stage
and layer themselves, so that their numbers are those of (entity, token).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from stratalens.store.reading.chunks import bfloat16_to_float32
from stratalens.store.reading.lazy_arrays import chunk_sizes
from stratalens.store.reading.selection import stored_selection
from stratalens.store.threads import cores, run_tasks

AXES = ("stage", "entity", "token")
ALIGNED = ("stage", "layer")  # dims that an aligned sample may have


BLOCK_BYTES = 4 << 20  # read at once


_CACHE_BYTES = 1 << 18  # widened at once, while they are in the processor's cache


Block = tuple[int, int, int]
"""A range of rows to read at once: (stage, first entity, end)."""


class ArrayReader:
    """A lazy array as values of shape (rows, tokens, features...), one stage at a time.

    A narrowed array of `open_store` is read directly from its files. If it widens bfloat16
    to float32, the reader reads and keeps the bits and widens them in `take`. xarray or dask
    reads any other array.

    An aligned sample consists of parts, one for each of its stages and layers. A part is a chunk of a file of its own,
    so memory for reading has the parts in its first dim.

    Args:
        array: array with the dim entity, perhaps stage, layer and token, and feature dims.
        description: name of the array, for messages.
        aligned: those of the dims stage and layer that each sample has.

    Attributes:
        shape: number of stages, entities and tokens (1 for a missing dim, and for stages of aligned samples).
        aligned: dims of the parts of a sample.
        parts: index of each part along these dims; one empty index if samples are not aligned.
        part_shape: shape of one part: the feature dims.
        feature_shape: shape of one sample: the dims of `aligned` and the feature dims.
        dims: names of the dims of one sample.
        labels: coordinate of each of stage, entity, token and layer, or None.
        dtype: dtype of the samples.
        stored: the selection that is read directly from files, or None.
        stored_dtype: dtype of the values that `fill` reads and `take` converts to samples.
        row_nbytes: bytes of one (stage, entity) in the stored dtype, all parts together.
    """

    def __init__(self, array: xr.DataArray, description: str, aligned: Sequence[str] = ()) -> None:
        self.site = str(array.name)
        self.aligned = tuple(dim for dim in ALIGNED if dim in aligned and dim in array.dims)
        axes = [dim for dim in AXES if dim not in self.aligned]
        features = [dim for dim in array.dims if dim not in (*axes, *self.aligned)]
        array = array.transpose(*self.aligned, *(dim for dim in axes if dim in array.dims), *features)
        self.description = description
        self.labels = {dim: array.coords[dim].variable if dim in array.coords else None for dim in (*AXES, "layer")}
        self.variable = array.variable
        sizes = array.sizes
        self.shape = tuple(sizes.get(dim, 1) if dim in axes else 1 for dim in AXES)
        self.part_shape = tuple(sizes[dim] for dim in features)
        aligned_shape = tuple(sizes[dim] for dim in self.aligned)
        self.parts = [dict(zip(self.aligned, index, strict=True)) for index in np.ndindex(*aligned_shape)]
        self.feature_shape = aligned_shape + self.part_shape
        self.dims = (*self.aligned, *map(str, features))
        self.dtype: np.dtype[Any] = array.dtype
        stored = stored_selection(self.variable)
        bits = None if stored is None else stored.bits()
        self.stored = stored if bits is None else bits
        self._widens = bits is not None
        self.stored_dtype: np.dtype[Any] = self.dtype if self.stored is None else self.stored.dtype
        self.row_nbytes = self.shape[2] * math.prod(self.feature_shape) * self.stored_dtype.itemsize

    @property
    def high_latency(self) -> bool:
        """Whether a read waits for a network."""
        return self.stored is not None and self.stored.high_latency

    def read(self, stage: int, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Read some entities of a stage in the calling thread alone.

        Several worker processes must not start a pool of threads each.

        Returns:
            Array of the stored dtype and of shape (rows, tokens, *feature_shape).
        """
        values = self._read({"stage": stage, "entity": rows} | dict.fromkeys(self.aligned, slice(None)))
        values = values.reshape(len(self.parts), -1, self.shape[2], *self.part_shape)
        return np.moveaxis(values, 0, 2).reshape(-1, self.shape[2], *self.feature_shape)

    def _read(self, indices: Mapping[str, Any]) -> NDArray[Any]:
        values: NDArray[Any]
        if self.stored is not None:
            values = self.stored[self._key(indices)]
            return values
        selected = self.variable.isel({dim: index for dim, index in indices.items() if dim in self.variable.dims})
        is_dask = selected.chunks is not None
        values = selected.data.compute(scheduler="synchronous") if is_dask else selected.to_numpy()
        return values

    def fill(self, out: NDArray[Any], block: Block, part: int = 0) -> None:
        """Read one part of a block into memory.

        Args:
            out: array of the stored dtype and of shape (rows * tokens, *part_shape).
            block: rows to read.
            part: number of the part in `parts`.
        """
        stage, start, stop = block
        indices = {"stage": stage, "entity": slice(start, stop)} | self.parts[part]
        if self.stored is None:
            out[:] = self._read(indices).reshape(out.shape)
            return
        selected = self.stored.narrow(self._key(indices))
        selected.fill(out.reshape(selected.shape), [slice(0, size) for size in selected.shape])

    def take(self, values: NDArray[Any], indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy samples into `out` in the dtype of the samples, on all free cores.

        Args:
            values: array of the stored dtype and of shape (parts, samples, *part_shape).
            indices: int64 array of shape (n,), samples of `values`.
            out: contiguous array of shape (n, *feature_shape).
        """
        if len(self.parts) > 1:
            indices = (indices[:, None] + np.arange(len(self.parts)) * values.shape[1]).reshape(-1)
        self.take_rows(values.reshape(-1, *self.part_shape), indices, out.reshape(-1, *self.part_shape))

    def take_rows(self, values: NDArray[Any], indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy parts of samples into `out` in the dtype of the samples, on all free cores.

        One core gathers more slowly than several cores read.

        Args:
            values: array of the stored dtype and of shape (rows, *part_shape).
            indices: int64 array of shape (n,), rows of `values`.
            out: array of shape (n, *part_shape).
        """
        step = max(1, _CACHE_BYTES // max(1, math.prod(self.part_shape) * self.stored_dtype.itemsize))
        per_task = step * max(1, -(-len(indices) // (step * cores())))
        slices = [slice(start, start + per_task) for start in range(0, len(indices), per_task)]
        run_tasks([partial(self._take, values, indices[rows], out[rows], step) for rows in slices])

    def _take(self, values: NDArray[Any], indices: NDArray[np.int64], out: NDArray[Any], step: int) -> None:
        if not self._widens:
            np.take(values, indices, axis=0, out=out, mode="clip")  # the mode "raise" would copy once more
            return
        for start in range(0, len(indices), step):
            bfloat16_to_float32(values[indices[start : start + step]], out[start : start + step])

    def blocks(self, max_bytes: int | None = None, at_least: int = 1) -> list[Block]:
        """Return the blocks of all rows, along the blocks of the store or the chunks of the array.

        Args:
            max_bytes: divide larger blocks into ranges of rows of at most this size, but of one row at least. The first
                range of a chunk reads and verifies it whole, the others read only their rows.
            at_least: divide blocks until there are this many, as far as there are rows.
        """
        entities = self.shape[1]
        if self.stored is not None:
            per_part = BLOCK_BYTES // max(1, len(self.parts))
            sizes: Sequence[int] = self.stored.grid(per_part)[self.variable.dims.index("entity")]
        elif self.variable.chunks is not None:
            sizes = self.variable.chunksizes["entity"]
        else:
            # a power of two, as the blocks of the store are
            sizes = chunk_sizes(entities, 1 << max((BLOCK_BYTES // max(self.row_nbytes, 1)).bit_length() - 1, 0))
        if max_bytes is not None:
            rows = max(1, max_bytes // max(1, self.row_nbytes))
            sizes = [part for size in sizes for part in _divide(size, -(-size // rows))]
        while self.shape[0] * len(sizes) < at_least and max(sizes) > 1:
            sizes = [part for size in sizes for part in _divide(size, min(size, 2))]
        edges = [0, *np.cumsum(sizes).tolist()]
        return [(stage, start, stop) for stage in range(self.shape[0]) for start, stop in pairwise(edges)]

    def _key(self, indices: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the index of some rows in the stored array."""
        return tuple(indices.get(str(dim), slice(None)) for dim in self.variable.dims)

    def locate(self, flat: int, part: int | None = None) -> dict[str, Any]:
        """Return stage, entity and token of a sample by its number.

        A dim without a coordinate has an index instead. Aligned samples have no stage, but `part` adds the stage and
        layer of one of their parts.
        """
        numbers = dict(zip(AXES, np.unravel_index(flat, self.shape), strict=True))
        labels = {dim: self._label(dim, int(index)) for dim, index in numbers.items() if dim not in self.aligned}
        if part is not None:
            labels = {dim: self._label(dim, index) for dim, index in self.parts[part].items()} | labels
        return labels

    def _label(self, dim: str, index: int) -> Any:
        variable = self.labels[dim]
        if variable is None:
            return index
        return variable.values.item() if variable.ndim == 0 else variable[index].values.item()


def _divide(size: int, count: int) -> tuple[int, ...]:
    """Divide rows into ranges of nearly equal size.

    >>> _divide(10, 3), _divide(10, 1), _divide(0, 0)
    ((4, 4, 2), (10,), (0,))
    """
    return chunk_sizes(size, -(-size // max(1, count)))


def is_nan(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where values are NaN; bfloat16 may be passed as its bits in uint16."""
    if values.dtype.name == "bfloat16":
        values = values.view(np.uint16)
    missing: NDArray[np.bool_] = (values & 0x7FFF) > 0x7F80 if values.dtype == np.uint16 else np.isnan(values)
    return missing


def as_tensor(values: NDArray[Any]) -> Tensor:
    """Return a tensor that shares the array's memory; ml_dtypes' bfloat16 becomes torch's."""
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(values if values.flags.writeable else values.copy())
