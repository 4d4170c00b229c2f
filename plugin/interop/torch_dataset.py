"""A torch Dataset of activations: random access, and batches of complete blocks."""

from __future__ import annotations

import math
import operator
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from stratalens.plugin.compat import shared_storage
from stratalens.plugin.interop.torch_reader import ArrayReader, Block, as_tensor, is_nan
from stratalens.store.errors import InputError, NotRecordedError
from stratalens.store.threads import run_tasks

Sample = Tensor | tuple[Tensor, Tensor]


class ActivationDataset(Dataset[Sample]):
    """Activations of one site and layer, one sample per (stage, entity, token).

    `dataset[i]` is a tensor of the feature dims, or (activations, label). Random
    access reads scattered rows. For training use `batches`, which reads complete
    blocks.

    Args:
        reader: the lazy array.
        valid: sorted int64 array of the flat indices of the samples that exist, or
            None if all exist.
        labels: array of shape (entities,), one number per entity, or None.
    """

    def __init__(self, reader: ArrayReader, *, valid: NDArray[np.int64] | None, labels: NDArray[Any] | None) -> None:
        self.reader = reader
        self.valid = valid
        self.labels = labels

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.reader.feature_shape

    def __len__(self) -> int:
        return int(np.prod(self.reader.shape, dtype=np.int64)) if self.valid is None else len(self.valid)

    def where(self, index: int) -> dict[str, Any]:
        """Return stage, entity and token of a sample."""
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
        self._check_recorded(stored, flat)
        values = np.empty(stored.shape, dtype=reader.dtype)
        reader.take(stored, np.arange(len(stored)), values)
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
    ) -> ShuffledBatches:
        """Return batches in random order at the speed of reading complete blocks.

        The blocks of the store come in random order, and each worker reads a separate
        share of them. As many blocks as fit in half of `buffer_bytes` are mixed sample
        by sample, while the next ones are read. Every sample comes once per epoch. The
        memory for mixing stays with the object from epoch to epoch.

            batches = data.batches(4096)
            for epoch in range(10):
                batches.set_epoch(epoch)
                for x in batches: ...
            loader = DataLoader(batches, batch_size=None, num_workers=2)

        Args:
            batch_size: samples in a batch.
            shuffle: False returns the samples in order (with one worker).
            seed: the same seed gives the same order in every epoch until
                `set_epoch`; None draws from torch's generator in every epoch.
            buffer_bytes: memory of each worker for mixing; bfloat16 takes two bytes per number.
            drop_last: leave out a worker's last, smaller batch.

        Raises:
            InputError: `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: a batch has at least 1 sample")
        return ShuffledBatches(self, batch_size, shuffle, seed, buffer_bytes, drop_last)

    def fill(self, out: NDArray[Any], block: Block) -> NDArray[np.int64]:
        """Read a block into memory.

        Args:
            out: array of the stored dtype and of shape (rows * tokens, features...).
            block: rows to read.

        Returns:
            int64 array: indices in `out` of the samples that exist.
        """
        self.reader.fill(out, block)
        stage, start, _ = block
        _, entities, tokens = self.reader.shape
        first = (stage * entities + start) * tokens
        indices = np.arange(len(out))
        if self.valid is not None:
            low, high = np.searchsorted(self.valid, [first, first + len(out)])
            indices = self.valid[low:high] - first
        self._check_recorded(out, first + indices, indices)
        return indices

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

    def _check_recorded(
        self, stored: NDArray[Any], flat: NDArray[np.int64], indices: NDArray[np.int64] | None = None
    ) -> None:
        """Raise NotRecordedError if a sample is NaN.

        NaN is the value of a position that does not exist.

        Args:
            stored: array of the stored dtype and of shape (samples, features...).
            flat: int64 array, number of each sample among all rows of the array.
            indices: int64 array, the same samples in `stored`; None means all of them.
        """
        rows = stored.reshape(len(stored), -1)
        first = rows[:, 0] if indices is None else rows[indices, 0]
        for number in np.flatnonzero(is_nan(first)):  # one value per row is enough to exclude almost all rows
            if is_nan(rows[number if indices is None else indices[number]]).all():
                at = self.reader.locate(int(flat[number]))
                raise NotRecordedError(
                    f"{self.reader.description}: nothing was recorded at stage {at['stage']!r}, entity "
                    f"{at['entity']!r}, token {at['token']!r}; leave such samples out: "
                    "torch_dataset(..., skip_missing=True)"
                )


@dataclass(eq=False)
class ShuffledBatches(IterableDataset[Sample]):
    """Batches of an `ActivationDataset`, as its method `batches` describes them."""

    data: ActivationDataset
    batch_size: int
    shuffle: bool
    seed: int | None
    buffer_bytes: int
    drop_last: bool

    def __post_init__(self) -> None:
        # Shared with persistent workers, which outlive an epoch.
        epoch: Any = torch.zeros((), dtype=torch.int64)
        self._epoch: Tensor = epoch.share_memory_()
        self._turns = 0
        self._buffers: list[_PoolBuffer] = []  # of earlier epochs

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the memory, which a worker allocates itself."""
        return {**self.__dict__, "_buffers": []}

    @property
    def epoch(self) -> int:
        """The epoch of the last `set_epoch`."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Select another order from the same seed.

        Call it before every epoch, as for torch's DistributedSampler.
        """
        self._epoch.fill_(operator.index(epoch))

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        if self.seed is not None:
            entropy = [self.seed, self.epoch]
        else:
            # Every worker must order the blocks equally. torch seeds worker i with (common seed + i), and a
            # persistent worker keeps its seed from epoch to epoch.
            seed = worker.seed - worker.id if worker is not None else int(torch.randint(2**62, ()).item())
            entropy = [seed, self._turns]
            self._turns += worker is not None
        blocks = self.data.reader.blocks()
        if self.shuffle:
            order = np.random.default_rng(entropy).permutation(len(blocks))
            blocks = [blocks[i] for i in order]
        mixer = np.random.default_rng([*entropy, number]) if self.shuffle else None
        return self._batches(self._pools(blocks[number::workers]), mixer)

    def _pools(self, blocks: Sequence[Block]) -> list[list[Block]]:
        """Group blocks into pools that are mixed together.

        A pool takes half of the buffer, because the next pool is read at the same time.
        """
        pools: list[list[Block]] = []
        free = 0
        for block in blocks:
            _, start, stop = block
            nbytes = (stop - start) * self.data.reader.row_nbytes
            if not pools or nbytes > free:
                pools.append([])
                free = self.buffer_bytes // 2
            pools[-1].append(block)
            free -= nbytes
        return pools

    def _batches(self, pools: Sequence[Sequence[Block]], mixer: np.random.Generator | None) -> Iterator[Sample]:
        rows = max((sum(stop - start for _, start, stop in pool) for pool in pools), default=0)
        buffers = [self._buffer(rows) for _ in pools[:2]]  # one is mixed while the other is filled
        try:
            yield from self._mixed_batches(pools, buffers, mixer)
        finally:
            self._buffers = [*self._buffers, *buffers][-2:]

    def _buffer(self, rows: int) -> _PoolBuffer:
        """Return memory for a pool of this many rows, from an earlier epoch if possible."""
        while self._buffers:
            buffer = self._buffers.pop()
            if buffer.rows >= rows:
                return buffer
        return _PoolBuffer(self.data, rows)

    def _mixed_batches(
        self, pools: Sequence[Sequence[Block]], buffers: Sequence[_PoolBuffer], mixer: np.random.Generator | None
    ) -> Iterator[Sample]:
        data = self.data
        memory = _BatchMemory(data, self.batch_size)
        batch, filled = _Batch(data, memory), 0
        with ThreadPoolExecutor(1) as executor:
            pending = [executor.submit(buffers[0].fill, pools[0])] if pools else []
            for number in range(len(pools)):
                buffer, order = buffers[number % 2], pending.pop().result()
                if number + 1 < len(pools):
                    pending.append(executor.submit(buffers[(number + 1) % 2].fill, pools[number + 1]))
                if mixer is not None:
                    order = mixer.permutation(order)
                start = 0
                while start < len(order):
                    indices = order[start : start + self.batch_size - filled]
                    stop = filled + len(indices)
                    data.reader.take(buffer.values, indices, batch.values[filled:stop])
                    batch.entities[filled:stop] = buffer.entities[indices]
                    start, filled = start + len(indices), stop
                    if filled == self.batch_size:
                        yield batch.sample(filled)
                        batch, filled = _Batch(data, memory), 0
        if filled and not self.drop_last:
            yield batch.sample(filled)


class _BatchMemory:
    """Memory for batches, reused after all tensors in it are gone.

    New memory costs as much as reading. In a worker the memory is shared with the
    process that trains, so that no batch is copied.
    """

    def __init__(self, data: ActivationDataset, size: int) -> None:
        self.shape, self.dtype = (size, *data.feature_shape), data.reader.dtype
        self.shared = get_worker_info() is not None
        self._free: deque[NDArray[Any]] = deque()

    def take(self) -> tuple[Tensor, NDArray[Any]]:
        """Return a tensor, and an array in the same memory."""
        is_bfloat16 = self.dtype.name == "bfloat16"
        if self.shared:
            empty: Any = as_tensor(np.empty(0, dtype=self.dtype))
            tensor: Tensor = empty.set_(shared_storage(math.prod(self.shape) * self.dtype.itemsize), 0, self.shape)
            bits = tensor.view(torch.int16) if is_bfloat16 else tensor
            return tensor, bits.numpy().view(self.dtype)
        memory = self._free.popleft() if self._free else np.empty(self.shape, dtype=self.dtype)
        view = memory.view(np.uint16) if is_bfloat16 else memory.view()
        tensor = torch.from_numpy(view)  # this view lives as long as any tensor in the memory
        weakref.finalize(view, self._free.append, memory).atexit = False
        return tensor.view(torch.bfloat16) if is_bfloat16 else tensor, memory


class _Batch:
    """One batch while it is filled."""

    def __init__(self, data: ActivationDataset, memory: _BatchMemory) -> None:
        self.labels = data.labels
        self.tensor, self.values = memory.take()
        self.entities = np.empty(len(self.values), dtype=np.int64)

    def sample(self, count: int) -> Sample:
        """Return the first `count` samples, with their labels if the dataset has labels."""
        values, labels = self.tensor[:count], self.labels
        return values if labels is None else (values, torch.from_numpy(labels[self.entities[:count]]))


class _PoolBuffer:
    """Memory for one pool, used again and again: new memory costs as much as reading."""

    def __init__(self, data: ActivationDataset, rows: int) -> None:
        reader = data.reader
        self.data, self.rows = data, rows
        self.values = np.empty((rows * reader.shape[2], *reader.feature_shape), dtype=reader.stored_dtype)
        self.entities = np.empty(rows * reader.shape[2], dtype=np.int64)

    def fill(self, pool: Sequence[Block]) -> NDArray[np.int64]:
        """Read all blocks of a pool.

        Returns:
            int64 array: indices in `values` of the samples, in the order of the blocks.
        """
        reader = self.data.reader
        tokens = reader.shape[2]
        edges = np.cumsum([0, *((stop - start) * tokens for _, start, stop in pool)]).tolist()
        indices: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(pool)

        def read(number: int) -> None:
            low, high = edges[number], edges[number + 1]
            _, start, stop = pool[number]
            indices[number] = low + self.data.fill(self.values[low:high], pool[number])
            self.entities[low:high] = np.repeat(np.arange(start, stop), tokens)

        run_tasks([partial(read, number) for number in range(len(pool))], high_latency=reader.high_latency)
        return np.concatenate(indices)
