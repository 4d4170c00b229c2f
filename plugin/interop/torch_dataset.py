"""A torch Dataset of activations: random access, shuffled batches, and statistics for normalization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch.utils.data import Dataset

from stratalens.plugin.interop.torch_batches import Sample, ShuffledBatches
from stratalens.plugin.interop.torch_normalization import normalization
from stratalens.plugin.interop.torch_reader import as_tensor
from stratalens.plugin.interop.torch_samples import Samples
from stratalens.store.errors import InputError

_NORMALIZATION_BYTES = 16 << 20  # of float64, summed at once


class ActivationDataset(Samples, Dataset[Sample]):
    """Activations of one site: one sample per (stage, entity, token), or per (entity, token) if they are aligned.

    `dataset[i]` is a tensor of the feature dims, or (activations, label). Aligned samples have the dims stage and
    layer before them. Random access reads scattered rows. For training use `batches`, which reads complete
    blocks.

    Args:
        reader: the lazy array.
        valid: sorted int64 array of the flat indices of the samples that exist, or
            None if all exist.
        labels: array of shape (entities,), one number per entity, or None.
    """

    def where(self, index: int) -> dict[str, Any]:
        """Return stage, entity and token of a sample; entity and token of an aligned one."""
        return self.reader.locate(int(self._flat_indices(np.array([index]))[0]))

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return several samples; torch's DataLoader calls this for a batch."""
        reader = self.reader
        flat = self._flat_indices(np.asarray(indices, dtype=np.int64))
        stages, entities, tokens = np.unravel_index(flat, reader.shape)
        stored = np.empty((len(flat), *self.feature_shape), dtype=reader.stored_dtype)
        for stage in np.unique(stages):
            at_stage = np.flatnonzero(stages == stage)
            rows, inverse = np.unique(entities[at_stage], return_inverse=True)
            stored[at_stage] = reader.read(int(stage), rows)[inverse, tokens[at_stage]]
        parts = stored.reshape(len(stored), len(reader.parts), *reader.part_shape)
        for part in range(len(reader.parts)):
            self.check_recorded(parts[:, part], flat, part=part)
        values = np.empty(stored.shape, dtype=reader.dtype)
        part_rows = parts.reshape(-1, *reader.part_shape)
        reader.take_rows(part_rows, np.arange(len(part_rows)), values.reshape(part_rows.shape))
        samples = as_tensor(values)
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
        rank: tuple[int, int] | None = None,
    ) -> ShuffledBatches:
        """Return batches in random order at the speed of reading complete blocks.

        The blocks of the store come in random order, and each worker of each rank reads a separate
        share of them. As many blocks as fit in half of `buffer_bytes` are mixed sample
        by sample, while the next ones are read. Every sample comes once per epoch. The
        memory for mixing stays with the object from epoch to epoch.

            batches = data.batches(4096)
            for epoch in range(10):
                batches.set_epoch(epoch)
                for x in batches: ...
            loader = DataLoader(batches, batch_size=None, num_workers=2)

        `batches.state_dict()` is the position within the epoch, and `load_state_dict` resumes there. With workers, the
        StatefulDataLoader of torchdata saves the positions of all of them.

        Args:
            batch_size: samples in a batch.
            shuffle: False returns the samples in order (with one worker).
            seed: the same seed gives the same order in every epoch until
                `set_epoch`; None draws from torch's generator in every epoch.
            buffer_bytes: memory of each worker for mixing; bfloat16 takes two bytes per number. At least eight blocks
                are mixed: larger ones are divided, and a divided block is read up to twice in the first epoch.
            drop_last: leave out a worker's last, smaller batch.
            rank: (rank, number of ranks) of distributed training; None is a single process. Ranks need a seed.

        Raises:
            InputError: `batch_size` is less than 1, `rank` is not a rank, or ranks have no seed.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: a batch has at least 1 sample")
        if rank is not None and not 0 <= rank[0] < rank[1]:
            raise InputError(f"rank={rank}: give (rank, number of ranks), such as (0, 2) and (1, 2)")
        if rank is not None and rank[1] > 1 and shuffle and seed is None:
            raise InputError("seed is missing: all ranks need the same one, because each takes its share of one order")
        return ShuffledBatches(self, batch_size, shuffle, seed, buffer_bytes, drop_last, rank or (0, 1))

    def normalization(self, samples: int | None = None, *, seed: int = 0, buffer_bytes: int = 512 << 20) -> xr.Dataset:
        """Compute the mean, the mean norm and the scale of the samples, in float64.

        A crosscoder or SAE is trained on `x * scale`, so that the mean L2 norm of each stage and layer is the root of
        its width. This is the convention of Anthropic's crosscoders and of SAELens's `expected_average_only_in`. Others
        subtract `feature_mean` before, or divide by the root of `mean_square`.

        Args:
            samples: read only this many samples of random blocks, instead of all.
            seed: draws these blocks.
            buffer_bytes: memory for reading.

        Returns:
            Dataset with the dims of one sample, each variable float64:

            - feature_mean, feature_std (stage, layer, features): of each feature
            - mean_norm (stage, layer): mean of the L2 norms
            - mean_square (stage, layer): mean of the squared L2 norms
            - variance (stage, layer): mean squared distance from the mean, what a reconstruction has to explain
            - scale (stage, layer): root of the width / mean_norm

            Samples that are not aligned have no stage and layer. `attrs["samples"]` is the number of samples.

        Raises:
            InputError: `samples` is less than 1.
            NotRecordedError: there are no samples.
        """
        if samples is not None and samples < 1:
            raise InputError(f"samples={samples}: statistics need at least 1 sample")
        size = max(1, _NORMALIZATION_BYTES // (8 * max(1, math.prod(self.feature_shape))))
        everything = samples is None or samples >= len(self)
        batches = self.batches(size, shuffle=not everything, seed=seed, buffer_bytes=buffer_bytes)
        return normalization(self.reader, batches, len(self) if samples is None else samples)

    def _flat_indices(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of samples among all rows of the array.

        Raises:
            IndexError: a sample that does not exist.
        """
        count = len(self)
        outside = indices[(indices < -count) | (indices >= count)]
        if len(outside):
            raise IndexError(f"sample {outside[0]} of {count}")
        indices = np.where(indices < 0, indices + count, indices)
        return indices if self.valid is None else self.valid[indices]
