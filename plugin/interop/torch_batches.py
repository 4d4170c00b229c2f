"""Shuffled batches of complete blocks, and an iterator whose position can be saved and loaded."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from stratalens.plugin.interop.torch_memory import BatchMemory
from stratalens.plugin.interop.torch_reader import Block
from stratalens.plugin.interop.torch_samples import Samples
from stratalens.store.errors import InputError, MismatchError
from stratalens.store.threads import run_tasks

Sample = Tensor | tuple[Tensor, Tensor]

MIXED_BLOCKS = 8  # that a pool has at least

_EPOCH, _IN_WORKERS = 0, 1  # of the numbers that a process shares with its workers


@dataclass(eq=False)
class ShuffledBatches(IterableDataset[Sample]):
    """Batches of samples, as `ActivationDataset.batches` describes them."""

    data: Samples
    batch_size: int
    shuffle: bool
    seed: int | None
    buffer_bytes: int
    drop_last: bool
    rank: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        # Shared with persistent workers, which outlive an epoch.
        shared: Any = torch.zeros(2, dtype=torch.int64)
        self._shared: Tensor = shared.share_memory_()
        self._turns = 0
        self._buffers: list[_PoolBuffer] = []  # of earlier epochs
        self._progress: _Progress | None = None  # of the newest iterator
        self._resume: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the memory, which a worker allocates itself."""
        return {**self.__dict__, "_buffers": [], "_progress": None}

    @property
    def epoch(self) -> int:
        """The epoch of the last `set_epoch`, or of a loaded state."""
        return int(self._shared[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Select another order from the same seed.

        Call it before every epoch, as for torch's DistributedSampler. A loaded state stays valid for its own epoch.
        """
        self._shared[_EPOCH] = operator.index(epoch)

    @property
    def mixed_blocks(self) -> tuple[int, int]:
        """Number of blocks that are mixed sample by sample, and of all blocks of this rank, without workers."""
        plan = self._plan([self.seed or 0, self.epoch], 1, 0)
        return max((len(pool) for pool in plan.pools), default=0), sum(len(pool) for pool in plan.pools)

    def count(self, workers: int = 0) -> list[int]:
        """Return the number of batches of each rank in this epoch.

        Ranks of unequal blocks or rows have unequal numbers. DistributedDataParallel waits for all ranks at every
        step, so train on the first `min(batches.count(workers))` batches of each epoch.

        Args:
            workers: `num_workers` of the DataLoader.

        Raises:
            InputError: the order of a shuffled epoch is not known without a seed.
        """
        if self.shuffle and self.seed is None:
            raise InputError("count needs a seed: without one, the order of an epoch is drawn when it starts")
        entropy = [self.seed or 0, self.epoch]
        counts = []
        for rank in range(self.rank[1]):
            plans = [self._plan(entropy, max(1, workers), worker, rank) for worker in range(max(1, workers))]
            full = [plan.samples // self.batch_size for plan in plans]
            rest = [0 if self.drop_last else plan.samples % self.batch_size > 0 for plan in plans]
            counts.append(sum(full) + sum(rest))
        return counts

    def __iter__(self) -> BatchIterator:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        self._shared[_IN_WORKERS] = worker is not None
        if self.seed is not None:
            entropy = [self.seed, self.epoch]
        else:
            # Every worker must order the blocks equally. torch seeds worker i with (common seed + i), and a
            # persistent worker keeps its seed from epoch to epoch.
            seed = worker.seed - worker.id if worker is not None else int(torch.randint(2**62, ()).item())
            entropy = [seed, self._turns]
            self._turns += worker is not None
        iterator = BatchIterator(self, self._plan(entropy, workers, number))
        state, self._resume = self._resume, None
        if state is not None and state["epoch"] == self.epoch:
            iterator.load_state_dict(state)
        self._progress = iterator.progress
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the newest iterator: numbers only, for `torch.save` or JSON.

        Raises:
            InputError: workers read the batches, and only they know their positions.
        """
        if get_worker_info() is None and bool(self._shared[_IN_WORKERS]):
            raise InputError(
                "workers read these batches, and only they know their positions; load them with "
                "torchdata.stateful_dataloader.StatefulDataLoader(batches, batch_size=None, num_workers=...) and save "
                "the state_dict() of the loader"
            )
        if self._progress is not None:
            return self._progress.state()
        if self._resume is not None:
            return dict(self._resume)
        return {"epoch": self.epoch, "position": 0, "entropy": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position in the next iteration, if it is in the same epoch.

        Args:
            state: result of `state_dict`, of the same store and the same arguments. `batch_size` may differ.

        Raises:
            InputError: this is not the state of batches.
            MismatchError: the state is that of another data set or of other arguments; raised by the next iteration.
        """
        if absent := {"epoch", "position", "entropy"} - set(state):
            raise InputError(
                f"not the state of batches, because {', '.join(sorted(absent))} is missing: pass the result of "
                "batches.state_dict(); the state of a StatefulDataLoader belongs to the loader"
            )
        self._shared[_EPOCH] = state["epoch"]
        self._progress = None
        self._resume = dict(state) if state["entropy"] is not None else None

    def _plan(self, entropy: Sequence[int], workers: int, worker: int, rank: int | None = None) -> _Plan:
        """Divide the blocks of one worker of a rank into pools that are mixed together.

        A pool takes half of the buffer, because the next pool is read at the same time.
        """
        own, ranks = self.rank if rank is None else (rank, self.rank[1])
        share, shares = own * workers + worker, ranks * workers
        reader = self.data.reader
        half = self.buffer_bytes // 2
        blocks = reader.blocks(half // MIXED_BLOCKS, at_least=shares)
        if self.shuffle:
            order = np.random.default_rng(list(entropy)).permutation(len(blocks))
            blocks = [blocks[i] for i in order]
        pools: list[list[Block]] = []
        free = 0
        for block in blocks[share::shares]:
            _, start, stop = block
            nbytes = (stop - start) * reader.row_nbytes
            if not pools or nbytes > free:
                pools.append([])
                free = half
            pools[-1].append(block)
            free -= nbytes
        counts = [int(self.data.count(pool).sum()) for pool in pools]
        # What decides the order of the samples, so that a position means the same sample.
        identity = {
            "entropy": [int(number) for number in entropy],
            "shuffle": self.shuffle,
            "worker": worker,
            "workers": workers,
            "rank": own,
            "ranks": ranks,
            "samples": len(self.data),
            "row_bytes": reader.row_nbytes,
            "buffer_bytes": self.buffer_bytes,
            "blocks": len(blocks),
        }
        return _Plan(pools, counts, identity)

    def read(self, plan: _Plan, position: int) -> Iterator[Sample]:
        """Read batches from a position on.

        Args:
            plan: the pools of one worker.
            position: number of samples of the plan that come before the first batch.
        """
        rows = max((sum(stop - start for _, start, stop in pool) for pool in plan.pools), default=0)
        buffers = [self._buffer(rows) for _ in plan.pools[:2]]  # one is mixed while the other is filled
        try:
            yield from self._mixed_batches(plan, position, buffers)
        finally:
            self._buffers = [*self._buffers, *buffers][-2:]

    def _buffer(self, rows: int) -> _PoolBuffer:
        """Return memory for a pool of this many rows, from an earlier epoch if possible."""
        while self._buffers:
            buffer = self._buffers.pop()
            if buffer.rows >= rows:
                return buffer
        return _PoolBuffer(self.data, rows)

    def _mixed_batches(self, plan: _Plan, position: int, buffers: Sequence[_PoolBuffer]) -> Iterator[Sample]:
        data, pools = self.data, plan.pools
        mixer = np.random.default_rng([*plan.identity["entropy"], plan.share]) if self.shuffle else None
        first = 0
        while first < len(pools) and position >= plan.counts[first]:
            if mixer is not None:
                mixer.permutation(plan.counts[first])  # the order of the next pools follows the one of this pool
            position -= plan.counts[first]
            first += 1
        memory = BatchMemory(data.feature_shape, data.reader.dtype, self.batch_size)
        batch, filled = _Batch(data, memory), 0
        with ThreadPoolExecutor(1) as executor:
            pending = [executor.submit(buffers[0].fill, pools[first])] if first < len(pools) else []
            for number in range(first, len(pools)):
                buffer, order = buffers[(number - first) % 2], pending.pop().result()
                if number + 1 < len(pools):
                    pending.append(executor.submit(buffers[(number + 1 - first) % 2].fill, pools[number + 1]))
                if mixer is not None:
                    order = mixer.permutation(order)
                start, position = position, 0
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


@dataclass(frozen=True)
class _Plan:
    """Pools of blocks of one worker in one epoch.

    Attributes:
        pools: blocks that are mixed together.
        counts: number of samples of each pool.
        identity: what decides the order of the samples.
    """

    pools: list[list[Block]]
    counts: list[int]
    identity: dict[str, Any]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(self.counts)

    @property
    def share(self) -> int:
        """Number of the worker among the workers of all ranks."""
        return int(self.identity["rank"] * self.identity["workers"] + self.identity["worker"])


@dataclass
class _Progress:
    """Position of an iterator: the number of samples that it has returned."""

    epoch: int
    plan: _Plan
    position: int = 0

    def state(self) -> dict[str, Any]:
        """Return the position with everything that it depends on."""
        return {"epoch": self.epoch, "position": self.position, **self.plan.identity}


class BatchIterator(Iterator[Sample]):
    """Batches of one worker in one epoch, with a position that can be saved and loaded."""

    def __init__(self, batches: ShuffledBatches, plan: _Plan) -> None:
        self._batches = batches
        self.progress = _Progress(batches.epoch, plan)
        self._source: Any = None  # a generator, from the first batch on

    def __next__(self) -> Sample:
        if self._source is None:
            self._source = self._batches.read(self.progress.plan, self.progress.position)
        sample: Sample = next(self._source)
        self.progress.position += len(sample if isinstance(sample, Tensor) else sample[0])
        return sample

    def close(self) -> None:
        """Stop reading."""
        if self._source is not None:
            self._source.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position: numbers only."""
        return self.progress.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a saved position.

        Raises:
            MismatchError: the state is that of another data set, or of other arguments.
        """
        batches, identity = self._batches, self.progress.plan.identity
        if batches.seed is None and state["entropy"] is not None:  # each epoch draws its own
            plan = batches._plan(state["entropy"], identity["workers"], identity["worker"])
        else:
            plan = self.progress.plan
        for name, value in plan.identity.items():
            if state.get(name) != value:
                raise MismatchError(
                    f"{batches.data.reader.description}: the saved position was reached with {name}={state.get(name)}, "
                    f"and these batches have {name}={value}; use the same store, seed, buffer_bytes, ranks and workers"
                )
        self.close()
        self._source = None
        self.progress.epoch, self.progress.plan, self.progress.position = state["epoch"], plan, state["position"]


class _Batch:
    """One batch while it is filled."""

    def __init__(self, data: Samples, memory: BatchMemory) -> None:
        self.labels = data.labels
        self.tensor, self.values = memory.take()
        self.entities = np.empty(len(self.values), dtype=np.int64)

    def sample(self, count: int) -> Sample:
        """Return the first `count` samples, with their labels if the dataset has labels."""
        values, labels = self.tensor[:count], self.labels
        return values if labels is None else (values, torch.from_numpy(labels[self.entities[:count]]))


class _PoolBuffer:
    """Memory for one pool, used again and again: new memory costs as much as reading.

    `values` has shape (parts, samples, *part_shape), so that a part of a block is contiguous and read without a copy.
    """

    def __init__(self, data: Samples, rows: int) -> None:
        reader = data.reader
        self.data, self.rows = data, rows
        samples = rows * reader.shape[2]
        self.values = np.empty((len(reader.parts), samples, *reader.part_shape), dtype=reader.stored_dtype)
        self.entities = np.empty(samples, dtype=np.int64)

    def fill(self, pool: Sequence[Block]) -> NDArray[np.int64]:
        """Read all blocks of a pool.

        Returns:
            int64 array: indices in `values` of the samples, in the order of the blocks.
        """
        data, reader = self.data, self.data.reader
        tokens = reader.shape[2]
        edges = np.cumsum([0, *((stop - start) * tokens for _, start, stop in pool)]).tolist()
        tasks = []
        for block, low, high in zip(pool, edges[:-1], edges[1:], strict=True):
            _, start, stop = block
            self.entities[low:high] = np.repeat(np.arange(start, stop), tokens)
            parts = range(len(reader.parts))
            tasks += [partial(data.fill, self.values[part, low:high], block, part) for part in parts]
        run_tasks(tasks, high_latency=reader.high_latency)
        return np.concatenate([low + data.indices(block) for block, low in zip(pool, edges[:-1], strict=True)])
