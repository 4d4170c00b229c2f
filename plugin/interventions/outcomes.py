"""What an intervention is judged by: losses of answers, their difference, a probability, a function of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.output_hooks import head_is_separable
from stratalens.plugin.capture.statistics import negative_log_likelihood
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.prompts.columns import name_rows
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts, tokenize
from stratalens.store.errors import InputError, suggest

Ids = NDArray[np.int64]
#: Names of outcomes, with the unit of their values.
OUTCOMES = {
    "answer_loss": "nats per token",
    "answer_difference": "nats",
    "answer_probability": "probability",
}
_CHUNK = 1 << 24  # logits in memory at a time


@dataclass(frozen=True)
class OutcomeBatch:
    """The batch that a user's outcome function judges.

    Attributes:
        rows: table row of every sequence, int64 array of shape (batch,).
        ids: token ids, int64 tensor of shape (batch, position), padded on the right.
        lengths: tokens of every prompt, int64 array of shape (batch,); its last token is at lengths - 1.
        table: the prompts, with their labels.
    """

    rows: Ids
    ids: Tensor
    lengths: Ids
    table: PromptTable


OutcomeFunction = Callable[..., Any]


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

    def score(self, reader: OutputReader, result: Any, sequences: Ids, ids: Tensor) -> NDArray[np.float64]:
        """Judge the forward pass that has just run.

        Returns:
            float64 array of shape (n,): of answers, the loss summed over the tokens of the answer; of a function, its
            values.
        """
        rows = sequences % self.rows
        if self.function is not None:
            batch = OutcomeBatch(rows, ids, self.variants[0].lengths[rows], self.table)
            return _call(self.function, result, batch)
        start = np.array([self.variants[s // self.rows].lengths[s % self.rows] for s in sequences])
        stop = np.array([self.variants[s // self.rows].total_lengths[s % self.rows] for s in sequences])
        column = np.arange(ids.shape[1])
        row, position = np.nonzero((column >= start[:, None]) & (column < stop[:, None]))
        losses = reader.losses(result, row, position, ids)
        return np.bincount(row, losses, minlength=len(sequences)).astype(np.float64)

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


def make_outcome(
    outcome: str | OutcomeFunction, table: PromptTable, tokenizer: Any, max_length: int | None, against: str
) -> Outcome:
    """Check an outcome against a table, and tokenise what it needs.

    Args:
        outcome: name of an outcome, or a function.
        table: the prompts.
        tokenizer: of the model.
        max_length: context of the model in tokens.
        against: label column with the other answer, for answer_difference.

    Raises:
        InputError: an unknown outcome, or prompts without the answers that it needs.
    """
    tokenized = table.tokenize(tokenizer, max_length=max_length)
    if callable(outcome):
        return Outcome(getattr(outcome, "__name__", "outcome"), outcome, table, (tokenized,))
    if outcome not in OUTCOMES:
        raise InputError(f"outcome={outcome!r}: {suggest(str(outcome), OUTCOMES)}, or a function (logits, batch)")
    if tokenized.answer_ids is None:
        raise InputError(f"outcome {outcome!r} needs a column 'answer', which {table.source} does not have")
    _require_answers(tokenized.answer_lengths, outcome, "answer", table)
    if outcome != "answer_difference":
        return Outcome(outcome, None, table, (tokenized,))
    if against not in table.label_names:
        raise InputError(
            f"outcome 'answer_difference' needs the other answer of every row: a column {against!r} in {table.source}; "
            f"{suggest(against, table.label_names)}. Pass against= to name another column"
        )
    others = [str(text) for text in table.labels()[against]]
    second = tokenize(table.prompts, others, tokenizer, max_length=max_length, source=table.source)
    _require_answers(second.answer_lengths, outcome, against, table)
    return Outcome(outcome, None, table, (tokenized, second))


def _require_answers(lengths: Ids, outcome: str, column: str, table: PromptTable) -> None:
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise InputError(
            f"{table.source}: {name_rows(empty)}: no {column} for outcome {outcome!r}; fill or drop these rows"
        )


def _call(function: OutcomeFunction, logits: Any, batch: OutcomeBatch) -> NDArray[np.float64]:
    """Call the user's function with as many of (logits, batch) as it takes."""
    try:
        count = len(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        count = 2
    values = function(logits) if count == 1 else function(logits, batch)
    if isinstance(values, Tensor):
        values = values.detach().float().cpu().numpy()
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(batch.rows),):
        raise InputError(
            f"the outcome function returned shape {list(values.shape)} for {len(batch.rows)} sequences; return one "
            "number for each: def outcome(logits, batch): ..."
        )
    return values


class OutputReader:
    """Logits at a few positions of a forward pass; the output layer runs on these alone where it can.

    Args:
        adapter: a model after a dry run with logits.

    Attributes:
        split: whether the output layer runs separately.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.split = head_is_separable(adapter)
        self._hidden: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the output of the final norm while the context is open."""
        if not self.split or self.adapter.final_norm is None:
            yield
            return
        handle = self.adapter.final_norm.register_forward_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()
            self._hidden = None

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output

    def logits(self, result: Any, row: Ids, position: Ids) -> Tensor:
        """Logits at some positions, float32 tensor of shape (n, vocabulary)."""
        source = self._hidden if self.split else result
        if not isinstance(source, Tensor) or source.ndim != 3:
            raise InputError(
                f"the forward pass of this {self.adapter.kind} returns no logits of shape (batch, position, "
                "vocabulary); pass forward= or a function as outcome"
            )
        at = torch.from_numpy(row).to(source.device), torch.from_numpy(position).to(source.device)
        chosen = source[at]
        scores = self.adapter.head(chosen) if self.split else chosen
        assert scores is not None
        return scores.float()

    def losses(self, result: Any, row: Ids, position: Ids, ids: Tensor) -> NDArray[np.float64]:
        """Negative log likelihood of the tokens at some positions, each predicted one position before."""
        losses = []
        size = max(1, _CHUNK // (self.adapter.size("d_vocab") or 50_000))
        for start in range(0, len(row), size):
            part = slice(start, start + size)
            scores = self.logits(result, row[part], position[part] - 1)
            targets = ids[torch.from_numpy(row[part]), torch.from_numpy(position[part])].to(scores.device)
            losses.append(negative_log_likelihood(scores, targets).cpu().numpy())
        return np.concatenate(losses).astype(np.float64) if losses else np.zeros(0)
