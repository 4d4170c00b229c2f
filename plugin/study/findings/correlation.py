"""How two properties of entities go together inside strata: rank correlation, partial, with interval and null.

The null shuffles one of them within strata, the interval is a bootstrap over entities within strata.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.stats.bootstrap import interval

Array = npt.NDArray[np.float64]


DRAWS = 1000


def rank_within_strata(values: Array, strata: npt.NDArray[np.int64]) -> Array:
    """Ranks inside each stratum, from -0.5 to 0.5, so that strata cannot differ; ties share their mean rank.

    >>> rank_within_strata(np.array([3.0, 9.0, 1.0, 5.0]), np.array([0, 0, 1, 1])).tolist()
    [-0.25, 0.25, -0.25, 0.25]
    >>> rank_within_strata(np.array([1.0, 1.0, 0.0, 5.0]), np.array([0, 0, 0, 1])).round(3).tolist()
    [0.167, 0.167, -0.333, 0.0]
    """
    order = np.lexsort((values, strata))
    group, value = strata[order], values[order]
    number = np.arange(len(order))
    fresh = np.r_[True, group[1:] != group[:-1]]
    begins, sizes = _runs(number, fresh)
    first, tied = _runs(number, fresh | np.r_[True, value[1:] != value[:-1]])
    out = np.empty(len(order))
    out[order] = (first - begins + tied / 2) / sizes - 0.5
    return out


def _runs(number: npt.NDArray[np.int64], fresh: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Where the run of each place begins, and how long it is."""
    starts = number[fresh]
    run = np.cumsum(fresh) - 1
    return starts[run].astype(float), np.diff(np.r_[starts, len(number)])[run].astype(float)


def partial_correlation(x: Array, y: Array, given: Array | None) -> float:
    """Correlation of two centred variables, of what is left of them where a third has explained what it can.

    >>> a = np.array([-1.0, 0.0, 1.0]); round(partial_correlation(a, -a, None), 6)
    -1.0
    """
    if given is not None:
        power = float(given @ given)
        if power > 0:
            x, y = x - given * float(x @ given) / power, y - given * float(y @ given) / power
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-12 else float("nan")


def correlate_within_strata(
    score: Array,
    loss: Array,
    strata: npt.NDArray[np.int64],
    given: Array | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Rank correlation within strata, with interval, null and two-sided p; all of them None where one is constant.

    Args:
        score: [array-like, shape: (entities,)].
        loss: [array-like, shape: (entities,)].
        strata: [array-like, shape: (entities,)] int group inside which ranks are taken and labels are shuffled.
        given: what is partialled out, or None.
        seed: of resamples and permutations.
        draws: how many of either.
    """
    random = np.random.default_rng([6, seed])
    ranks = [rank_within_strata(values, strata) for values in (score, loss)]
    third = None if given is None else rank_within_strata(given, strata)
    value = partial_correlation(ranks[0], ranks[1], third)
    if not np.isfinite(value):
        return dict.fromkeys(("value", "low", "high", "null", "p"))
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    null, resampled = np.empty(draws), np.empty(draws)
    for number in range(draws):
        shuffled = np.empty(len(score))
        for group in groups:
            shuffled[group] = ranks[0][random.permutation(group)]
        null[number] = partial_correlation(shuffled, ranks[1], third)
        rows = np.concatenate([random.choice(group, len(group)) for group in groups])
        taken = [rank_within_strata(values[rows], strata[rows]) for values in (score, loss)]
        again = None if given is None else rank_within_strata(given[rows], strata[rows])
        resampled[number] = partial_correlation(taken[0], taken[1], again)
    low, high = interval(resampled, np.array(value), bounds=(-1, 1))
    p = (1 + int((np.abs(null) >= abs(value) - 1e-9).sum())) / (1 + draws)
    numbers = {"value": value, "low": float(low), "high": float(high), "null": float(null.mean()), "p": p}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}
