"""Named token positions as token indices."""

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


_ROWS = 2048  # rows whose tokens are compared with spans at a time, which bounds the memory
_FROM_THE_END = re.compile(r"-[1-9][0-9]{0,8}")


@dataclass(frozen=True, eq=False)
class ResolvedPositions:
    """The token of each row at every position.

    Attributes:
        labels: names of the positions. For 'all' they are the offsets -n .. -1 from
            the end, as ints.
        index: int64 array of shape (rows, positions), token index in the unpadded
            prompt, -1 where a row does not have the position.
    """

    labels: tuple[str, ...] | tuple[int, ...]
    index: Index

    @property
    def is_all(self) -> bool:
        """Whether complete sequences are recorded, right-aligned."""
        return bool(self.labels) and isinstance(self.labels[0], int)


def resolve(
    positions: Sequence[str | int] | str | int,
    table: PromptTable,
    tokenized: TokenizedPrompts,
    missing: Literal["raise", "nan"] = "raise",
) -> ResolvedPositions:
    """Find the token of every position in every row.

    'last' and '-1' are the last token of the prompt, which is a special token if
    the tokenizer appends one. '-k' is the k-th token from the end. 'entity_first'
    and 'entity_last' are the first and last token that share a character with the
    entity. '<name>_first' and '<name>_last' are the same for the span columns
    `<name>_start`, `<name>_end`.

    'all' records complete sequences and must be the only position. Their labels are
    offsets from the end, so that equal ends line up. A shorter prompt has no tokens
    at the first offsets, and this is not an error.

    A token that includes the space before a word belongs to the word's span, because
    it holds the first letter. If a character is split into several byte tokens, all
    of them belong to the span.

    Args:
        positions: names, or 'all'.
        table: the prompts.
        tokenized: the same prompts as token ids.
        missing: 'raise' refuses rows without a position; 'nan' leaves them unrecorded
            (index -1).

    Raises:
        InputError: an unknown or repeated position, a row without a position, or a
            span position with a tokenizer that has no offsets.

    Example:
        >>> from types import SimpleNamespace
        >>> rows = SimpleNamespace(lengths=np.array([3, 5]))
        >>> resolve(("last", "-2"), SimpleNamespace(spans={}, source="table"), rows).index.tolist()
        [[2, 1], [4, 3]]
    """
    if missing not in ("raise", "nan"):
        raise InputError(f"missing={missing!r}: {suggest(str(missing), ('raise', 'nan'))}")
    names = _position_names(positions)
    if names == ("all",):
        return _all_positions(tokenized)
    columns = [_token_index(name, table, tokenized) for name in names]
    if missing == "raise":
        for name, column in zip(names, columns, strict=True):
            rows = np.flatnonzero(column < 0)
            if len(rows):
                raise _missing_error(name, rows, table, tokenized)
    return ResolvedPositions(names, np.stack(columns, axis=1))


def _position_names(positions: Sequence[str | int] | str | int) -> tuple[str, ...]:
    listed: Iterable[Any] = [positions] if isinstance(positions, str | int) else positions
    names = tuple(str(name) for name in listed)
    if not names:
        raise InputError("positions is empty; name at least one, for example positions=('last',), or 'all'")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"positions names {', '.join(map(repr, repeated))} more than once; name each once")
    if "all" in names and len(names) > 1:
        raise InputError(
            "positions: 'all' records every token and must be the only position; remove the other names, or 'all'"
        )
    return names


def _all_positions(tokenized: TokenizedPrompts) -> ResolvedPositions:
    longest = int(tokenized.lengths.max())
    index = tokenized.lengths[:, None] - np.arange(longest, 0, -1)
    return ResolvedPositions(tuple(range(-longest, 0)), np.where(index >= 0, index, -1))


def _token_index(name: str, table: PromptTable, tokenized: TokenizedPrompts) -> Index:
    """Return the token index of one position, int64 array of shape (rows,).

    The index is -1 where a row does not have the position.
    """
    if name == "last":
        return tokenized.lengths - 1
    if _FROM_THE_END.fullmatch(name):
        return np.maximum(tokenized.lengths + int(name), -1)
    span, _, edge = name.rpartition("_")
    if edge not in ("first", "last") or span not in table.spans:
        raise _unknown_error(name, table)
    if tokenized.offsets is None:
        raise InputError(
            f"position {name!r} needs the characters that each token covers, and this tokenizer (a pure Python one) "
            "does not report them; load its fast version (AutoTokenizer.from_pretrained(..., use_fast=True)), "
            "or use the positions last, -1, -2, ..."
        )
    return tokens_of_spans(tokenized.offsets, table.spans[span])[:, 0 if edge == "first" else 1]


def tokens_of_spans(offsets: Sequence[Index], spans: Index) -> Index:
    """Find the first and last token that share a character with each row's span.

    A special token has the empty span (0, 0) and shares no character.

    Args:
        offsets: for each row an int64 array of shape (tokens, 2), the characters of its tokens.
        spans: int64 array of shape (rows, 2), characters [start, end), -1 for none.

    Returns:
        int64 array of shape (rows, 2), (-1, -1) where no token shares a character.

    Example:
        >>> tokens_of_spans([np.array([[0, 0], [0, 3], [3, 7], [7, 8]])], np.array([[4, 8]])).tolist()
        [[2, 3]]
    """
    edges = np.full((len(spans), 2), -1, dtype=np.int64)
    for first in range(0, len(spans), _ROWS):
        part = slice(first, first + _ROWS)
        edges[part] = _tokens_of_spans(offsets[part], spans[part])
    return edges


def _tokens_of_spans(offsets: Sequence[Index], spans: Index) -> Index:
    edges = np.full((len(spans), 2), -1, dtype=np.int64)
    lengths = np.array([len(row) for row in offsets])
    row = np.repeat(np.arange(len(spans)), lengths)
    flat = np.concatenate(offsets)
    start, end = spans[row, 0], spans[row, 1]
    shared = np.flatnonzero((flat[:, 0] < end) & (flat[:, 1] > start) & (flat[:, 0] < flat[:, 1]) & (start >= 0))
    token = shared - (np.cumsum(lengths) - lengths)[row[shared]]
    edges[row[shared], 1] = token  # of several values for one row, NumPy keeps the last
    edges[row[shared[::-1]], 0] = token[::-1]
    return edges


def _unknown_error(name: str, table: PromptTable) -> InputError:
    spans = [f"{span}_{edge}" for span in table.spans for edge in ("first", "last")]
    valid = ["last", "-1", "-2", *spans, "all"]
    if name in ("entity_first", "entity_last"):
        return InputError(
            f"position {name!r} needs a column 'entity' (text that occurs in the prompt) or columns entity_start and "
            f"entity_end, which {table.source} does not have. Valid: {', '.join(valid)} (any -k counts from the end)"
        )
    if re.fullmatch(r"\+?[0-9]+", name):
        return InputError(
            f"position {name!r}: positions count from the end of the prompt, -1 is its last token, so that prompts "
            "of different lengths line up; for a fixed position give columns <name>_start and <name>_end and use "
            "<name>_first"
        )
    span, _, edge = name.rpartition("_")
    if edge in ("first", "last") and span:
        return InputError(
            f"unknown position {name!r}: it needs both columns {span}_start and {span}_end in {table.source}; "
            f"{suggest(name, valid)} (any -k counts from the end)"
        )
    return InputError(f"unknown position {name!r}: {suggest(name, valid)} (any -k counts from the end)")


def _missing_error(name: str, rows: Index, table: PromptTable, tokenized: TokenizedPrompts) -> InputError:
    remedy = "Drop the position or these rows, or leave them unrecorded with missing='nan'"
    if _FROM_THE_END.fullmatch(name):
        shortest = int(tokenized.lengths[rows].min())
        return InputError(
            f"{table.source}: {name_rows(rows)}: the prompt is too short for position {name!r} (the shortest has "
            f"{shortest} tokens). {remedy}"
        )
    span = name.rpartition("_")[0]
    without = rows[table.spans[span][rows, 0] < 0]
    if len(without):
        return InputError(f"{table.source}: {name_rows(without)}: no {span} for position {name!r}. {remedy}")
    start, end = table.spans[span][int(rows[0])].tolist()
    text = table.prompts[int(rows[0])][start:end]
    return InputError(
        f"{table.source}: {name_rows(rows)}: no token covers the {span} {text!r} (the tokenizer drops it), so position "
        f"{name!r} does not exist. {remedy}"
    )
