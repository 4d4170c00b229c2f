"""Activations of a store as a torch Dataset with random access.

What lives here: how samples are numbered and read. What does not: shuffled
batches (`torch_batches.py`), choosing site, layer and stages, and the checks of
that choice (`bridges.py`).

A sample is the activation of one (stage, entity, token). Samples are numbered
in that order over the rows that were given; those that were not recorded are
left out.
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

BLOCK_BYTES = 4 << 20  # read at once


_TAKEN = 1 << 18  # widened while it is in the processor's cache


class Source:
    """One lazy array, read as (rows, tokens, features...) of one stage at a time.

    An array of `open_store` that was only narrowed is read straight from its files; of bfloat16
    that is widened to float32 the bits are read and kept, and widened when samples are taken.
    Any other array is read as xarray or dask reads it.

    Attributes:
        shape: number of stages, entities and tokens (1 for a dim that is not there).
        feature_shape: shape of one sample.
        names: coordinate of each of stage, entity and token, or None.
        stored: what is read straight from files, or None.
        held: dtype of the values that `fill` reads and `take` makes samples of.
    """

    def __init__(self, array: xr.DataArray, what: str) -> None:
        self.site = str(array.name)
        axes = ("stage", "entity", "token")
        features = [dim for dim in array.dims if dim not in axes]
        array = array.transpose(*(dim for dim in axes if dim in array.dims), *features)
        self.what = what
        self.names = {dim: array.coords[dim].variable if dim in array.coords else None for dim in axes}
        self.variable = array.variable
        sizes = array.sizes
        self.shape = tuple(sizes.get(dim, 1) for dim in axes)
        self.feature_shape = tuple(sizes[dim] for dim in features)
        stored = stored_selection(self.variable)
        bits = None if stored is None else stored.bits()
        self.stored = stored if bits is None else bits
        self._widens = bits is not None
        self.held: np.dtype[Any] = array.dtype if self.stored is None else self.stored.dtype
        self.row_nbytes = self.shape[2] * math.prod(self.feature_shape) * self.held.itemsize

    @property
    def high_latency(self) -> bool:
        """Whether a read waits for a network."""
        return self.stored is not None and self.stored.high_latency

    def read(self, stage: int, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Held values of some entities, shape (rows, tokens, features...).

        Read by the calling thread alone: several workers do not each start a pool of threads.
        """
        at_stage = {"stage": stage} if "stage" in self.variable.dims else {}
        values: NDArray[Any]
        if self.stored is not None:
            values = self.stored[self._key(stage, rows)]
        else:
            part = self.variable.isel({"entity": rows, **at_stage})
            values = part.data.compute(scheduler="synchronous") if part.chunks is not None else part.to_numpy()
        return values.reshape(-1, self.shape[2], *self.feature_shape)

    def fill(self, out: NDArray[Any], stage: int, start: int, stop: int) -> None:
        """Read held values of a range of entities into `out`, shape (rows * tokens, features...)."""
        if self.stored is None:
            out[:] = self.read(stage, slice(start, stop)).reshape(out.shape)
            return
        part = self.stored.narrow(self._key(stage, slice(start, stop)))
        part.fill(out.reshape(part.shape), [slice(0, size) for size in part.shape])

    def take(self, values: NDArray[Any], chosen: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Samples of held values [shape: (samples, features...)] into `out`, in the array's own dtype.

        On all cores that are free: one alone gathers slower than several read.
        """
        step = max(1, _TAKEN // max(1, math.prod(self.feature_shape) * self.held.itemsize))
        apart = step * max(1, -(-len(chosen) // (step * cores())))
        starts = range(0, len(chosen), apart)
        parts = [(chosen[start : start + apart], out[start : start + apart]) for start in starts]
        run_tasks([partial(self._take, values, *part, step) for part in parts])

    def _take(self, values: NDArray[Any], chosen: NDArray[np.int64], out: NDArray[Any], step: int) -> None:
        if not self._widens:
            np.take(values, chosen, axis=0, out=out, mode="clip")  # clip: no extra copy
            return
        for start in range(0, len(chosen), step):
            bfloat16_to_float32(values[chosen[start : start + step]], out[start : start + step])

    def blocks(self) -> list[tuple[int, int, int]]:
        """Ranges (stage, first entity, end) to read at once, along the blocks of the store or the array's chunks."""
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
        """The entities of a stage as a key of the stored array."""
        places = {"stage": stage, "entity": rows}
        return tuple(places.get(str(dim), slice(None)) for dim in self.variable.dims)

    def place(self, flat: int) -> dict[str, Any]:
        """Stage, entity and token of a sample by its number; an index for a dim without coordinate."""
        places = zip(("stage", "entity", "token"), np.unravel_index(flat, self.shape), strict=True)
        return {dim: self._name(dim, int(index)) for dim, index in places}

    def _name(self, dim: str, index: int) -> Any:
        variable = self.names[dim]
        if variable is None:
            return index
        return variable.values.item() if variable.ndim == 0 else variable[index].values.item()


def is_nan(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where values are NaN; those of bfloat16 may be given as their bits."""
    if values.dtype.name == "bfloat16":
        values = values.view(np.uint16)
    found: NDArray[np.bool_] = (values & 0x7FFF) > 0x7F80 if values.dtype == np.uint16 else np.isnan(values)
    return found


def as_tensor(values: NDArray[Any]) -> Tensor:
    """A tensor that shares the array's memory; ml_dtypes' bfloat16 becomes torch's."""
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(values if values.flags.writeable else values.copy())
