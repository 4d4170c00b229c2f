"""Rank correlation of two properties of entities within strata, also partial, with interval and null.

The null shuffles one property within strata. The interval is a bootstrap over entities within strata.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.stats.bootstrap import interval

Array = npt.NDArray[np.float64]

DRAWS = 1000


def rank_within_strata(values: Array, strata: npt.NDArray[np.int64]) -> Array:
    """Rank values inside each stratum, from -0.5 to 0.5.

    Strata cannot differ in their ranks. Ties share their mean rank.

    Args:
        values: float64 array of shape (entities,).
        strata: int64 array of shape (entities,).

    Returns:
        float64 array of shape (entities,).

    Example:
        >>> rank_within_strata(np.array([3.0, 9.0, 1.0, 5.0]), np.array([0, 0, 1, 1])).tolist()
        [-0.25, 0.25, -0.25, 0.25]
        >>> rank_within_strata(np.array([1.0, 1.0, 0.0, 5.0]), np.array([0, 0, 0, 1])).round(3).tolist()
        [0.167, 0.167, -0.333, 0.0]
    """
    order = np.lexsort((values, strata))
    sorted_strata, sorted_values = strata[order], values[order]
    place = np.arange(len(order))
    new_stratum = np.r_[True, sorted_strata[1:] != sorted_strata[:-1]]
    stratum_start, stratum_size = _runs(place, new_stratum)
    tie_start, tie_size = _runs(place, new_stratum | np.r_[True, sorted_values[1:] != sorted_values[:-1]])
    ranks = np.empty(len(order))
    ranks[order] = (tie_start - stratum_start + tie_size / 2) / stratum_size - 0.5
    return ranks


def _runs(place: npt.NDArray[np.int64], is_start: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return start and length of the run that contains each place."""
    starts = place[is_start]
    run = np.cumsum(is_start) - 1
    return starts[run].astype(float), np.diff(np.r_[starts, len(place)])[run].astype(float)


def partial_correlation(x: Array, y: Array, control: Array | None) -> float:
    """Correlate two centred variables after regressing out a third.

    Args:
        x: float64 array of shape (entities,), centred.
        y: float64 array of shape (entities,), centred.
        control: float64 array of shape (entities,), centred, or None.

    Returns:
        The correlation; NaN if a variable is constant.

    Example:
        >>> a = np.array([-1.0, 0.0, 1.0]); round(partial_correlation(a, -a, None), 6)
        -1.0
    """
    if control is not None:
        power = float(control @ control)
        if power > 0:
            x, y = x - control * float(x @ control) / power, y - control * float(y @ control) / power
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-12 else float("nan")


def correlate_within_strata(
    x: Array,
    y: Array,
    strata: npt.NDArray[np.int64],
    control: Array | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Compute the rank correlation within strata, with interval, null and two-sided p.

    Args:
        x: float64 array of shape (entities,).
        y: float64 array of shape (entities,).
        strata: int64 array of shape (entities,); ranks and permutations stay inside a stratum.
        control: float64 array of shape (entities,), the variable to partial out, or None.
        seed: seed of resamples and permutations.
        draws: number of resamples and of permutations.

    Returns:
        value, low, high (95 % interval), null (mean) and p; all None if a variable is constant.
    """
    random = np.random.default_rng([6, seed])
    variables = [x, y] if control is None else [x, y, control]

    def correlate(ranks: list[Array]) -> float:
        return partial_correlation(ranks[0], ranks[1], ranks[2] if len(ranks) > 2 else None)

    ranks = [rank_within_strata(values, strata) for values in variables]
    value = correlate(ranks)
    if not np.isfinite(value):
        return dict.fromkeys(("value", "low", "high", "null", "p"))
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    null, resampled = np.empty(draws), np.empty(draws)
    for number in range(draws):
        shuffled = np.empty(len(x))
        for group in groups:
            shuffled[group] = ranks[0][random.permutation(group)]
        null[number] = correlate([shuffled, *ranks[1:]])
        rows = np.concatenate([random.choice(group, len(group)) for group in groups])
        resampled[number] = correlate([rank_within_strata(values[rows], strata[rows]) for values in variables])
    low, high = interval(resampled, np.array(value), bounds=(-1, 1))
    p = (1 + int((np.abs(null) >= abs(value) - 1e-9).sum())) / (1 + draws)
    numbers = {"value": value, "low": float(low), "high": float(high), "null": float(null.mean()), "p": p}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}
