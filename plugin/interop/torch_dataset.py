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
import operator
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from stratalens.plugin.interop.torch_reader import Source, as_tensor, is_nan
from stratalens.store.errors import InputError, NotRecordedError
from stratalens.store.threads import run_tasks

Sample = Tensor | tuple[Tensor, Tensor]


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


Block = tuple[int, int, int]


class ShuffledBatches(IterableDataset[Sample]):
    """Batches of an `ActivationDataset`, read by whole blocks; see `ActivationDataset.batches`."""

    def __init__(
        self,
        data: ActivationDataset,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        buffer_bytes: int,
        drop_last: bool,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.buffer_bytes = buffer_bytes
        self.drop_last = drop_last
        # Shared with workers, which outlive an epoch where they are persistent.
        epoch: Any = torch.zeros((), dtype=torch.int64)
        self._epoch: Tensor = epoch.share_memory_()
        self._turns = 0
        self._rooms: list[_Room] = []  # of epochs that have ended

    def __getstate__(self) -> dict[str, Any]:
        """Memory does not travel to a worker."""
        return {**self.__dict__, "_rooms": []}

    @property
    def epoch(self) -> int:
        """The epoch that was set last."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Another order from the same seed; call it before every epoch, as for torch's DistributedSampler."""
        self._epoch.fill_(operator.index(epoch))

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        if self.seed is not None:
            drawn = [self.seed, self.epoch]
        else:
            # every worker must deal the blocks alike: torch gives worker i the seed (seed of all + i), and one that is
            # persistent keeps it from epoch to epoch
            seed = worker.seed - worker.id if worker is not None else int(torch.randint(2**62, ()).item())
            drawn = [seed, self._turns]
            self._turns += worker is not None
        blocks = self.data.source.blocks()
        if self.shuffle:
            order = np.random.default_rng(drawn).permutation(len(blocks))
            blocks = [blocks[i] for i in order]
        mixer = np.random.default_rng([*drawn, number]) if self.shuffle else None
        return self._batches(self._pools(blocks[number::workers]), mixer)

    def _pools(self, blocks: Sequence[Block]) -> list[list[Block]]:
        """Blocks that are mixed with each other: half of the buffer, since the next pool is read meanwhile."""
        pools: list[list[Block]] = []
        left = 0
        for block in blocks:
            nbytes = (block[2] - block[1]) * self.data.source.row_nbytes
            if not pools or nbytes > left:
                pools.append([])
                left = self.buffer_bytes // 2
            pools[-1].append(block)
            left -= nbytes
        return pools

    def _batches(self, pools: Sequence[Sequence[Block]], mixer: np.random.Generator | None) -> Iterator[Sample]:
        rows = max((sum(stop - start for _, start, stop in pool) for pool in pools), default=0)
        rooms = [self._room(rows) for _ in pools[:2]]  # one is mixed while the other is filled
        try:
            yield from self._mixed(pools, rooms, mixer)
        finally:
            self._rooms = [*self._rooms, *rooms][-2:]

    def _room(self, rows: int) -> _Room:
        """Memory for a pool of so many rows, that of an earlier epoch where there is some."""
        while self._rooms:
            room = self._rooms.pop()
            if room.rows >= rows:
                return room
        return _Room(self.data, rows)

    def _mixed(
        self, pools: Sequence[Sequence[Block]], rooms: Sequence[_Room], mixer: np.random.Generator | None
    ) -> Iterator[Sample]:
        data = self.data
        memory = _Memory(data, self.batch_size)
        batch, filled = _Batch(data, memory), 0
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(rooms[0].fill, pools[0])] if pools else []
            for number in range(len(pools)):
                room, order = rooms[number % 2], ahead.pop().result()
                if number + 1 < len(pools):
                    ahead.append(reader.submit(rooms[(number + 1) % 2].fill, pools[number + 1]))
                if mixer is not None:
                    order = mixer.permutation(order)
                start = 0
                while start < len(order):
                    chosen = order[start : start + self.batch_size - filled]
                    stop = filled + len(chosen)
                    data.source.take(room.values, chosen, batch.values[filled:stop])
                    batch.entities[filled:stop] = room.entities[chosen]
                    start, filled = start + len(chosen), stop
                    if filled == self.batch_size:
                        yield batch.sample(filled)
                        batch, filled = _Batch(data, memory), 0
        if filled and not self.drop_last:
            yield batch.sample(filled)


class _Memory:
    """Memory for batches: used again once nobody holds the tensor that lay in it, since fresh memory costs as much
    as reading. In a worker it is shared with the process that trains, so that nothing is copied on the way there."""

    def __init__(self, data: ActivationDataset, size: int) -> None:
        self.shape, self.dtype = (size, *data.feature_shape), data.source.variable.dtype
        self.shared = get_worker_info() is not None
        self._free: deque[NDArray[Any]] = deque()

    def take(self) -> tuple[Tensor, NDArray[Any]]:
        """A tensor, and the array in its memory."""
        if self.shared:
            untyped: Any = torch.UntypedStorage
            storage = untyped._new_shared(math.prod(self.shape) * self.dtype.itemsize)  # as default_collate does
            like: Any = as_tensor(np.empty(0, dtype=self.dtype))
            tensor: Tensor = like.set_(storage, 0, self.shape)
            bits = tensor.view(torch.int16) if self.dtype.name == "bfloat16" else tensor
            return tensor, bits.numpy().view(self.dtype)
        memory = self._free.popleft() if self._free else np.empty(self.shape, dtype=self.dtype)
        lent = memory.view(np.uint16) if self.dtype.name == "bfloat16" else memory.view()
        tensor = torch.from_numpy(lent)  # holds this very view, and so does whatever shares the tensor's memory
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return tensor.view(torch.bfloat16) if self.dtype.name == "bfloat16" else tensor, memory


class _Batch:
    """One batch that is being filled."""

    def __init__(self, data: ActivationDataset, memory: _Memory) -> None:
        self.labels = data.labels
        self.tensor, self.values = memory.take()
        self.entities = np.empty(len(self.values), dtype=np.int64)

    def sample(self, count: int) -> Sample:
        """The first `count` samples, with their labels where there are any."""
        values, labels = self.tensor[:count], self.labels
        return values if labels is None else (values, torch.from_numpy(labels[self.entities[:count]]))


class _Room:
    """Memory for one pool, used again and again: fresh memory costs as much as reading."""

    def __init__(self, data: ActivationDataset, rows: int) -> None:
        source = data.source
        self.data, self.rows = data, rows
        self.values = np.empty((rows * source.shape[2], *source.feature_shape), dtype=source.held)
        self.entities = np.empty(rows * source.shape[2], dtype=np.int64)

    def fill(self, pool: Sequence[Block]) -> NDArray[np.int64]:
        """Read all blocks of a pool; where in `values` its samples lie, in the order of the blocks."""
        source, tokens = self.data.source, self.data.source.shape[2]
        edges = np.cumsum([0, *((stop - start) * tokens for _, start, stop in pool)])
        found: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(pool)

        def read(number: int) -> None:
            block, low, high = pool[number], int(edges[number]), int(edges[number + 1])
            found[number] = low + self.data.fill(self.values[low:high], block)
            self.entities[low:high] = np.repeat(np.arange(block[1], block[2]), tokens)

        run_tasks([partial(read, number) for number in range(len(pool))], high_latency=source.high_latency)
        return np.concatenate(found)
