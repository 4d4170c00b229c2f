"""Places of one kind in the prompts of a table, several in a row: matches of a pattern, tokens, ends of sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import name_rows
from stratalens.plugin.prompts.ragged_array import RaggedArray
from stratalens.plugin.prompts.tokenization import encode
from stratalens.store.errors import InputError, quote, suggest

Index = NDArray[np.int64]
Occurrence = str | int

# Marks that end a sentence, with the quotes and brackets that close behind them. A full stop between digits or letters
# ends none; marks of scripts without spaces need no white space behind them.
_SENTENCE_END = re.compile(
    r"""(?:[.!?\u2026]+['"\u2019\u201d\u00bb)\]]*(?=\s|\Z))|[\u3002\uff01\uff1f\u0964]+[\u300d\u300f\u201d]*"""
)


@dataclass(frozen=True)
class Places:
    """Spans in the rows of a table, in the order of rows and of characters.

    Attributes:
        rows: int64 array of shape (places,), row of each span.
        spans: int64 array of shape (places, 2), characters [start, end) of the prompt.
        kinds: object array of shape (places,), a text about each span, or None.
    """

    rows: Index
    spans: Index
    kinds: NDArray[Any] | None = None

    def take(self, index: NDArray[Any]) -> Places:
        """Return some of the places, by number or as a mask."""
        return Places(self.rows[index], self.spans[index], None if self.kinds is None else self.kinds[index])

    @classmethod
    def of_rows(cls, spans: Iterable[Sequence[Sequence[int]]]) -> Places:
        """Make places from a list of (start, end) for each row.

        Example:
            >>> Places.of_rows([[(0, 2)], [], [(1, 3), (4, 5)]]).rows.tolist()
            [0, 2, 2]
        """
        listed = [[(int(start), int(end)) for start, end in row] for row in spans]
        rows = np.repeat(np.arange(len(listed)), [len(row) for row in listed])
        flat = [span for row in listed for span in row]
        return cls(rows, np.array(flat, dtype=np.int64).reshape(-1, 2))

    def inside(self, outer: Index) -> Places:
        """Return the places inside one span of each row.

        Args:
            outer: int64 array of shape (rows, 2), characters [start, end), -1 for none.
        """
        bounds = outer[self.rows]
        inner = (bounds[:, 0] >= 0) & (self.spans[:, 0] >= bounds[:, 0]) & (self.spans[:, 1] <= bounds[:, 1])
        return self.take(inner)

    def only(self, occurrence: Occurrence, rows: int) -> Places:
        """Return one place of each row: "first", "last", or a number; "all" returns all.

        Args:
            occurrence: which place; a number counts from 0, and from the end where it is negative.
            rows: number of rows of the table.

        Raises:
            InputError: `occurrence` is something else.
        """
        if occurrence == "all":
            return self
        numbers = {"first": 0, "last": -1}
        number = numbers.get(str(occurrence), occurrence)
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise InputError(
                f"occurrence={occurrence!r}: {suggest(str(occurrence), ('all', 'first', 'last'))}, or a number from 0 "
                "(negative from the end)"
            )
        counts = np.bincount(self.rows, minlength=rows)
        first = np.cumsum(counts) - counts
        wanted = np.where(number < 0, counts + number, number)
        return self.take((first + wanted)[(wanted >= 0) & (wanted < counts)])

    def numbers(self) -> Index:
        """Count the places of each row from 0: int64 array of shape (places,)."""
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        return np.arange(len(self.rows)) - np.repeat(starts, np.diff(starts, append=len(self.rows)))

    def check(self, rows: int, source: str, subject: str, *, at_most: int | None, missing: str) -> None:
        """Check the number of places of each row.

        Args:
            rows: number of rows of the table.
            source: name of the table, for messages.
            subject: what is searched for, for messages.
            at_most: largest number of places of a row; None allows any.
            missing: "raise" refuses rows without a place, "drop" leaves them out.

        Raises:
            InputError: no row has a place, a row has none with missing="raise", or a row has too many.
        """
        if missing not in ("raise", "drop"):
            raise InputError(f"missing={missing!r}: {suggest(str(missing), ('raise', 'drop'))}")
        counts = np.bincount(self.rows, minlength=rows)
        if not len(self.rows):
            raise InputError(f"{source}: {subject} is in none of the {rows} rows")
        if missing == "raise" and not counts.all():
            raise InputError(
                f"{source}: {name_rows(np.flatnonzero(counts == 0))}: no {subject}. Pass missing='drop' to leave these "
                "rows out"
            )
        if at_most is not None and counts.max() > at_most:
            row = int(counts.argmax())
            raise InputError(
                f"{source}: {name_rows(np.flatnonzero(counts > at_most))}: more than at_most={at_most} of {subject} "
                f"(row {row} has {counts[row]}). Raise at_most, or choose one of them with occurrence="
            )


def pattern_places(prompts: Sequence[str], pattern: str | re.Pattern[str], group: int | str) -> Places:
    """Find all matches of a regular expression.

    Args:
        prompts: one text per row.
        pattern: the expression, compiled or not.
        group: group of the expression whose characters count; 0 is the whole match. A match without the group counts
            for nothing.

    Raises:
        InputError: the expression is not valid, has no such group, or matches an empty text.
    """
    try:
        expression = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InputError(f"pattern {quote(pattern)} is not a regular expression of Python: {error}") from None
    valid = [*range(expression.groups + 1), *expression.groupindex]
    if group not in valid:
        raise InputError(f"group={group!r}: the pattern {quote(expression.pattern)} has the groups {valid}")
    spans = []
    for row, prompt in enumerate(prompts):
        matches = [match.span(group) for match in expression.finditer(prompt)]
        spans.append([span for span in matches if span[0] >= 0])
        if any(start == end for start, end in spans[-1]):
            raise InputError(
                f"pattern {quote(expression.pattern)} matches an empty text in row {row}, which no token covers; "
                "write it so that it matches at least one character, for example with + in place of *"
            )
    return Places.of_rows(spans)


def sentence_end_places(prompts: Sequence[str]) -> Places:
    """Find the marks that end sentences, with the quotes and brackets that close behind them.

    Example:
        >>> sentence_end_places(["It is 3.5 km. Is it? (Yes.)"]).spans.tolist()
        [[12, 13], [19, 20], [25, 27]]
    """
    return Places.of_rows([[match.span() for match in _SENTENCE_END.finditer(prompt)] for prompt in prompts])


def token_places(prompts: Sequence[str], tokenizer: Any, every: int, start: int = 0) -> Places:
    """Find every n-th token of each prompt, without the special tokens that the tokenizer adds.

    A token that shares its characters with the one before it, as a part of a character does, is left out.

    Args:
        prompts: one text per row.
        tokenizer: a fast Hugging Face tokenizer.
        every: tokens from one place to the next.
        start: number of the first token, from 0.

    Raises:
        InputError: a number is not valid, or the tokenizer does not report the characters of its tokens.
    """
    numbers: tuple[tuple[str, Any, int], ...] = (("every", every, 1), ("start", start, 0))
    for name, value, least in numbers:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}={value!r}: pass a whole number from {least}")
    offsets = token_offsets(prompts, tokenizer, special=False)
    return spans_of_tokens(offsets, [np.arange(start, len(row), every) for row in offsets])


def token_offsets(prompts: Sequence[str], tokenizer: Any, *, special: bool) -> RaggedArray:
    """Return the characters of each token.

    Args:
        prompts: one text per row.
        tokenizer: a fast Hugging Face tokenizer.
        special: whether the tokenizer adds its special tokens, which have no characters.

    Raises:
        InputError: the tokenizer does not report them.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "positions at tokens need the characters that each token covers; pass tokenizer= with a fast Hugging Face "
            "tokenizer (AutoTokenizer.from_pretrained(..., use_fast=True))"
        )
    _, offsets = encode(prompts, tokenizer, special=special, offsets=True)
    if offsets is None:
        raise InputError("the tokenizer reports no characters of its tokens")
    return offsets


def chosen_tokens(chosen: Sequence[Any], lengths: Sequence[int], source: str) -> list[Index]:
    """Return the numbers of chosen tokens.

    Args:
        chosen: for each row a bool array of shape (tokens,).
        lengths: tokens of each row.
        source: name of the table, for messages.

    Raises:
        InputError: another number of rows or of tokens, or an array that is not of bools.
    """
    if len(chosen) != len(lengths):
        raise InputError(f"{source}: chosen has {len(chosen)} lists, but the table has {len(lengths)} rows")
    numbers = []
    for row, (mask, length) in enumerate(zip(chosen, lengths, strict=True)):
        array = np.asarray(mask)
        if array.shape != (length,) or array.dtype != np.bool_:
            raise InputError(
                f"{source}: chosen: row {row} has {array.size} values of type {array.dtype}, but {length} tokens; pass "
                "one bool for each id of table.tokenize(tokenizer).ids[row]"
            )
        numbers.append(np.flatnonzero(array))
    return numbers


def spans_of_tokens(offsets: Sequence[Index], numbers: Sequence[Index]) -> Places:
    """Return the characters of tokens.

    Args:
        offsets: for each row an int64 array of shape (tokens, 2), the characters of its tokens.
        numbers: for each row the numbers of its tokens in ascending order.
    """
    spans = []
    for characters, tokens in zip(offsets, numbers, strict=True):
        chosen = characters[tokens]
        chosen = chosen[chosen[:, 0] < chosen[:, 1]]
        is_new = np.ones(len(chosen), dtype=bool)
        is_new[1:] = chosen[1:, 0] >= chosen[:-1, 1]
        spans.append(chosen[is_new].tolist())
    return Places.of_rows(spans)
