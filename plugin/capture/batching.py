"""Which rows run together, how far they are padded, and how many fit in memory at once.

Rows of one block of the store are sorted by length and cut into groups of one
padded length each. That decides every value: batch size, an interruption or a
resume cannot change what is recorded, since a batch is a slice of one group.
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

# A group of its own costs about as much as this many padding tokens (a forward pass has a fixed price).
_GROUP_COST = 96


_TOKENS_CPU = 2048  # beyond this many tokens a batch is no faster on a CPU, only larger


_TOKENS_CUDA = 32768


@dataclass(frozen=True)
class Bucket:
    """Rows that are padded to the same length.

    Attributes:
        rows: rows of the table, ascending in length.
        pad_to: tokens per row.
    """

    rows: NDArray[np.int64]
    pad_to: int

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Slices of at most `size` rows."""
        for start in range(0, len(self.rows), size):
            yield self.rows[start : start + size]


def length_buckets(rows: Sequence[int] | NDArray[np.int64], lengths: NDArray[np.int64]) -> list[Bucket]:
    """Group the rows of one block by length so that padding and the number of groups cost least.

    Exact dynamic programme over the distinct lengths: a group costs its padded tokens plus
    a fixed price. Depends on the lengths alone.

    Args:
        rows: row numbers of the block.
        lengths: tokens of every row of the table (with its answer), indexed by row number.

    >>> [(g.rows.tolist(), g.pad_to) for g in length_buckets([0, 1, 2], np.array([5, 300, 6]))]
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
        cost = best[:j] + (ends[j] - ends[:j]) * values[j - 1] + _GROUP_COST
        cut[j] = int(np.argmin(cost))
        best[j] = cost[cut[j]]
    groups: list[Bucket] = []
    j = len(values)
    while j:
        groups.append(Bucket(order[ends[cut[j]] : ends[j]], int(values[j - 1])))
        j = int(cut[j])
    return groups[::-1]


class BatchSize:
    """Rows per forward pass: fixed, or by memory, halved when memory runs out.

    Results do not depend on it (see `length_buckets`), so shrinking is always allowed.
    """

    def __init__(self, asked: int | str, adapter: Adapter, bytes_per_token: int) -> None:
        if isinstance(asked, bool) or not (asked == "auto" or (isinstance(asked, int) and asked >= 1)):
            raise InputError(f"batch_size={asked!r} is not valid. Pass a whole number from 1, or 'auto'.")
        self._rows: int | None = asked if isinstance(asked, int) else None
        cuda = adapter.device.type == "cuda"
        budget = free_memory(adapter.device) // (4 if cuda else 8)
        self._tokens = max(1, min(_TOKENS_CUDA if cuda else _TOKENS_CPU, budget // max(bytes_per_token, 1)))

    def rows(self, pad_to: int) -> int:
        """Rows of `pad_to` tokens that run together."""
        return self._rows if self._rows is not None else max(1, self._tokens // pad_to)

    def shrink(self, failed: int, pad_to: int) -> bool:
        """Halve after `failed` rows of `pad_to` tokens ran out of memory; False when one row was too much."""
        if failed <= 1:
            return False
        if self._rows is not None:
            self._rows = max(1, failed // 2)
        else:
            self._tokens = max(1, failed * pad_to // 2)
        return True


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the model runs."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not on this platform
        return 4 << 30


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a smaller batch may succeed.

    CUDA has its own class; the CPU allocator raises a plain RuntimeError, known by its text.
    """
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "not enough memory: you tried to allocate" in str(error)
    )
