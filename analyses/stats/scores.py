"""Scores of probes from their predictors, and intervals for them over entities.

Accuracy, AUC, R2 and rank correlation on rows that a probe never saw, fold by fold, and the cluster
bootstrap that every accuracy's interval comes from. Array functions only.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stratalens.analyses.stats import bootstrap as significance

Floats = npt.NDArray[np.floating]


Signs = npt.NDArray[np.int8]


Codes = npt.NDArray[np.int64]


def own_fold_scores(X: Floats, coef: Floats, intercept: Floats, fold: Codes) -> npt.NDArray[np.float32]:
    """Score of every row by the probes that never saw its fold.

    Args:
        X: [array-like, shape: (n, d)].
        coef: [array-like, shape: (P, folds, d)].
        intercept: [array-like, shape: (P, folds)].
        fold: [array-like, shape: (n,)].

    Returns:
        [shape: (P, n)] float32.
    """
    out = np.empty((coef.shape[0], len(X)), dtype=np.float32)
    for k in range(coef.shape[1]):
        rows = np.flatnonzero(fold == k)
        out[:, rows] = coef[:, k] @ X[rows].T + intercept[:, k, None]
    return out


def fold_means(
    right: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_], fold: Codes, folds: int
) -> npt.NDArray[np.float64]:
    """Share of right answers in each fold.

    Args:
        right: [array-like, shape: (P, n)] False on rows that are not counted.
        counted: [array-like, shape: (P, n)] test rows.
        fold: [array-like, shape: (n,)].
        folds: their number.

    Returns:
        [shape: (P, folds)]; NaN where a fold has no test rows.
    """
    member = np.equal.outer(fold, np.arange(folds)).astype(np.float64)
    return _ratio(right.astype(np.float64) @ member, counted.astype(np.float64) @ member)


def is_right(score: Floats, signs: Signs) -> npt.NDArray[np.bool_]:
    """Test rows that are classified rightly, shape (P, n); False on rows that are not test rows."""
    right: npt.NDArray[np.bool_] = ((score > 0) == (signs.T > 0)) & (signs.T != 0)
    return right


def fold_auc(score: Floats, signs: Signs, fold: Codes, folds: int) -> npt.NDArray[np.float64]:
    """Area under the ROC curve in each fold (ties count half), shape (P, folds); NaN without both classes."""
    out = np.full((score.shape[0], folds), np.nan)
    for k in range(folds):
        in_fold = fold == k
        for p in range(score.shape[0]):
            rows = np.flatnonzero(in_fold & (signs[:, p] != 0))
            out[p, k] = auc(score[p, rows], signs[rows, p] > 0)
    return out


def auc(score: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic, ties counting half; NaN without both classes.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if n_pos == 0 or n_neg == 0:
        return float("nan")
    low, high = np.sort(score[~positive]), score[positive]
    below = np.searchsorted(low, high, "left").sum() + np.searchsorted(low, high, "right").sum()
    return float(below / (2 * n_pos * n_neg))


def bootstrap_weights(strata: Codes, resamples: int = 1000, seed: int = 0) -> npt.NDArray[np.float32]:
    """How often each entity is drawn in each resample, stratum by stratum.

    The last few results are kept, as every slab of a call asks for the same.

    Args:
        strata: [array-like, shape: (units,)] stratum of each entity; each keeps its number of entities, negative ones
            are never drawn.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        [shape: (resamples, units)] float32, read-only.
    """
    return _draws(np.asarray(strata, dtype=np.int64).tobytes(), resamples, seed)


@lru_cache(maxsize=4)
def _draws(strata_bytes: bytes, resamples: int, seed: int) -> npt.NDArray[np.float32]:
    strata = np.frombuffer(strata_bytes, dtype=np.int64)
    out = significance.bootstrap_weights(strata, resamples, np.random.default_rng(seed))
    out.flags.writeable = False
    return out


def cluster_interval(
    top: npt.NDArray[np.generic], bottom: npt.NDArray[np.generic], units: Codes, draws: npt.NDArray[np.float32],
    level: float = 0.95,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:  # fmt: skip
    """sum(top) / sum(bottom) over rows, with a percentile interval from the cluster bootstrap.

    Args:
        top: [array-like, shape: (P, n)] e.g. 1 where a test row is classified rightly.
        bottom: [array-like, shape: (P, n)] e.g. 1 where a row is a test row.
        units: [array-like, shape: (n,)] entity of each row, 0 .. units - 1.
        draws: [array-like, shape: (resamples, units)] from `bootstrap_weights`.
        level: of the interval.

    Returns:
        ratio, low, high, each [shape: (P,)]; NaN where nothing counts.
    """
    n_units = draws.shape[1]
    tops, bottoms = top.astype(np.float64), bottom.astype(np.float64)
    if len(units) != n_units or (units != np.arange(n_units)).any():
        tops = np.stack([np.bincount(units, row, n_units) for row in tops])
        bottoms = np.stack([np.bincount(units, row, n_units) for row in bottoms])
    mean = _ratio(tops.sum(axis=1), bottoms.sum(axis=1))
    both = draws @ np.concatenate([tops, bottoms]).T.astype(np.float32)
    resampled = _ratio(both[:, : len(tops)].astype(np.float64), both[:, len(tops) :].astype(np.float64))
    some = np.isfinite(mean)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    tail = (1 - level) / 2
    if some.any():
        low[some], high[some] = np.nanquantile(resampled[:, some], (tail, 1 - tail), axis=0)
    return mean, low, high


def _ratio(top: Floats, bottom: Floats) -> npt.NDArray[np.float64]:
    """top / bottom, NaN where bottom is 0."""
    out = np.full(np.shape(top), np.nan)
    np.divide(top, bottom, out=out, where=np.asarray(bottom) > 0)
    return out
