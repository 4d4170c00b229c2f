"""Activations of a store as a torch Dataset with random access.

What lives here: how samples are numbered and read. What does not: shuffled
batches (`torch_batches.py`), choosing site, layer and stages, and the checks of
that choice (`bridges.py`).

A sample is the activation of one (stage, entity, token). Samples are numbered
in that order over the rows that were given; those that were not recorded are
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stratalens.store.errors import InputError, NotRecordedError

if TYPE_CHECKING:
    from stratalens.torch_batches import ShuffledBatches

_BLOCK_BYTES = 16 << 20  # rows read at once where the array does not say how it is chunked

Sample = Tensor | tuple[Tensor, Tensor]


class Source:
    """One lazy array, read as (rows, tokens, features...) of one stage at a time.

    Attributes:
        shape: number of stages, entities and tokens (1 for a dim that is not there).
        feature_shape: shape of one sample.
        names: coordinate of each of stage, entity and token, or None.
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
        self.row_nbytes = self.shape[2] * int(np.prod(self.feature_shape, dtype=np.int64)) * array.dtype.itemsize

    def read(self, stage: int, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Values of some entities, shape (rows, tokens, features...).

        Read by the calling thread alone: several workers do not each start a pool of threads.
        """
        at_stage = {"stage": stage} if "stage" in self.variable.dims else {}
        part = self.variable.isel({"entity": rows, **at_stage})
        values: NDArray[Any]
        values = part.data.compute(scheduler="synchronous") if part.chunks is not None else part.to_numpy()
        return values.reshape(-1, self.shape[2], *self.feature_shape)

    def blocks(self) -> list[tuple[int, int, int]]:
        """Ranges (stage, first entity, end) to read at once, along the array's own chunks."""
        entities = self.shape[1]
        if self.variable.chunks is not None:
            edges = [0, *np.cumsum(self.variable.chunksizes["entity"]).tolist()]
        else:
            # a power of two, as the blocks of the store are
            size = 1 << max((_BLOCK_BYTES // max(self.row_nbytes, 1)).bit_length() - 1, 0)
            edges = [*range(0, entities, size), entities]
        return [(stage, start, stop) for stage in range(self.shape[0]) for start, stop in pairwise(edges)]

    def name(self, dim: str, index: int) -> Any:
        """Coordinate value at an index; the index itself for a dim without coordinate."""
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
        places = self._places(np.array([index]))
        axes = ("stage", "entity", "token")
        return {dim: self.source.name(dim, int(place[0])) for dim, place in zip(axes, places, strict=True)}

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples at once, as torch's DataLoader asks for a batch."""
        stages, entities, tokens = self._places(np.asarray(indices, dtype=np.int64))
        found = np.empty((len(stages), *self.feature_shape), dtype=self.source.variable.dtype)
        for stage in np.unique(stages):
            of_stage = np.flatnonzero(stages == stage)
            rows, inverse = np.unique(entities[of_stage], return_inverse=True)
            values = self.source.read(int(stage), rows)
            found[of_stage] = values[inverse, tokens[of_stage]]
        self._refuse_missing(found, stages, entities, tokens)
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

            loader = DataLoader(data.batches(4096), batch_size=None, num_workers=2)

        Blocks come in random order, each worker reading its own share of them;
        as many as fit in half of `buffer_bytes` are mixed sample by sample,
        while the next ones are read. Every sample comes once per epoch.

        Args:
            batch_size: samples in a batch.
            shuffle: False gives the samples in order (with one worker).
            seed: the same seed gives the same order in every epoch until
                `set_epoch`; None draws from torch's generator, anew every epoch.
            buffer_bytes: memory for mixing, for each worker.
            drop_last: leave out a worker's last, smaller batch.
        """
        from stratalens.torch_batches import ShuffledBatches

        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: a batch has at least 1 sample")
        return ShuffledBatches(self, batch_size, shuffle, seed, buffer_bytes, drop_last)

    def read_block(self, block: tuple[int, int, int]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The existing samples of a block, shape (samples, features...), and the entity of each."""
        stage, start, stop = block
        tokens = self.source.shape[2]
        values = self.source.read(stage, slice(start, stop)).reshape(-1, *self.feature_shape)
        entities = np.repeat(np.arange(start, stop), tokens)
        if self.valid is not None:
            first = (stage * self.source.shape[1] + start) * tokens
            low, high = np.searchsorted(self.valid, [first, first + len(values)])
            if high - low < len(values):
                kept = self.valid[low:high] - first
                values, entities = values[kept], entities[kept]
        self._refuse_missing(values, np.full(len(values), stage), entities, None)
        return values, entities

    def _places(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        count = len(self)
        outside = indices[(indices < -count) | (indices >= count)]
        if len(outside):
            raise IndexError(f"sample {outside[0]} of {count}")
        indices = np.where(indices < 0, indices + count, indices)
        flat = indices if self.valid is None else self.valid[indices]
        return np.unravel_index(flat, self.source.shape)

    def _refuse_missing(
        self,
        values: NDArray[Any],
        stages: NDArray[np.int64],
        entities: NDArray[np.int64],
        tokens: NDArray[np.int64] | None,
    ) -> None:
        """NaN is what a position that a prompt lacks reads as; it is never handed out as an activation."""
        flat = values.reshape(len(values), -1)
        suspects = np.flatnonzero(np.isnan(flat[:, 0]))  # one value a row: cheap
        missing = [row for row in suspects if np.isnan(flat[row]).all()]
        if missing:
            row = missing[0]
            stage, entity = self.source.name("stage", int(stages[row])), self.source.name("entity", int(entities[row]))
            at = "" if tokens is None else f", token {self.source.name('token', int(tokens[row]))!r}"
            raise NotRecordedError(
                f"{self.source.what}: nothing was recorded at stage {stage!r}, entity {entity!r}{at}; leave such "
                "samples out: torch_dataset(..., skip_missing=True)"
            )


def as_tensor(values: NDArray[Any]) -> Tensor:
    """A tensor that shares the array's memory; ml_dtypes' bfloat16 becomes torch's."""
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(values if values.flags.writeable else values.copy())
