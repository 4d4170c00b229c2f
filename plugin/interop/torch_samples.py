"""Activations of one site as numbered samples, of which some may not exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.interop.torch_reader import ArrayReader, Block, is_nan
from stratalens.store.errors import NotRecordedError


class Samples:
    """Samples of a lazy array, numbered without those that do not exist.

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

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dims of one sample, such as ("stage", "layer", "d_model") or ("d_model",)."""
        return self.reader.dims

    def __len__(self) -> int:
        return int(np.prod(self.reader.shape, dtype=np.int64)) if self.valid is None else len(self.valid)

    def count(self, blocks: Sequence[Block]) -> NDArray[np.int64]:
        """Return the number of samples in each block, without reading it."""
        edges = np.array([self._flat_range(block) for block in blocks], dtype=np.int64).reshape(-1, 2)
        if self.valid is not None:
            edges = np.searchsorted(self.valid, edges)
        counts: NDArray[np.int64] = edges[:, 1] - edges[:, 0]
        return counts

    def indices(self, block: Block) -> NDArray[np.int64]:
        """Return the indices of the samples that exist among the rows and tokens of a block."""
        first, end = self._flat_range(block)
        if self.valid is None:
            return np.arange(end - first)
        low, high = np.searchsorted(self.valid, [first, end])
        return self.valid[low:high] - first

    def fill(self, out: NDArray[Any], block: Block, part: int = 0) -> None:
        """Read one part of a block into memory.

        Args:
            out: array of the stored dtype and of shape (rows * tokens, *part_shape).
            block: rows to read.
            part: number of the part; 0 if samples are not aligned.

        Raises:
            NotRecordedError: a sample that exists has no values.
        """
        self.reader.fill(out, block, part)
        indices = self.indices(block)
        self.check_recorded(out, self._flat_range(block)[0] + indices, indices, part)

    def check_recorded(
        self, stored: NDArray[Any], flat: NDArray[np.int64], indices: NDArray[np.int64] | None = None, part: int = 0
    ) -> None:
        """Raise NotRecordedError if a part of a sample is NaN.

        NaN is the value of a position that does not exist.

        Args:
            stored: array of the stored dtype and of shape (samples, *part_shape).
            flat: int64 array, number of each sample among all rows of the array.
            indices: int64 array, the same samples in `stored`; None means all of them.
            part: number of the part in `stored`.
        """
        rows = stored.reshape(len(stored), -1)
        first = rows[:, 0] if indices is None else rows[indices, 0]
        for number in np.flatnonzero(is_nan(first)):  # one value per row is enough to exclude almost all rows
            if is_nan(rows[number if indices is None else indices[number]]).all():
                at = self.reader.locate(int(flat[number]), part)
                places = ", ".join(f"{dim} {label!r}" for dim, label in at.items())
                raise NotRecordedError(
                    f"{self.reader.description}: nothing was recorded at {places}; leave such samples out: "
                    "torch_dataset(..., skip_missing=True)"
                )

    def _flat_range(self, block: Block) -> tuple[int, int]:
        """Return the range of a block among all rows of the array."""
        stage, start, stop = block
        _, entities, tokens = self.reader.shape
        return (stage * entities + start) * tokens, (stage * entities + stop) * tokens
