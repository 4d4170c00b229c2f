"""Parts of a result that a figure draws: with many groups a page would grow to hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

MAX_LINES = 60  # thin lines of one figure
MAX_NUMBERS = 40_000  # numbers of one figure over all slider values


def evenly_spaced(count: int, limit: int, keep: Iterable[int] = ()) -> list[int]:
    """Choose at most `limit` of `count` positions, evenly spaced, with the ends and all of `keep`.

    >>> evenly_spaced(5, 9), evenly_spaced(100, 3), evenly_spaced(100, 3, keep=[7])
    ([0, 1, 2, 3, 4], [0, 50, 99], [0, 7, 50, 99])
    """
    if count <= limit:
        return list(range(count))
    chosen = np.rint(np.linspace(0, count - 1, max(limit, 1))).astype(int).tolist()
    return sorted({*chosen, *keep})


def places(sliders: Mapping[str, Sequence[object]]) -> int:
    """Count the combinations of slider values."""
    return int(np.prod([len(values) for values in sliders.values()])) if sliders else 1


def square_limit(sliders: Mapping[str, Sequence[object]], least: int = 10) -> int:
    """Return the side of the largest square map whose numbers over all slider values stay within `MAX_NUMBERS`."""
    return max(least, int((MAX_NUMBERS / places(sliders)) ** 0.5))


def drawn_note(drawn: int, count: int, noun: str) -> str:
    """Say how much of a result a figure draws; empty if it draws all.

    >>> drawn_note(60, 780, "pairs"), drawn_note(3, 3, "pairs")
    (', 60 of 780 pairs', '')
    """
    return f", {drawn} of {count} {noun}" if drawn < count else ""
