"""Generated text as the outcome of an intervention: greedy or sampled, judged by a function or by the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.interventions.outcomes import Outcome
from stratalens.plugin.interventions.output_readers import OutcomeBatch, OutputReader, RunFunction, call_outcome
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.store.errors import InputError

Ids = NDArray[np.int64]
Judge = Callable[..., Any]


@dataclass(frozen=True)
class GeneratedText:
    """Text that the model writes after each prompt, as an outcome of `intervene`.

    An intervention at all positions changes the generated tokens too; named positions are those of the prompt. With the
    same seed, the clean and the edited model draw with the same random numbers.

    Attributes:
        judge: function `(texts, batch) -> (rows,)` of the texts of a batch, as for a function of logits; None counts
            the share of texts that contain the answer.
        new_tokens: tokens to generate.
        temperature: of sampling; 0 takes the most probable token (greedy).
        seed: of sampling.

    Example:
        `sl.intervene(model, table, axis, outcome=sl.GeneratedText(new_tokens=20))`
    """

    judge: Judge | None = None
    new_tokens: int = 16
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        count: Any = self.new_tokens
        temperature: Any = self.temperature
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"new_tokens={self.new_tokens!r} is not a number of tokens, from 1")
        if not isinstance(temperature, int | float) or not 0 <= temperature < np.inf:
            raise InputError(f"temperature={self.temperature!r} is not a number from 0, which is greedy")
        if self.judge is not None and not callable(self.judge):
            raise InputError(f"judge={self.judge!r} is not a function (texts, batch)")


@dataclass(frozen=True, eq=False)
class TextOutcome(Outcome):
    """Generated text of every row.

    Attributes:
        settings: how the text is generated and judged.
        tokenizer: of the model.
    """

    settings: GeneratedText
    tokenizer: Any

    @property
    def runs_answers(self) -> bool:
        """The model reads the prompts alone."""
        return False

    @property
    def new_tokens(self) -> int:
        """Tokens that are generated."""
        return self.settings.new_tokens

    def reader(self, adapter: Adapter, stage: str, directions_stage: str | None) -> TextReader:
        """Generate with one model."""
        return TextReader(adapter, self)

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores are the outcome."""
        return scores

    def texts(self, tokens: NDArray[np.float64]) -> NDArray[Any]:
        """Decode token ids, float64 array of shape (..., tokens) with NaN after the end, to text of shape (...)."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        ids = [row[np.isfinite(row)].astype(int).tolist() for row in flat]
        texts = np.empty(len(ids), object)
        texts[:] = [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        return texts.reshape(tokens.shape[:-1])

    @property
    def digest(self) -> list[str]:
        """What identifies the outcome."""
        own = self.settings
        judge = getattr(own.judge, "__code__", None)
        code = [] if judge is None else [judge.co_code.hex(), repr(judge.co_consts), repr(judge.co_names)]
        return ["text", str(own.new_tokens), repr(own.temperature), str(own.seed), *code, *super().digest]


class TextReader(OutputReader):
    """Generates text token by token.

    Attributes:
        tokens: ids of the last batch, float64 array of shape (n, new tokens); NaN after the end of a text.
    """

    one_pass = False

    def __init__(self, adapter: Adapter, outcome: TextOutcome) -> None:
        super().__init__(adapter)
        self._outcome = outcome
        end = getattr(outcome.tokenizer, "eos_token_id", None)
        self._end = -1 if end is None else int(end)
        self._answers = _answers(outcome.table)
        self.tokens = np.zeros((0, outcome.new_tokens))

    def measure(self, run: RunFunction, sequences: Ids, ids: Tensor, mask: Tensor) -> NDArray[np.float64]:
        """Generate after each prompt, and judge the texts."""
        outcome, count = self._outcome, len(sequences)
        tokenized = outcome.variants[0]
        rows = np.arange(count)
        lengths = tokenized.lengths[sequences]
        pad = torch.full((count, outcome.new_tokens), tokenized.pad_id, dtype=ids.dtype)
        ids, mask = torch.cat([ids, pad], 1), torch.cat([mask, torch.zeros_like(pad)], 1)
        tokens = np.full((count, outcome.new_tokens), np.nan)
        open_rows = np.ones(count, bool)
        for step in range(outcome.new_tokens):
            width = int(lengths.max()) + step
            logits = self.logits(run(ids[:, :width], mask[:, :width]), rows, lengths + step - 1)
            drawn = self._draw(logits.cpu(), sequences, step)
            open_rows &= drawn != self._end
            tokens[open_rows, step] = drawn[open_rows]
            if not open_rows.any():
                break
            at = torch.from_numpy(rows), torch.from_numpy(lengths + step)
            ids[at] = torch.from_numpy(drawn)
            mask[at] = 1
        self.tokens = tokens
        return self._judge(sequences, ids, lengths, outcome.texts(tokens))

    def _draw(self, logits: Tensor, sequences: Ids, step: int) -> Ids:
        """Next token of each sequence."""
        settings = self._outcome.settings
        if not bool(torch.isfinite(logits).all()):
            raise InputError("the intervention makes the logits NaN or infinite; use a smaller dose")
        if settings.temperature:
            noise = [np.random.default_rng([settings.seed, s, step]).gumbel(size=logits.shape[1]) for s in sequences]
            logits = logits.double() / settings.temperature + torch.from_numpy(np.stack(noise))
        return np.asarray(logits.argmax(dim=1).numpy(), dtype=np.int64)

    def _judge(self, sequences: Ids, ids: Tensor, lengths: Ids, texts: NDArray[Any]) -> NDArray[np.float64]:
        table, judge = self._outcome.table, self._outcome.settings.judge
        if judge is not None:
            return call_outcome(judge, texts.tolist(), OutcomeBatch(sequences, ids, lengths, table))
        answers = [self._answers[row] for row in sequences]
        return np.array([float(answer in text) for answer, text in zip(answers, texts, strict=True)])


def make_text_outcome(
    settings: GeneratedText, table: PromptTable, tokenized: TokenizedPrompts, tokenizer: Any, max_length: int | None
) -> TextOutcome:
    """Check generated text as an outcome.

    Raises:
        InputError: prompts without answers where there is no judge, or too long for the model.
    """
    empty = [] if settings.judge else [row for row, answer in enumerate(_answers(table)) if not answer]
    if empty:
        raise InputError(
            f"{table.source}: row {empty[0]}: outcome 'text' looks for the answer in the text, and there is no answer; "
            "fill the column 'answer', or pass GeneratedText(judge=...)"
        )
    longest = int(tokenized.lengths.max()) + settings.new_tokens
    if max_length is not None and longest > max_length:
        raise InputError(
            f"the longest prompt with new_tokens={settings.new_tokens} has {longest} tokens, and the model takes "
            f"{max_length}; generate fewer tokens"
        )
    return TextOutcome("text", None, table, (tokenized,), settings, tokenizer)


def _answers(table: PromptTable) -> list[str]:
    """Answer of every row without space around it; empty where there is none."""
    if "answer" not in table.frame:
        return [""] * len(table)
    return [str(answer).strip() for answer in table.frame["answer"]]
