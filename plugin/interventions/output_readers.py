"""What a forward pass is judged by: logits at a few positions, losses of answers, a function of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.output_hooks import head_is_separable
from stratalens.plugin.capture.statistics import negative_log_likelihood
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.store.errors import InputError

Ids = NDArray[np.int64]
_CHUNK = 1 << 24  # logits in memory at a time
#: Runs the model: (ids, mask) -> its output.
RunFunction = Callable[[Tensor, Tensor], Any]


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


class Reader(Protocol):
    """Judges the forward passes of one model.

    Attributes:
        output: output of the forward pass that it needs, as for `Adapter.run`.
        one_pass: whether a single forward pass is judged.
    """

    output: Literal["none", "logits"]
    one_pass: bool

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep what the reader needs of every forward pass while the context is open."""
        yield

    def span(self, sequences: Ids) -> tuple[Ids, Ids] | None:
        """First position that is read of each sequence, and the one after the last; None if all are."""

    def measure(self, run: RunFunction, sequences: Ids, ids: Tensor, mask: Tensor) -> NDArray[np.float64]:
        """Run whole sequences and judge them, float64 array of shape (n,)."""
        ...

    def score(self, result: Any, sequences: Ids, ids: Tensor, start: Ids | None = None) -> NDArray[np.float64]:
        """Judge the forward pass that has just run.

        Args:
            result: output of the model.
            sequences: numbers of the sequences, int64 array of shape (n,).
            ids: their tokens, int64 tensor of shape (n, position), whole sequences.
            start: first position of each sequence that was run, int64 array of shape (n,); None for whole sequences.

        Returns:
            float64 array of shape (n,).
        """
        ...


class OutputReader:
    """Logits at a few positions of a forward pass; the output layer runs on these alone where it can.

    Args:
        adapter: a model after a dry run with logits.

    Attributes:
        split: whether the output layer runs separately.
    """

    one_pass = True

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.split = head_is_separable(adapter)
        self.output: Literal["none", "logits"] = "none" if self.split else "logits"
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

    def span(self, sequences: Ids) -> tuple[Ids, Ids] | None:
        """All positions are read."""
        return None

    def measure(self, run: RunFunction, sequences: Ids, ids: Tensor, mask: Tensor) -> NDArray[np.float64]:
        """Run whole sequences and judge them."""
        return self.score(run(ids, mask), sequences, ids)

    def score(self, result: Any, sequences: Ids, ids: Tensor, start: Ids | None = None) -> NDArray[np.float64]:
        """Judge the forward pass that has just run."""
        raise NotImplementedError

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


class AnswerReader(OutputReader):
    """The loss of the answer of every sequence, summed over its tokens, in nats.

    Args:
        adapter: a model after a dry run with logits.
        variants: the prompts with each of the answers, one variant after the other.
    """

    def __init__(self, adapter: Adapter, variants: tuple[TokenizedPrompts, ...]) -> None:
        super().__init__(adapter)
        self._start = np.concatenate([variant.lengths for variant in variants])
        self._stop = np.concatenate([variant.total_lengths for variant in variants])

    def span(self, sequences: Ids) -> tuple[Ids, Ids] | None:
        """From the last token of the prompt to the last but one of the answer."""
        return self._start[sequences] - 1, self._stop[sequences] - 1

    def score(self, result: Any, sequences: Ids, ids: Tensor, start: Ids | None = None) -> NDArray[np.float64]:
        """Loss of each answer."""
        column = np.arange(ids.shape[1])
        answers = (column >= self._start[sequences][:, None]) & (column < self._stop[sequences][:, None])
        row, position = np.nonzero(answers)
        before = position - 1 if start is None else position - 1 - start[row]  # the token that predicts
        losses = []
        size = max(1, _CHUNK // (self.adapter.size("d_vocab") or 50_000))
        for first in range(0, len(row), size):
            part = slice(first, first + size)
            scores = self.logits(result, row[part], before[part])
            targets = ids[torch.from_numpy(row[part]), torch.from_numpy(position[part])].to(scores.device)
            losses.append(negative_log_likelihood(scores, targets).cpu().numpy())
        each = np.concatenate(losses).astype(np.float64) if losses else np.zeros(0)
        return np.bincount(row, each, minlength=len(sequences)).astype(np.float64)


class FunctionReader(OutputReader):
    """A function of the user's, which gets the logits of whole sequences.

    Args:
        adapter: a model after a dry run with logits.
        function: the user's function.
        table: the prompts.
        lengths: tokens of every prompt, int64 array of shape (rows,).
    """

    def __init__(self, adapter: Adapter, function: OutcomeFunction, table: PromptTable, lengths: Ids) -> None:
        super().__init__(adapter)
        self.output = "logits"
        self._function, self._table, self._lengths = function, table, lengths

    def score(self, result: Any, sequences: Ids, ids: Tensor, start: Ids | None = None) -> NDArray[np.float64]:
        """Values of the function."""
        rows = sequences % len(self._table)
        return call_outcome(self._function, result, OutcomeBatch(rows, ids, self._lengths[rows], self._table))


class DivergenceReader(OutputReader):
    """KL divergence of the token after each prompt, the clean model's from the edited one's, in nats.

    Args:
        adapter: a model after a dry run with logits.
        lengths: tokens of every prompt, int64 array of shape (rows,).
    """

    def __init__(self, adapter: Adapter, lengths: Ids) -> None:
        super().__init__(adapter)
        self._lengths = lengths
        self._clean: Tensor | None = None

    def span(self, sequences: Ids) -> tuple[Ids, Ids] | None:
        """The last token of each prompt."""
        return self._lengths[sequences] - 1, self._lengths[sequences]

    def score(self, result: Any, sequences: Ids, ids: Tensor, start: Ids | None = None) -> NDArray[np.float64]:
        """Divergence from the first pass that was judged, which is the clean one."""
        last = self._lengths[sequences] - 1
        logs = self.logits(result, np.arange(len(sequences)), last if start is None else last - start)
        logs = logs.log_softmax(dim=-1)
        if self._clean is None:
            self._clean = logs
        clean = self._clean[torch.from_numpy(sequences).to(logs.device)]
        return np.asarray((clean.exp() * (clean - logs)).sum(dim=-1).cpu().numpy(), dtype=np.float64)


def call_outcome(function: OutcomeFunction, values: Any, batch: OutcomeBatch) -> NDArray[np.float64]:
    """Call the user's function with as many of (logits or texts, batch) as it takes.

    Raises:
        InputError: it does not return one number for each sequence.
    """
    try:
        count = len(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        count = 2
    numbers = function(values) if count == 1 else function(values, batch)
    if isinstance(numbers, Tensor):
        numbers = numbers.detach().float().cpu().numpy()
    numbers = np.asarray(numbers, dtype=np.float64)
    if numbers.shape != (len(batch.rows),):
        raise InputError(
            f"the outcome function returned shape {list(numbers.shape)} for {len(batch.rows)} sequences; return one "
            "number for each: def outcome(logits, batch): ..."
        )
    return numbers
