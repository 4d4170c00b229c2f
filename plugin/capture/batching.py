"""Batches: rows of similar length together, as many as fit into memory.

The lengths of the rows of one block alone decide how far each row is padded, whatever the batch size, an interruption
or a resumption. A recorded value can therefore change only with a model that computes other bits in another batch, as
mixtures of experts and state-space models do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stratalens.plugin.models.adapters import Adapter
from stratalens.store.errors import InputError

# One more bucket costs about as much as this many padding tokens, since every forward pass has a fixed cost.
_BUCKET_COST = 96
_TOKENS_CPU = 2048  # a larger batch is no faster on a CPU
_TOKENS_CUDA = 32768


@dataclass(frozen=True)
class Bucket:
    """Rows that are padded to the same length.

    Attributes:
        rows: rows of the table in ascending length, int64 array of shape (rows,).
        pad_to: tokens per row.
    """

    rows: NDArray[np.int64]
    pad_to: int

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Iterate over slices of at most `size` rows."""
        for start in range(0, len(self.rows), size):
            yield self.rows[start : start + size]


def length_buckets(rows: Sequence[int] | NDArray[np.int64], lengths: NDArray[np.int64]) -> list[Bucket]:
    """Group the rows of one block by length at the lowest cost in padding and forward passes.

    An exact dynamic programme over the distinct lengths: a bucket costs its padded tokens plus a fixed price. The
    result depends on the lengths alone.

    Args:
        rows: row numbers of the block.
        lengths: tokens of every row of the table with its answer, indexed by row number.

    Returns:
        The buckets in ascending length.

    Example:
        >>> [(b.rows.tolist(), b.pad_to) for b in length_buckets([0, 1, 2], np.array([5, 300, 6]))]
        [([0, 2], 6), ([1], 300)]
    """
    rows = np.asarray(rows, dtype=np.int64)
    if not len(rows):
        return []
    order = rows[np.argsort(lengths[rows], kind="stable")]
    values, counts = np.unique(lengths[rows], return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    best = np.zeros(len(values) + 1)
    cut = np.zeros(len(values) + 1, dtype=np.int64)
    for j in range(1, len(values) + 1):
        cost = best[:j] + (ends[j] - ends[:j]) * values[j - 1] + _BUCKET_COST
        cut[j] = int(np.argmin(cost))
        best[j] = cost[cut[j]]
    buckets: list[Bucket] = []
    j = len(values)
    while j:
        buckets.append(Bucket(order[ends[cut[j]] : ends[j]], int(values[j - 1])))
        j = int(cut[j])
    return buckets[::-1]


class BatchSize:
    """Rows per forward pass: a fixed number, or as many as fit; halved when memory runs out.

    Args:
        batch_size: rows, or "auto".
        adapter: the model.
        bytes_per_token: memory of one token in a forward pass, for "auto".

    Raises:
        InputError: `batch_size` is neither a positive int nor "auto".
    """

    def __init__(self, batch_size: int | str, adapter: Adapter, bytes_per_token: int) -> None:
        valid = batch_size == "auto" or (isinstance(batch_size, int) and batch_size >= 1)
        if isinstance(batch_size, bool) or not valid:
            raise InputError(f"batch_size={batch_size!r} is not valid. Pass a whole number from 1, or 'auto'.")
        self._rows: int | None = batch_size if isinstance(batch_size, int) else None
        cuda = adapter.device.type == "cuda"
        budget = free_memory(adapter.device) // (4 if cuda else 8)
        self._tokens = max(1, min(_TOKENS_CUDA if cuda else _TOKENS_CPU, budget // max(bytes_per_token, 1)))

    def rows(self, pad_to: int) -> int:
        """Compute how many rows of `pad_to` tokens run together."""
        return self._rows if self._rows is not None else max(1, self._tokens // pad_to)

    def shrink(self, failed: int, pad_to: int) -> bool:
        """Halve the size after `failed` rows of `pad_to` tokens ran out of memory.

        Returns:
            False when a single row was too much.
        """
        if failed <= 1:
            return False
        if self._rows is not None:
            self._rows = max(1, failed // 2)
        else:
            self._tokens = max(1, failed * pad_to // 2)
        return True


def free_memory(device: torch.device) -> int:
    """Measure the free bytes of the memory in which the model runs."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # the platform does not report free pages
        return 4 << 30


def out_of_memory(error: BaseException) -> bool:
    """Decide whether an exception means that a smaller batch may succeed."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator of torch raises a plain RuntimeError without a code, so its text is the only mark. A test
    # provokes the real error and fails when a new torch words it differently.
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "not enough memory: you tried to allocate" in str(error)
    )
