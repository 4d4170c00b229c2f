"""The argument `outcome` of intervene(): its forms, and checks that the prompts have what it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from stratalens.analyses.directions.direction_set import Directions
from stratalens.plugin.interventions.outcomes import Outcome
from stratalens.plugin.interventions.output_readers import OutcomeFunction
from stratalens.plugin.interventions.probe_outcome import make_probe_outcome
from stratalens.plugin.interventions.text_outcome import GeneratedText, make_text_outcome
from stratalens.plugin.prompts.columns import name_rows
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError, suggest

Ids = NDArray[np.int64]
OutcomeArgument = str | OutcomeFunction | GeneratedText | xr.Dataset
_NAMES = ("answer_loss", "answer_difference", "answer_probability", "text")


def make_outcome(
    outcome: OutcomeArgument,
    table: PromptTable,
    tokenizer: Any,
    max_length: int | None,
    against: str,
    directions: Directions,
    prepend_bos: bool | None = None,
) -> Outcome:
    """Check an outcome against a table, and tokenise what it needs.

    Args:
        outcome: name of an outcome, a function, settings of generated text, or a probe.
        table: the prompts.
        tokenizer: of the model.
        max_length: context of the model in tokens.
        against: label column with the other answer, for answer_difference.
        directions: the tested directions; a probe has to be above them.
        prepend_bos: as for `stratalens.capture`.

    Raises:
        InputError: an unknown outcome, or prompts without the answers that it needs.
    """
    tokenized = table.tokenize(tokenizer, max_length=max_length, prepend_bos=prepend_bos)
    if isinstance(outcome, xr.Dataset):
        return make_probe_outcome(outcome, table, tokenized, directions.site, directions.layer)
    if isinstance(outcome, GeneratedText) or outcome == "text":
        settings = outcome if isinstance(outcome, GeneratedText) else GeneratedText()
        return make_text_outcome(settings, table, tokenized, tokenizer, max_length)
    if callable(outcome):
        return Outcome(getattr(outcome, "__name__", "outcome"), outcome, table, (tokenized,))
    if outcome not in _NAMES:
        raise InputError(
            f"outcome={outcome!r}: {suggest(str(outcome), _NAMES)}, a function (logits, batch), GeneratedText(...), or "
            "the result of probe at one place"
        )
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
    second = table.tokenize(tokenizer, max_length=max_length, prepend_bos=prepend_bos, answers=others)
    _require_answers(second.answer_lengths, outcome, against, table)
    return Outcome(outcome, None, table, (tokenized, second))


def _require_answers(lengths: Ids, outcome: str, column: str, table: PromptTable) -> None:
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise InputError(
            f"{table.source}: {name_rows(empty)}: no {column} for outcome {outcome!r}; fill or drop these rows"
        )
