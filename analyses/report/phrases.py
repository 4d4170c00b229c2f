"""Phrases that all sentences share: a place, a value with its interval, p, and the size of an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from stratalens.analyses.plots.spec import SLIDER_DIMS, FigureSpec, SliderValues, lookup, plain_text
from stratalens.analyses.stats.estimates import PARTS, differs_from_null

Sentence = Callable[[SliderValues], str]
Numbers = Mapping[str, float]  # value, low, high, null and p of one estimate

NOT_DISTINGUISHABLE = "not distinguishable from chance"


def location(spec: FigureSpec, slider_values: SliderValues) -> str:
    """Return stage, layer and token as text: "stage s6, layer 12, token last"."""
    values = {**spec.fixed, **slider_values}
    words = [f"{dim} {plain_text(values[dim])}" for dim in SLIDER_DIMS if dim in values]
    return ", ".join(words) or "the only recorded position"


def estimate_reader(result: xr.Dataset) -> Callable[[SliderValues], dict[str, float]]:
    """Return a function that reads value, low, high, null and p by slider values."""
    read = {k: lookup(result[k]) for k in PARTS}
    return lambda slider_values: {k: float(read[k](slider_values)) for k in PARTS}


def value_with_interval(numbers: Numbers) -> str:
    """Return a value with its interval: "0.83 (95 % 0.78 to 0.88)"."""
    text = f"{numbers['value']:z.2f}"
    if np.isfinite(numbers["low"]) and np.isfinite(numbers["high"]):
        text += f" (95 % {numbers['low']:z.2f} to {numbers['high']:z.2f})"
    return text


def name_intervals_once(text: str) -> str:
    """Return a statement whose first interval alone is called one of 95 %.

    >>> name_intervals_once("0.64 (95 % 0.60 to 0.68); 0.55 (95 % 0.50 to 0.60)")
    '0.64 (95 % 0.60 to 0.68); 0.55 (0.50 to 0.60)'
    """
    first, mark, rest = text.partition("(95 % ")
    return first + mark + rest.replace(mark, "(") if mark else text


def p_text(p: float, permutations: int | None = None) -> str:
    """Return a permutation p as text; the smallest possible p is a bound.

    A smaller one comes from more permutations at its place.

    >>> p_text(1 / 201, 200), p_text(1 / 1001, 200)
    (', p ≤ 0.005', ', p = 0.001')
    """
    if not np.isfinite(p):
        return ""
    if permutations and 0.9999 / (permutations + 1) <= p <= 1.0001 / (permutations + 1):
        return f", p ≤ {1 / (permutations + 1):.2g}"
    return f", p = {p:.2g}"


def compare_with_chance(numbers: Numbers) -> str:
    """Describe the size of an accuracy relative to its null.

    >>> base = {"low": 0.8, "high": 0.9, "null": 0.5, "p": float("nan")}
    >>> compare_with_chance(base | {"value": 0.85}), compare_with_chance(base | {"value": 0.55, "low": 0.45})
    ('far above chance', 'not distinguishable from chance')
    """
    if not np.isfinite(numbers["value"]):
        return "not known"
    if not is_different(numbers):
        return NOT_DISTINGUISHABLE
    gap = numbers["value"] - numbers["null"]
    if gap < 0:
        return "below chance"
    for least, words in ((0.25, "far above chance"), (0.1, "clearly above chance"), (0.05, "slightly above chance")):
        if gap >= least:
            return words
    return "above chance by very little"


def is_different(numbers: Numbers) -> bool:
    """Return whether an estimate differs from its null."""
    return differs_from_null(*(numbers[k] for k in PARTS))
