"""The prompts of the table in the token ids that a model receives in your own loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.store.errors import InputError

Ids = NDArray[np.int64]

_REMEDY = (
    "Run the model on the ids of the store's tokenizer, one sequence for each row in the order of rec.batch(rows), "
    "with attention_mask= where they are padded. If other ids are meant, pass rec.batch(rows, positions)."
)


def find_prompts(
    tokenized: TokenizedPrompts, rows: Ids, ids: Ids, mask: Ids | None, names: NDArray[Any], *, answers: bool
) -> Ids:
    """Find the first token of every prompt, and check that the prompts are those of the table.

    The ids without padding must begin with those of the table. More tokens may follow.

    Args:
        tokenized: token ids of the table.
        rows: table row of every sequence, int64 array of shape (n,).
        ids: token ids that the model receives, int64 array of shape (n, positions).
        mask: attention mask, int64 array of the same shape, 1 on tokens and 0 on padding; None = no padding.
        names: names of all rows of the table, for messages.
        answers: whether the answer of the table must follow its prompt.

    Returns:
        int64 array of shape (n,), the number of tokens of padding before each prompt.

    Raises:
        InputError: a sequence does not begin with its prompt; names the row and the token.
    """
    if len(ids) != len(rows):
        raise InputError(
            f"the model ran {len(ids)} sequences in a batch announced with {len(rows)} rows. rec.batch(rows, ...) must "
            "list one table row per sequence."
        )
    starts = np.zeros(len(rows), dtype=np.int64) if mask is None else (mask != 0).argmax(axis=1).astype(np.int64)
    for line, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
        expected = tokenized.ids[row]
        stop = start + len(expected)
        if not np.array_equal(ids[line, start:stop], expected):
            raise InputError(f"row {row} ({str(names[row])!r}): {_difference(ids[line, start:], expected)}. {_REMEDY}")
        if answers and tokenized.answer_ids is not None:
            answer = tokenized.answer_ids[row]
            if not np.array_equal(ids[line, stop : stop + len(answer)], answer):
                raise InputError(
                    f"row {row} ({str(names[row])!r}): the ids of the answer do not follow the prompt, but the store "
                    f"records answer_loss. {_REMEDY}"
                )
            stop += len(answer)
        if mask is not None and not mask[line, start:stop].all():
            hidden = int((mask[line, start:stop] == 0).argmax())
            raise InputError(
                f"row {row} ({str(names[row])!r}): the attention mask is 0 on token {hidden} of the prompt, which the "
                f"model then does not see. {_REMEDY}"
            )
    return starts


def _difference(ids: Ids, expected: Ids) -> str:
    """Describe the first difference between the ids of one sequence without padding and those of the table."""
    length = min(len(ids), len(expected))
    different = np.flatnonzero(ids[:length] != expected[:length])
    if not len(different):
        return (
            f"the sequence ends after {len(ids)} tokens, but its prompt in the table has {len(expected)} (has it been "
            "truncated?)"
        )
    place = int(different[0])
    seen, wanted = int(ids[place]), int(expected[place])
    if place:
        return f"the ids differ from the table's at token {place}: the model received {seen}, the table has {wanted}"
    note = ""
    if np.array_equal(ids[1 : 1 + len(expected)], expected):
        note = " (one token more is in front, such as a BOS token)"
    elif len(expected) > 1 and np.array_equal(ids[: len(expected) - 1], expected[1:]):
        note = " (the first token of the table is missing, such as a BOS token)"
    elif _starts_later(ids, expected):
        note = " (they start later, behind padding that no attention mask marks)"
    return f"the ids do not start where the table's do: the model received {seen} first, the table has {wanted}{note}"


def _starts_later(ids: Ids, expected: Ids) -> bool:
    return any(
        np.array_equal(ids[shift : shift + len(expected)], expected) for shift in range(1, len(ids) - len(expected) + 1)
    )
