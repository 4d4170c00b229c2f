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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stratalens.store.arrays import cut
from stratalens.store.chunks import widen
from stratalens.store.errors import InputError, NotRecordedError
from stratalens.store.selected import behind
from stratalens.store.threads import cores, run_tasks

if TYPE_CHECKING:
    from stratalens.torch_batches import ShuffledBatches

BLOCK_BYTES = 4 << 20  # read at once
_TAKEN = 1 << 18  # widened while it is in the processor's cache

Sample = Tensor | tuple[Tensor, Tensor]


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
        stored = behind(self.variable)
        bits = None if stored is None else stored.bits()
        self.stored = stored if bits is None else bits
        self._widens = bits is not None
        self.held: np.dtype[Any] = array.dtype if self.stored is None else self.stored.dtype
        self.row_nbytes = self.shape[2] * math.prod(self.feature_shape) * self.held.itemsize

    @property
    def waiting(self) -> bool:
        """Whether a read waits for a network."""
        return self.stored is not None and self.stored.waiting

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
            widen(values[chosen[start : start + step]], out[start : start + step])

    def blocks(self) -> list[tuple[int, int, int]]:
        """Ranges (stage, first entity, end) to read at once, along the blocks of the store or the array's chunks."""
        entities = self.shape[1]
        if self.stored is not None:
            sizes: Sequence[int] = self.stored.grid(BLOCK_BYTES)[self.variable.dims.index("entity")]
        elif self.variable.chunks is not None:
            sizes = self.variable.chunksizes["entity"]
        else:
            # a power of two, as the blocks of the store are
            sizes = cut(entities, 1 << max((BLOCK_BYTES // max(self.row_nbytes, 1)).bit_length() - 1, 0))
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


class ActivationDataset(Dataset[Sample]):
    """Activations of one site and layer, one sample per (stage, entity, token).

    `dataset[i]` is a tensor of the feature dims, or (activations, label).
    Random access reads scattered rows; for training take `batches`, which reads
    whole blocks.

    Attributes:
        source: the lazy array.
        valid: sorted flat indices of the samples that exist, or None if all do.
        labels: one number per entity, or None.
    """

    def __init__(self, source: Source, *, valid: NDArray[np.int64] | None, labels: NDArray[Any] | None) -> None:
        self.source = source
        self.valid = valid
        self.labels = labels

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.source.feature_shape

    def __len__(self) -> int:
        return int(np.prod(self.source.shape, dtype=np.int64)) if self.valid is None else len(self.valid)

    def where(self, index: int) -> dict[str, Any]:
        """Stage, entity and token of a sample."""
        return self.source.place(int(np.ravel_multi_index(self._places(np.array([index])), self.source.shape)[0]))

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples at once, as torch's DataLoader asks for a batch."""
        stages, entities, tokens = self._places(np.asarray(indices, dtype=np.int64))
        source = self.source
        held = np.empty((len(stages), *self.feature_shape), dtype=source.held)
        for stage in np.unique(stages):
            of_stage = np.flatnonzero(stages == stage)
            rows, inverse = np.unique(entities[of_stage], return_inverse=True)
            held[of_stage] = source.read(int(stage), rows)[inverse, tokens[of_stage]]
        self.refuse_missing(held, np.ravel_multi_index((stages, entities, tokens), source.shape))
        found = np.empty(held.shape, dtype=source.variable.dtype)
        source.take(held, np.arange(len(held)), found)
        samples = as_tensor(found)
        if self.labels is None:
            return list(samples)
        return list(zip(samples, torch.from_numpy(self.labels[entities]), strict=True))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        buffer_bytes: int = 512 << 20,
        drop_last: bool = False,
    ) -> ShuffledBatches:
        """Batches in random order at the speed of reading whole blocks.

            batches = data.batches(4096)
            for epoch in range(10):
                batches.set_epoch(epoch)
                for x in batches: ...
            loader = DataLoader(batches, batch_size=None, num_workers=2)

        Blocks come in random order, each worker reading its own share of them;
        as many as fit in half of `buffer_bytes` are mixed sample by sample,
        while the next ones are read. Every sample comes once per epoch. Memory
        for mixing stays with the object from epoch to epoch.

        Args:
            batch_size: samples in a batch.
            shuffle: False gives the samples in order (with one worker).
            seed: the same seed gives the same order in every epoch until
                `set_epoch`; None draws from torch's generator, anew every epoch.
            buffer_bytes: memory for mixing, for each worker; bfloat16 takes two bytes a number of it.
            drop_last: leave out a worker's last, smaller batch.
        """
        from stratalens.torch_batches import ShuffledBatches

        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: a batch has at least 1 sample")
        return ShuffledBatches(self, batch_size, shuffle, seed, buffer_bytes, drop_last)

    def fill(self, out: NDArray[Any], block: tuple[int, int, int]) -> NDArray[np.int64]:
        """Read a block into `out` [shape: (rows * tokens, features...)], in the dtype that the source holds.

        Returns:
            Places in `out` of the samples that exist.
        """
        stage, start, stop = block
        self.source.fill(out, stage, start, stop)
        _, entities, tokens = self.source.shape
        first = (stage * entities + start) * tokens
        places = np.arange(len(out))
        if self.valid is not None:
            low, high = np.searchsorted(self.valid, [first, first + len(out)])
            places = self.valid[low:high] - first
        self.refuse_missing(out, first + places, places)
        return places

    def _places(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        count = len(self)
        outside = indices[(indices < -count) | (indices >= count)]
        if len(outside):
            raise IndexError(f"sample {outside[0]} of {count}")
        indices = np.where(indices < 0, indices + count, indices)
        flat = indices if self.valid is None else self.valid[indices]
        return np.unravel_index(flat, self.source.shape)

    def refuse_missing(
        self, held: NDArray[Any], flat: NDArray[np.int64], places: NDArray[np.int64] | None = None
    ) -> None:
        """NaN is what a position that a prompt lacks reads as; it is never handed out as an activation.

        Args:
            held: values in the dtype that the source holds, shape (samples, features...).
            flat: number of each sample among all of the source.
            places: where in `held` these samples lie; None takes all.
        """
        rows = held.reshape(len(held), -1)
        first = rows[:, 0] if places is None else rows[places, 0]
        suspects = np.flatnonzero(is_nan(first))  # one value a row: cheap
        for number in suspects:
            if is_nan(rows[number if places is None else places[number]]).all():
                break
        else:
            return
        at = self.source.place(int(flat[number]))
        raise NotRecordedError(
            f"{self.source.what}: nothing was recorded at stage {at['stage']!r}, entity {at['entity']!r}, token "
            f"{at['token']!r}; leave such samples out: torch_dataset(..., skip_missing=True)"
        )


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
