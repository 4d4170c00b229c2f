"""Shuffled batches of activations at the speed of reading whole blocks.

What lives here: in which order blocks are read, by which worker, and how their
samples are mixed. What does not: reading a block (`torch_data.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from stratalens.torch_data import ActivationDataset, Sample, as_tensor

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
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another order from the same seed; call it before every epoch, as for torch's DistributedSampler."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        seed = self.seed
        if seed is None:
            # every worker must deal the blocks alike: torch gives worker i the seed (epoch's seed + i)
            seed = worker.seed - worker.id if worker is not None else int(torch.randint(2**62, ()).item())
        blocks = self.data.source.blocks()
        if self.shuffle:
            order = np.random.default_rng([seed, self.epoch]).permutation(len(blocks))
            blocks = [blocks[i] for i in order]
        mixer = np.random.default_rng([seed, self.epoch, number]) if self.shuffle else None
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
        rooms = [_Room(self.data, pools) for _ in pools[:2]]  # one is mixed while the other is filled
        batch, filled = self._empty(), 0
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(rooms[0].fill, pools[0])] if pools else []
            for number in range(len(pools)):
                room, count = rooms[number % 2], ahead.pop().result()
                if number + 1 < len(pools):
                    ahead.append(reader.submit(rooms[(number + 1) % 2].fill, pools[number + 1]))
                order = mixer.permutation(count) if mixer is not None else np.arange(count)
                start = 0
                while start < count:
                    chosen = order[start : start + self.batch_size - filled]
                    stop = filled + len(chosen)
                    for pooled, part in zip((room.values, room.entities), batch, strict=True):
                        np.take(pooled, chosen, axis=0, out=part[filled:stop], mode="clip")  # clip: no extra copy
                    start, filled = start + len(chosen), stop
                    if filled == self.batch_size:
                        yield self._sample(*batch)
                        batch, filled = self._empty(), 0
        if filled and not self.drop_last:
            yield self._sample(*(part[:filled] for part in batch))

    def _empty(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        source = self.data.source
        values = np.empty((self.batch_size, *source.feature_shape), dtype=source.variable.dtype)
        return values, np.empty(self.batch_size, dtype=np.int64)

    def _sample(self, values: NDArray[Any], entities: NDArray[np.int64]) -> Sample:
        labels = self.data.labels
        batch = as_tensor(values)
        return batch if labels is None else (batch, torch.from_numpy(labels[entities]))


class _Room:
    """Memory for one pool, used again for every second one: fresh memory costs as much as reading."""

    def __init__(self, data: ActivationDataset, pools: Sequence[Sequence[Block]]) -> None:
        source = data.source
        rows = max(sum(stop - start for _, start, stop in pool) for pool in pools)
        self.data = data
        self.values = np.empty((rows * source.shape[2], *source.feature_shape), dtype=source.variable.dtype)
        self.entities = np.empty(rows * source.shape[2], dtype=np.int64)

    def fill(self, pool: Sequence[Block]) -> int:
        """Read all blocks of a pool; how many samples they hold."""
        count = 0
        for block in pool:
            values, entities = self.data.read_block(block)
            self.values[count : count + len(values)] = values
            self.entities[count : count + len(values)] = entities
            count += len(values)
        return count
