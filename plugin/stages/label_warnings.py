"""Labels that are meant to name stages and do not: found before hours are spent on recording them.

Nothing is refused here, since labels need not be stages.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from numpy.typing import NDArray

from stratalens.store.errors import LabelWarning

_NOT_LABELS = ("entity", "entity_id", "prompt", "entity_text", "answer")


_SHOWN = 8


_COMPARED = 1000  # different values that are held against the stages' names


def warn_about_label_typos(columns: Mapping[str, NDArray[Any]], stages: Sequence[str], *, level: int = 3) -> None:
    """Warn once where a label column names stages, but not in every row.

    Names that go on counting where the stages end (week3 after week1 and week2) are of stages that come later.

    Args:
        columns: label columns of the rows.
        stages: names of the stages of the store and of the capture.
        level: which caller the warning points at.
    """
    for name in _candidates(columns, stages):
        counts = Counter(text for text in columns[name].tolist() if text)
        unknown = {value: count for value, count in counts.items() if value not in stages}
        close = {value: meant for value in list(unknown)[:_COMPARED] if (meant := nearest(value, stages))}
        if not close and (len(unknown) in (0, len(counts)) or is_numbered_sequence([*stages, *unknown], unknown)):
            continue
        listed = sorted(unknown, key=lambda value: (value not in close, -unknown[value]))
        said = [_said(value, unknown[value], close.get(value)) for value in listed[:_SHOWN]]
        more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        warnings.warn(
            f"label column {name!r} names stages in some rows only: {', '.join(said)}{more} "
            f"{'is' if len(listed) == 1 else 'are'} no stage of this capture or store, which "
            f"{'has' if len(stages) == 1 else 'have'} {', '.join(map(repr, stages[:_SHOWN]))}"
            f"{', ...' if len(stages) > _SHOWN else ''}. If that is meant, go on; else correct the table (in a store "
            "that is recorded already: stratalens.relabel(store, table)).",
            LabelWarning,
            stacklevel=level,
        )
        return


def _candidates(columns: Mapping[str, NDArray[Any]], stages: Sequence[str]) -> list[str]:
    """`trained_stage` where there is one, else the column most of whose values are names of stages."""
    texts = [n for n, column in columns.items() if column.dtype == object and n not in _NOT_LABELS]
    if "trained_stage" in columns:
        return [n for n in texts if n == "trained_stage"]
    found = []
    for name in texts:
        values = set(columns[name].tolist()) - {""}
        like = sum(1 for v in list(values)[:_COMPARED] if v in stages or nearest(v, stages))
        if like >= 2 and 2 * like >= len(values):
            found.append((like, name))
    return [max(found)[1]] if found else []


def _said(value: str, count: int, meant: str | None) -> str:
    rows = f"{count} row{'s' if count != 1 else ''}"
    return f"{value!r} ({rows}; is {meant!r} meant?)" if meant else f"{value!r} ({rows})"


def nearest(value: str, stages: Sequence[str]) -> str | None:
    """The stage whose name is the same but for case, blanks, signs, or one letter; numbers must be the same.

    >>> nearest("Week 1", ["week1", "week2"]), nearest("weak2", ["week1", "week2"]), nearest("week3", ["week1"])
    ('week1', 'week2', None)
    """
    plain, numbers = _plain(value), re.findall(r"\d+", value)
    for stage in stages:
        other = _plain(stage)
        if plain == other or (
            numbers == re.findall(r"\d+", stage) and min(len(plain), len(other)) >= 4 and _one_edit(plain, other)
        ):
            return stage
    return None


def is_numbered_sequence(names: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether the names in `wanted` and those like them differ by one number, which goes up in equal steps.

    >>> is_numbered_sequence(["base", "week1", "week2"], ["week2"])
    True
    >>> is_numbered_sequence(["step500", "step1000"], ["step1000"])
    True
    >>> is_numbered_sequence(["week1", "week2", "week22"], ["week22"])
    False
    >>> is_numbered_sequence(["week1", "never"], ["never"])
    False
    """
    groups: dict[str, list[int]] = {}
    for name in names:
        if len(numbers := re.findall(r"\d+", name)) == 1:
            groups.setdefault(name.replace(numbers[0], "#", 1), []).append(int(numbers[0]))
    for name in wanted:
        found = sorted(set(groups.get(re.sub(r"\d+", "#", name), ())))
        if len(found) < 2 or len({b - a for a, b in pairwise(found)}) != 1:
            return False
    return True


def _plain(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _one_edit(one: str, other: str) -> bool:
    """Whether one letter more, less, or another one, or two that changed places, makes one of the other."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1:
        return False
    first = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) < len(long):
        return short[first:] == long[first + 1 :]
    swapped = short[:first] + short[first : first + 2][::-1] + short[first + 2 :]
    return short[first + 1 :] == long[first + 1 :] or swapped == long
