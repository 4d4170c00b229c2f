"""Outcomes of an intervention: losses of answers, their difference, a probability, a function of the user's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.interventions.output_readers import (
    AnswerReader,
    FunctionReader,
    OutcomeFunction,
    Reader,
)
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts

Ids = NDArray[np.int64]
#: Names of outcomes, with the unit of their values.
OUTCOMES = {
    "answer_loss": "nats per token",
    "answer_difference": "nats",
    "answer_probability": "probability",
    "probe_score": "score",
    "text": "share of texts",
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """An outcome and the sequences that it needs: one, or two with different answers, for each row.

    Attributes:
        name: name of the outcome.
        function: the user's function, or None.
        table: the prompts.
        variants: the prompts as token ids, with each of the answers.
    """

    name: str
    function: OutcomeFunction | None
    table: PromptTable
    variants: tuple[TokenizedPrompts, ...]

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return len(self.table)

    @property
    def runs_answers(self) -> bool:
        """Whether the model reads the answers too."""
        return self.function is None

    @property
    def lengths(self) -> Ids:
        """Tokens of every sequence, int64 array of shape (variants * rows,), one variant after the other."""
        return np.concatenate([v.total_lengths if self.runs_answers else v.lengths for v in self.variants])

    def batch(self, sequences: Ids, pad_to: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask of some sequences of one variant each, int64 tensors of shape (n, pad_to)."""
        ids, mask = np.empty((len(sequences), pad_to), np.int64), np.empty((len(sequences), pad_to), np.int64)
        for number, variant in enumerate(self.variants):
            own = np.flatnonzero(sequences // self.rows == number)
            ids[own], mask[own] = variant.batch(sequences[own] % self.rows, pad_to, answers=self.runs_answers)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def reader(self, adapter: Adapter, stage: str, directions_stage: str | None) -> Reader:
        """What judges the forward passes of one model.

        Args:
            adapter: a model after a dry run with logits.
            stage: name of the stage.
            directions_stage: stage whose directions the model has, or None.
        """
        if self.function is not None:
            return FunctionReader(adapter, self.function, self.table, self.variants[0].lengths)
        return AnswerReader(adapter, self.variants)

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn scores of sequences into the outcome of rows.

        Args:
            scores: float64 array of shape (..., variants * rows).

        Returns:
            float64 array of shape (..., rows).
        """
        if self.function is not None:
            return scores
        parts = np.split(scores, len(self.variants), axis=-1)
        if self.name == "answer_difference":  # log p(answer) - log p(the other answer)
            return parts[1] - parts[0]
        if self.name == "answer_probability":
            return np.exp(-parts[0])
        return parts[0] / self.variants[0].answer_lengths

    @property
    def digest(self) -> list[str]:
        """What identifies the outcome: its name, its tokens, and the code of a function."""
        parts = [self.name, *(variant.digest for variant in self.variants)]
        code = getattr(self.function, "__code__", None)
        if code is not None:
            parts += [code.co_code.hex(), repr(code.co_consts), repr(code.co_names)]
        return parts
