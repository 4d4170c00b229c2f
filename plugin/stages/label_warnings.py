"""Warnings about labels that look like misspelled stage names, before hours are spent on recording them."""

from __future__ import annotations

import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import LabelWarning, join_names

_NOT_LABELS = ("entity", "entity_id", "prompt", "entity_text", "answer")
_COMPARED = 1000  # distinct values that are compared with the stage names
_DIGITS = re.compile(r"\d{1,18}")  # whole numbers of 64 bits


def warn_about_label_typos(columns: Mapping[str, NDArray[Any]], stages: Sequence[str]) -> None:
    """Warn where the values of a label column name stages in some rows only.

    A label that continues a numbered series of stages (week3 after week1 and week2) is a later stage, not a typo.

    Args:
        columns: label columns of the rows.
        stages: names of the stages of the store and of the capture.
    """
    column = _stage_column(columns, stages)
    if column is None:
        return
    counts = Counter(value for value in columns[column].tolist() if value)
    unknown = {value: count for value, count in counts.items() if value not in stages}
    similar = {value: stage for value in list(unknown)[:_COMPARED] if (stage := similar_stage(value, stages))}
    only_unknown = len(unknown) == len(counts)
    if not similar and (not unknown or only_unknown or _continue_series(unknown, stages)):
        return
    labels = [
        f"{value!r} ({unknown[value]} row{'s' * (unknown[value] != 1)}"
        + (f"; is {similar[value]!r} meant?)" if value in similar else ")")
        for value in sorted(unknown, key=lambda value: (value not in similar, -unknown[value]))
    ]
    warnings.warn(
        f"label column {column!r} names stages in some rows only: {join_names(labels)} "
        f"{'is no stage' if len(labels) == 1 else 'are no stages'} of this capture or store. Its stages are "
        f"{join_names(map(repr, stages))}. If these labels are right, ignore this warning. Otherwise correct the "
        "table; stratalens.relabel(store, table) corrects a recorded store.",
        LabelWarning,
        stacklevel=caller_level(),
    )


def _stage_column(columns: Mapping[str, NDArray[Any]], stages: Sequence[str]) -> str | None:
    """Choose `trained_stage` where it exists, else the column with most values that are like stage names."""
    texts = [name for name, column in columns.items() if column.dtype == object and name not in _NOT_LABELS]
    if "trained_stage" in columns:
        return "trained_stage" if "trained_stage" in texts else None
    scores = []
    for name in texts:
        values = set(columns[name].tolist()) - {""}
        count = sum(v in stages or similar_stage(v, stages) is not None for v in list(values)[:_COMPARED])
        if count >= 2 and 2 * count >= len(values):
            scores.append((count, name))
    return max(scores)[1] if scores else None


def similar_stage(value: str, stages: Sequence[str]) -> str | None:
    """Find the stage with the same numbers and nearly the same letters; case, blanks and signs do not count.

    Example:
        >>> similar_stage("Week 1", ["week1", "week2"]), similar_stage("weak2", ["week1", "week2"])
        ('week1', 'week2')
        >>> similar_stage("week3", ["week1"]) is None
        True
    """
    numbers = _DIGITS.findall(value)
    plain = {_plain(stage): stage for stage in reversed(stages) if _DIGITS.findall(stage) == numbers}
    match = get_close_matches(_plain(value), plain, n=1, cutoff=0.8)
    return plain[match[0]] if match else None


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _continue_series(labels: Iterable[str], stages: Sequence[str]) -> bool:
    """Whether labels and stages together are series such as week1, week2, week3, in equal steps.

    Example:
        >>> _continue_series(["step1000"], ["base", "step500"])
        True
        >>> _continue_series(["week22"], ["week1", "week2"])
        False
        >>> _continue_series(["never"], ["week1"])
        False
    """
    for template in {_DIGITS.sub("#", label) for label in labels}:
        names = {name for name in [*labels, *stages] if _DIGITS.sub("#", name) == template}
        numbers = sorted(int(_DIGITS.findall(name)[0]) for name in names) if template.count("#") == 1 else []
        if len(set(np.diff(numbers))) != 1:
            return False
    return True


def caller_level() -> int:
    """Count the frames up to the first caller outside this package, for the `stacklevel` of a warning."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("stratalens."):
        frame, level = frame.f_back, level + 1
    return level
