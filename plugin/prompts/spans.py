"""Character spans of entities and of span columns in their prompts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import missing_rows, name_rows
from stratalens.store.errors import InputError, quote

Spans = NDArray[np.int64]

_JOINERS = "\u200c\u200d"
_WHOLE_NUMBER = re.compile(r"[0-9]+\.0")


def span_columns(
    columns: Mapping[str, pd.Series[Any]], prompts: NDArray[Any], source: str
) -> tuple[dict[str, Spans], set[str]]:
    """Read the spans of all pairs of columns `<name>_start`, `<name>_end`.

    A `<name>_start` without `<name>_end` is a label.

    Args:
        columns: every column of the table by name.
        prompts: object array of shape (rows,), the text of each prompt.
        source: name of the table, for messages.

    Returns:
        spans: name -> int64 array of shape (rows, 2), [start, end) in characters
            as Python slices them, and (-1, -1) where both values are missing.
        used: names of the columns that hold spans.

    Raises:
        InputError: a value that is not an integer, one edge without the other, or a
            span that is empty or outside its prompt.
    """
    spans: dict[str, Spans] = {}
    used: set[str] = set()
    for name in span_names(columns):
        pair = [_integers(columns[f"{name}_{edge}"], source) for edge in ("start", "end")]
        span = np.stack(pair, axis=1)
        check_span(name, span, prompts, source)
        spans[name] = span
        used |= {f"{name}_start", f"{name}_end"}
    return spans, used


def span_names(columns: Collection[str]) -> list[str]:
    """List the names that have both columns `<name>_start` and `<name>_end`.

    >>> span_names(["prompt", "obj_start", "obj_end", "window_start"])
    ['obj']
    """
    names = [str(column).removesuffix("_start") for column in columns if str(column).endswith("_start")]
    return [name for name in names if name and f"{name}_end" in columns]


LONGEST = 2**53  # no text is as long; whole numbers above it have no exact float


def _integers(column: pd.Series[Any], source: str) -> Spans:
    values = np.full(len(column), -1, dtype=np.int64)
    missing = set(missing_rows(column))
    for row, value in enumerate(column.tolist()):
        if row in missing:
            continue
        if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
            value = float(value)  # pandas writes integers of a column with missing values as 3.0
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not is_number or not -LONGEST < value < LONGEST or not float(value).is_integer():
            raise InputError(
                f"{source}: {name_rows([row])}, column {column.name!r}: {quote(value)} is not a whole number of "
                "characters; columns <name>_start and <name>_end hold positions in the prompt (rename the columns "
                "if they are labels)"
            )
        values[row] = int(value)
    return values


def check_span(name: str, span: Spans, prompts: NDArray[Any], source: str, rows: Spans | None = None) -> None:
    """Check that spans are in their prompts.

    Args:
        name: name of the spans.
        span: int64 array of shape (spans, 2), characters [start, end), -1 for none.
        prompts: object array of shape (spans,), the prompt of each span.
        source: name of the table, for messages.
        rows: int64 array of shape (spans,), row of each span, for messages; None where it is its number.

    Raises:
        InputError: a span is empty or outside its prompt.
    """
    for number, (start, end) in enumerate(span.tolist()):
        if start == -1 and end == -1:
            continue
        length = len(prompts[number])
        row = number if rows is None else int(rows[number])
        if not 0 <= start < end <= length:
            raise InputError(
                f"{source}: {name_rows([row])}: the span {name} = [{start}, {end}) is "
                f"{'empty' if start == end else 'outside the prompt'}, which has {length} characters "
                f"({_shorten(prompts[number])}); valid is 0 <= {name}_start < {name}_end <= {length}, or both missing"
            )


def entity_spans(prompts: NDArray[Any], entities: NDArray[Any], edges: Spans | None, source: str) -> Spans:
    """Find each row's entity in its prompt.

    Args:
        prompts: object array of shape (rows,), the text of each prompt.
        entities: object array of shape (rows,), the text of each entity, '' for none.
        edges: spans of the columns entity_start and entity_end, which take precedence.
        source: name of the table, for messages.

    Returns:
        int64 array of shape (rows, 2), (-1, -1) for rows without an entity.

    Raises:
        InputError: an entity that is not in its prompt, or that differs from the
            text between entity_start and entity_end.
    """
    spans = np.full((len(prompts), 2), -1, dtype=np.int64)
    for row, (prompt, entity) in enumerate(zip(prompts.tolist(), entities.tolist(), strict=True)):
        if edges is not None and edges[row, 0] >= 0:
            start, end = edges[row].tolist()
            if entity and prompt[start:end] != entity:
                raise InputError(
                    f"{source}: {name_rows([row])}: entity_start and entity_end point at {prompt[start:end]!r}, but "
                    f"entity is {entity!r}; make them agree, or leave one of them out"
                )
            spans[row] = start, end
        elif entity:
            start = find_entity(prompt, entity)
            if start < 0:
                raise InputError(
                    f"{source}: {name_rows([row])}: the entity {entity!r} does not occur in its prompt "
                    f"{_shorten(prompt)}{_hint(prompt, entity)}; `entity` is text of the prompt, `entity_id` is any "
                    "name to group rows by: df.rename(columns={'entity': 'entity_id'})"
                )
            spans[row] = start, start + len(entity)
    return spans


def find_entity(prompt: str, entity: str) -> int:
    """Return the start of an entity in its prompt, or -1.

    This is the last occurrence as a whole word, else the last occurrence. Combining marks, such as accents and the
    vowel signs of Indic scripts, belong to the word of the letter before them.

    >>> find_entity("Ann met Anna. Who is Ann?", "Ann"), find_entity("Who is Anna?", "Ann")
    (21, 7)
    """
    last = start = prompt.rfind(entity)
    while start >= 0:
        end = start + len(entity)
        joined_before = start > 0 and _joined(prompt[start - 1], entity[0])
        joined_after = end < len(prompt) and _joined(entity[-1], prompt[end])
        if not joined_before and not joined_after:
            return start
        start = prompt.rfind(entity, 0, end - 1)
    return last


def _joined(left: str, right: str) -> bool:
    """Return whether two neighbouring characters belong to one word.

    >>> _joined("a", "1"), _joined("a", " "), _joined("e", "\u0301")
    (True, False, True)
    """
    return _extends(right) or left in _JOINERS or ((left.isalnum() or _extends(left)) and right.isalnum())


def _extends(character: str) -> bool:
    """Return whether a character belongs to the one before it: combining marks (M*) and zero-width joiners."""
    return character in _JOINERS or unicodedata.category(character)[0] == "M"


def _hint(prompt: str, entity: str) -> str:
    if entity.strip() != entity and entity.strip() in prompt:
        return f" (without its surrounding space, {entity.strip()!r} does)"
    if unicodedata.normalize("NFC", entity) in unicodedata.normalize("NFC", prompt):
        return " (it does after Unicode normalisation: use unicodedata.normalize('NFC', ...) on both)"
    if entity.casefold() in prompt.casefold():
        return " (it does with other capital letters)"
    return ""


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
