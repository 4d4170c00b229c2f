"""Named token positions -> token indices.

What lives here: which token of each prompt a position name means. What does
not: character spans (`spans.py`) and what is recorded there (`capture.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import name_rows
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.store.errors import InputError, suggest

Index = NDArray[np.int64]


_FROM_THE_END = re.compile(r"-[1-9][0-9]*")


@dataclass(frozen=True, eq=False)
class ResolvedPositions:
    """Which token of each row every position means.

    Attributes:
        labels: names of the positions, or for all positions the offsets
            -n .. -1 from the end, as ints.
        index: token index in the unpadded prompt, int64 of shape
            (rows, positions); -1 where a row has no such position.
    """

    labels: tuple[str, ...] | tuple[int, ...]
    index: Index

    @property
    def is_all(self) -> bool:
        """Whether whole sequences are recorded, right-aligned."""
        return bool(self.labels) and isinstance(self.labels[0], int)


def resolve(
    positions: Sequence[str | int] | str,
    table: PromptTable,
    tokenized: TokenizedPrompts,
    missing: Literal["raise", "nan"] = "raise",
) -> ResolvedPositions:
    """Token index of every position in every row.

    Positions: 'last' and '-1' are the last token of the prompt (a special one
    where the tokenizer appends one), '-k' the k-th from the end; 'entity_first'
    and 'entity_last' the first and last token that shares a character with the
    entity; '<name>_first' and '<name>_last' the same for the span columns
    `<name>_start`, `<name>_end`. 'all' alone records whole sequences, labelled
    by their offset from the end, so that equal ends line up; a shorter prompt
    has no tokens at the far offsets, which is no error.

    A token that carries the space before a word belongs to the word's span, as
    it holds its first letter; of a character that is spread over several byte
    tokens, all count.

    Args:
        positions: names, or 'all'.
        table: the prompts.
        tokenized: the same prompts as token ids.
        missing: what to do with rows that lack a position: 'raise', or 'nan' to
            leave them unrecorded (index -1).

    Raises:
        InputError: an unknown or repeated position, a row that lacks one, or a
            span position with a tokenizer that knows no offsets.

    >>> from types import SimpleNamespace
    >>> rows = SimpleNamespace(lengths=np.array([3, 5]))
    >>> resolve(("last", "-2"), SimpleNamespace(spans={}, source="table"), rows).index.tolist()
    [[2, 1], [4, 3]]
    """
    if missing not in ("raise", "nan"):
        raise InputError(f"missing={missing!r}: {suggest(str(missing), ('raise', 'nan'))}")
    names = _names(positions)
    if names == ("all",):
        return _all_positions(tokenized)
    columns = [_column(name, table, tokenized) for name in names]
    index = np.stack(columns, axis=1)
    if missing == "raise":
        for name, column in zip(names, columns, strict=True):
            rows = np.flatnonzero(column < 0)
            if len(rows):
                raise _lacking(name, rows, table, tokenized)
    return ResolvedPositions(names, index)


def _names(positions: Sequence[str | int] | str) -> tuple[str, ...]:
    listed: Iterable[Any] = [positions] if isinstance(positions, str | int) else positions
    names = tuple(str(name) for name in listed)
    if not names:
        raise InputError("positions is empty; name at least one, for example positions=('last',), or 'all'")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"positions names {', '.join(map(repr, repeated))} more than once; name each once")
    if "all" in names and len(names) > 1:
        raise InputError(
            "positions='all' stands alone: it records every token, so the other positions are already in it"
        )
    return names


def _all_positions(tokenized: TokenizedPrompts) -> ResolvedPositions:
    longest = int(tokenized.lengths.max())
    index = tokenized.lengths[:, None] - np.arange(longest, 0, -1)
    return ResolvedPositions(tuple(range(-longest, 0)), np.where(index >= 0, index, -1))


def _column(name: str, table: PromptTable, tokenized: TokenizedPrompts) -> Index:
    if name == "last":
        return tokenized.lengths - 1
    if _FROM_THE_END.fullmatch(name):
        return np.maximum(tokenized.lengths + int(name), -1)
    span, _, edge = name.rpartition("_")
    if edge in ("first", "last") and span in table.spans:
        return _span_tokens(name, table, tokenized)[:, 0 if edge == "first" else 1]
    raise _unknown(name, table)


def _span_tokens(name: str, table: PromptTable, tokenized: TokenizedPrompts) -> Index:
    """First and last token that overlap the span, shape (rows, 2), -1 where there is none."""
    if tokenized.offsets is None:
        raise InputError(
            f"position {name!r} needs to know which characters each token covers, which this tokenizer (a pure "
            "Python one) cannot say; load its fast version (AutoTokenizer.from_pretrained(..., use_fast=True)), "
            "or use the positions last, -1, -2, ..."
        )
    return tokens_of_spans(tokenized.offsets, table.spans[name.rpartition("_")[0]])


def tokens_of_spans(offsets: Sequence[Index], spans: Index) -> Index:
    """First and last token that share a character with each row's span, or (-1, -1).

    Special tokens have the empty span (0, 0) and share none.

    Args:
        offsets: character spans of each row's tokens, shapes (tokens, 2).
        spans: [start, end) of each row in characters, shape (rows, 2), -1 for none.

    Returns:
        int64 of shape (rows, 2).

    >>> tokens_of_spans([np.array([[0, 0], [0, 3], [3, 7], [7, 8]])], np.array([[4, 8]])).tolist()
    [[2, 3]]
    """
    found = np.full((len(spans), 2), -1, dtype=np.int64)
    lengths = np.array([len(row) for row in offsets])
    row = np.repeat(np.arange(len(spans)), lengths)
    flat = np.concatenate(offsets)
    start, end = spans[row, 0], spans[row, 1]
    shared = np.flatnonzero((flat[:, 0] < end) & (flat[:, 1] > start) & (flat[:, 0] < flat[:, 1]) & (start >= 0))
    place = shared - (np.cumsum(lengths) - lengths)[row[shared]]
    found[row[shared], 1] = place  # the last of several assignments stays
    found[row[shared[::-1]], 0] = place[::-1]
    return found


def _unknown(name: str, table: PromptTable) -> InputError:
    spans = [f"{span}_{edge}" for span in table.spans for edge in ("first", "last")]
    valid = ["last", "-1", "-2", *spans, "all"]
    if name in ("entity_first", "entity_last"):
        return InputError(
            f"position {name!r} needs a column 'entity' (text that occurs in the prompt) or columns entity_start and "
            f"entity_end, which {table.source} does not have. Valid: {', '.join(valid)} (any -k counts from the end)"
        )
    if re.fullmatch(r"\+?[0-9]+", name):
        return InputError(
            f"position {name!r}: positions count from the end of the prompt, -1 being its last token, so that they "
            "line up; for a fixed place give columns <name>_start and <name>_end and use <name>_first"
        )
    span, _, edge = name.rpartition("_")
    if edge in ("first", "last") and span:
        return InputError(
            f"unknown position {name!r}: it needs both columns {span}_start and {span}_end in {table.source}; "
            f"{suggest(name, valid)} (any -k counts from the end)"
        )
    return InputError(f"unknown position {name!r}: {suggest(name, valid)} (any -k counts from the end)")


def _lacking(name: str, rows: Index, table: PromptTable, tokenized: TokenizedPrompts) -> InputError:
    mend = "Drop the position or these rows, or leave them unrecorded with missing='nan'"
    if _FROM_THE_END.fullmatch(name):
        shortest = int(tokenized.lengths[rows].min())
        return InputError(
            f"{table.source}: {name_rows(rows)}: the prompt is too short for position {name!r} (the shortest has "
            f"{shortest} tokens). {mend}"
        )
    span = name.rpartition("_")[0]
    without = rows[table.spans[span][rows, 0] < 0]
    if len(without):
        return InputError(f"{table.source}: {name_rows(without)}: no {span} there for position {name!r}. {mend}")
    start, end = table.spans[span][int(rows[0])].tolist()
    text = table.prompts[int(rows[0])][start:end]
    return InputError(
        f"{table.source}: {name_rows(rows)}: no token covers the {span} {text!r} (the tokenizer drops it), so there is "
        f"no position {name!r}. {mend}"
    )
