"""The rows that a check runs: two short sequences of different lengths, alone and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_ROWS = 2  # a long row needs no padding, and a short one does; more rows cost time and find nothing else
MAX_TOKENS = 32  # over all rows
SHORT_ROWS = (1, 2)  # rows of a padded batch that are equal but for the padding

TEXTS = (
    "The river rose for three days, and then the bridge near the old mill was closed to all traffic.",
    "Marie Curie was born in Warsaw and worked in Paris.",
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


@dataclass(frozen=True)
class Sample:
    """Rows of different lengths.

    Attributes:
        rows: a long and a short row, int64 tensors of shape (length,).
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

    def padded(self, side: str = "right") -> Batch:
        """Return the long row, and the short row twice with different token ids on its padding.

        One pass over this batch serves all comparisons of padding.

        Args:
            side: "right" or "left".
        """
        long, short = self.rows
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocabulary, (3, len(long)), generator=generator)
        mask = torch.zeros_like(ids)
        for i, row in enumerate((long, short, short)):
            columns = slice(0, len(row)) if side == "right" else slice(len(long) - len(row), len(long))
            ids[i, columns] = row
            mask[i, columns] = 1
        return Batch(ids, mask)


def choose_sample(rows: Sequence[NDArray[np.int64]], vocabulary: int, max_length: int | None) -> Sample:
    """Take at most 2 rows and 32 tokens, of lengths that need padding.

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
    return [rng.integers(0, vocabulary, length) for length in (16, 8)]
