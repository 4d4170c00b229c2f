"""The rows that a check runs: a few short sequences of different lengths, alone and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_ROWS = 4
MAX_TOKENS = 64  # over all rows

TEXTS = (
    "The river rose for three days, and then the bridge near the old mill was closed to all traffic.",
    "Marie Curie was born in Warsaw and worked in Paris.",
    "Two plus two is four.",
    "Rain again.",
)


@dataclass(frozen=True)
class Batch:
    """Token ids with their mask.

    Attributes:
        ids: int64 tensor of shape (batch, position).
        mask: int64 tensor of shape (batch, position), 1 on tokens and 0 on padding.
    """

    ids: Tensor
    mask: Tensor

    def select(self, value: Tensor) -> Tensor:
        """Return the vectors of a value at the tokens, of shape (tokens, ...), row by row."""
        mask = self.mask.to(value.device).bool()
        if value.shape[0] == 1 and len(mask) > 1:  # a value that all rows share, such as position embeddings
            value = value.expand(len(mask), *value.shape[1:])
        return value[mask]


@dataclass(frozen=True)
class Sample:
    """Rows of different lengths.

    Attributes:
        rows: int64 tensors of shape (length,), longest first.
        vocabulary: number of token ids to fill padding with.
    """

    rows: tuple[Tensor, ...]
    vocabulary: int

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row) for row in self.rows)

    def alone(self, row: int) -> Batch:
        """Return one row as a batch without padding."""
        ids = self.rows[row][None]
        return Batch(ids, torch.ones_like(ids))

    def stacked(self) -> Batch:
        """Return the longest row and a rotation of it, as a batch without padding."""
        ids = torch.stack([self.rows[0], self.rows[0].roll(1)])
        return Batch(ids, torch.ones_like(ids))

    def padded(self, side: str = "right", fill: int = 0) -> Batch:
        """Return all rows as one batch.

        Args:
            side: "right" or "left".
            fill: number of the filling: different numbers put different token ids on the padding.
        """
        length = len(self.rows[0])
        generator = torch.Generator().manual_seed(fill)
        ids = torch.randint(0, self.vocabulary, (len(self.rows), length), generator=generator)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(self.rows):
            columns = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
            ids[i, columns] = row
            mask[i, columns] = 1
        return Batch(ids, mask)


def choose_sample(rows: Sequence[NDArray[np.int64]], vocabulary: int, max_length: int | None) -> Sample:
    """Take at most 4 rows and 64 tokens, of lengths that need padding.

    Args:
        rows: token ids of each prompt, int64 arrays of shape (length,), none empty.
        vocabulary: number of token ids of the model.
        max_length: longest sequence of the model in tokens, None if unknown.
    """
    longest = min(MAX_TOKENS // MAX_ROWS, max_length or MAX_TOKENS)
    chosen = [row[:longest] for row in rows[:MAX_ROWS]]
    while len(chosen) < MAX_ROWS:  # a table with fewer rows: prefixes of them
        chosen.append(chosen[len(chosen) % len(rows)])
    chosen.sort(key=len, reverse=True)
    # Rows of one length would need no padding, so later ones are cut.
    lengths = [min(len(row), max(1, len(chosen[0]) * (MAX_ROWS - i) // MAX_ROWS)) for i, row in enumerate(chosen)]
    return Sample(tuple(torch.from_numpy(row[:n].copy()) for row, n in zip(chosen, lengths, strict=True)), vocabulary)


def random_rows(vocabulary: int) -> list[NDArray[np.int64]]:
    """Draw rows of token ids for a model without a tokenizer."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, length) for length in (16, 12, 8, 4)]
