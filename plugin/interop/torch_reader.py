"""One lazy array read as samples: the activations of one (stage, entity, token) each.

Samples are numbered in the order (stage, entity, token) over all rows of the array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


BLOCK_BYTES = 4 << 20  # read at once


_CACHE_BYTES = 1 << 18  # widened at once, while they are in the processor's cache


Block = tuple[int, int, int]
"""A range of rows to read at once: (stage, first entity, end)."""


class ArrayReader:
    """A lazy array as values of shape (rows, tokens, features...), one stage at a time.

    A narrowed array of `open_store` is read directly from its files. If it widens bfloat16
    to float32, the reader reads and keeps the bits and widens them in `take`. xarray or dask
    reads any other array.

    Args:
        array: array with the dim entity, perhaps stage and token, and feature dims.
        description: name of the array, for messages.

    Attributes:
        shape: number of stages, entities and tokens (1 for a missing dim).
        feature_shape: shape of one sample.
        labels: coordinate of each of stage, entity and token, or None.
        dtype: dtype of the samples.
        stored: the selection that is read directly from files, or None.
        stored_dtype: dtype of the values that `fill` reads and `take` converts to samples.
        row_nbytes: bytes of one (stage, entity) in the stored dtype.
    """

    def __init__(self, array: xr.DataArray, description: str) -> None:
        self.site = str(array.name)
        features = [dim for dim in array.dims if dim not in AXES]
        array = array.transpose(*(dim for dim in AXES if dim in array.dims), *features)
        self.description = description
        self.labels = {dim: array.coords[dim].variable if dim in array.coords else None for dim in AXES}
        self.variable = array.variable
        sizes = array.sizes
        self.shape = tuple(sizes.get(dim, 1) for dim in AXES)
        self.feature_shape = tuple(sizes[dim] for dim in features)
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
            Array of the stored dtype and of shape (rows, tokens, features...).
        """
        values: NDArray[Any]
        if self.stored is not None:
            values = self.stored[self._key(stage, rows)]
        else:
            at_stage = {"stage": stage} if "stage" in self.variable.dims else {}
            selected = self.variable.isel({"entity": rows, **at_stage})
            is_dask = selected.chunks is not None
            values = selected.data.compute(scheduler="synchronous") if is_dask else selected.to_numpy()
        return values.reshape(-1, self.shape[2], *self.feature_shape)

    def fill(self, out: NDArray[Any], block: Block) -> None:
        """Read a block into memory.

        Args:
            out: array of the stored dtype and of shape (rows * tokens, features...).
            block: rows to read.
        """
        stage, start, stop = block
        rows = slice(start, stop)
        if self.stored is None:
            out[:] = self.read(stage, rows).reshape(out.shape)
            return
        selected = self.stored.narrow(self._key(stage, rows))
        selected.fill(out.reshape(selected.shape), [slice(0, size) for size in selected.shape])

    def take(self, values: NDArray[Any], indices: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy samples into `out` in the dtype of the samples, on all free cores.

        One core gathers more slowly than several cores read.

        Args:
            values: array of the stored dtype and of shape (samples, features...).
            indices: int64 array of shape (n,), samples of `values`.
            out: array of shape (n, features...).
        """
        step = max(1, _CACHE_BYTES // max(1, math.prod(self.feature_shape) * self.stored_dtype.itemsize))
        per_task = step * max(1, -(-len(indices) // (step * cores())))
        slices = [slice(start, start + per_task) for start in range(0, len(indices), per_task)]
        run_tasks([partial(self._take, values, indices[rows], out[rows], step) for rows in slices])

    def _take(self, values: NDArray[Any], indices: NDArray[np.int64], out: NDArray[Any], step: int) -> None:
        if not self._widens:
            np.take(values, indices, axis=0, out=out, mode="clip")  # the mode "raise" would copy once more
            return
        for start in range(0, len(indices), step):
            bfloat16_to_float32(values[indices[start : start + step]], out[start : start + step])

    def blocks(self) -> list[Block]:
        """Return the blocks of all rows, along the blocks of the store or the chunks of the array."""
        entities = self.shape[1]
        if self.stored is not None:
            sizes: Sequence[int] = self.stored.grid(BLOCK_BYTES)[self.variable.dims.index("entity")]
        elif self.variable.chunks is not None:
            sizes = self.variable.chunksizes["entity"]
        else:
            # a power of two, as the blocks of the store are
            sizes = chunk_sizes(entities, 1 << max((BLOCK_BYTES // max(self.row_nbytes, 1)).bit_length() - 1, 0))
        edges = [0, *np.cumsum(sizes).tolist()]
        return [(stage, start, stop) for stage in range(self.shape[0]) for start, stop in pairwise(edges)]

    def _key(self, stage: int, rows: slice | NDArray[np.int64]) -> tuple[Any, ...]:
        """Return the index of some entities of a stage in the stored array."""
        indices = {"stage": stage, "entity": rows}
        return tuple(indices.get(str(dim), slice(None)) for dim in self.variable.dims)

    def locate(self, flat: int) -> dict[str, Any]:
        """Return stage, entity and token of a sample by its number.

        A dim without a coordinate has an index instead.
        """
        indices = zip(AXES, np.unravel_index(flat, self.shape), strict=True)
        return {dim: self._label(dim, int(index)) for dim, index in indices}

    def _label(self, dim: str, index: int) -> Any:
        variable = self.labels[dim]
        if variable is None:
            return index
        return variable.values.item() if variable.ndim == 0 else variable[index].values.item()


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
