"""The tokens that a check runs: one short sequence, alone, with another one, and padded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LENGTH = 12  # tokens; a pass over a few tokens takes as long as it takes to read the weights
PADDING = 4

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


@dataclass(frozen=True)
class Sample:
    """One sequence, and the batches in which its values must be the same.

    Attributes:
        row: int64 tensor of shape (length,).
        padding: tokens of padding in a padded batch.
        vocabulary: number of token ids to fill padding with.
    """

    row: Tensor
    padding: int
    vocabulary: int

    def alone(self) -> Batch:
        """Return the row as a batch of one."""
        ids = self.row[None]
        return Batch(ids, torch.ones_like(ids))

    def stacked(self) -> Batch:
        """Return the row and a rotation of it, as a batch without padding."""
        ids = torch.stack([self.row, self.row.roll(1)])
        return Batch(ids, torch.ones_like(ids))

    def padded(self, side: str = "right") -> Batch:
        """Return the row twice, with different token ids on its padding.

        One pass over this batch serves all comparisons of padding.

        Args:
            side: "right" or "left".
        """
        length = len(self.row)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocabulary, (2, length + self.padding), generator=generator)
        columns = slice(0, length) if side == "right" else slice(self.padding, None)
        mask = torch.zeros_like(ids)
        ids[:, columns], mask[:, columns] = self.row, 1
        return Batch(ids, mask)


def choose_sample(rows: Iterable[NDArray[np.int64]], vocabulary: int, max_length: int | None) -> Sample:
    """Take the first tokens of the longest row.

    Args:
        rows: token ids of each prompt, int64 arrays of shape (length,), none empty.
        vocabulary: number of token ids of the model.
        max_length: longest sequence of the model in tokens, None if unknown. The padding has to fit too.
    """
    limit = LENGTH + PADDING if max_length is None else max_length
    length = min(LENGTH, max(1, limit * LENGTH // (LENGTH + PADDING)))
    row = max((row[:length] for row in rows), key=len)
    return Sample(torch.from_numpy(row.copy()), min(PADDING, max(0, limit - len(row))), vocabulary)


def random_row(vocabulary: int) -> NDArray[np.int64]:
    """Draw token ids for a model without a tokenizer."""
    return np.random.default_rng(0).integers(0, vocabulary, LENGTH)
