"""Accuracy and AUC of probes on rows that they never saw, fold by fold, and intervals over entities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask, Signs
from stratalens.analyses.stats.bootstrap import LEVEL


def own_fold_scores(X: Floats, coef: Floats, intercept: Floats, fold: Codes) -> npt.NDArray[np.float32]:
    """Score every row by the probes that never saw its fold.

    Args:
        X: array of shape (n, d).
        coef: array of shape (P, folds, d).
        intercept: array of shape (P, folds).
        fold: int64 array of shape (n,).

    Returns:
        float32 array of shape (P, n).
    """
    out = np.empty((coef.shape[0], len(X)), dtype=np.float32)
    for k in range(coef.shape[1]):
        rows = np.flatnonzero(fold == k)
        out[:, rows] = coef[:, k] @ X[rows].T + intercept[:, k, None]
    return out


def fold_means(right: Mask, counted: Mask, fold: Codes, folds: int) -> Doubles:
    """Share of correctly classified rows in each fold.

    Args:
        right: bool array of shape (P, n), False on rows that are not counted.
        counted: bool array of shape (P, n), test rows.
        fold: int64 array of shape (n,).
        folds: number of folds.

    Returns:
        float64 array of shape (P, folds); NaN where a fold has no test rows.
    """
    member = np.equal.outer(fold, np.arange(folds)).astype(np.float64)
    return _ratio(right.astype(np.float64) @ member, counted.astype(np.float64) @ member)


def is_right(score: Floats, signs: Signs) -> Mask:
    """Test rows that are classified correctly, shape (P, n); False on rows that are not test rows."""
    right: Mask = ((score > 0) == (signs.T > 0)) & (signs.T != 0)
    return right


def fold_auc(score: Floats, signs: Signs, fold: Codes, folds: int) -> Doubles:
    """Area under the ROC curve in each fold (ties count half), shape (P, folds); NaN without both classes."""
    out = np.full((score.shape[0], folds), np.nan)
    for k in range(folds):
        in_fold = fold == k
        for p in range(score.shape[0]):
            rows = np.flatnonzero(in_fold & (signs[:, p] != 0))
            out[p, k] = auc(score[p, rows], signs[rows, p] > 0)
    return out


def auc(score: Floats, positive: Mask) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic; ties count half; NaN without both classes.

    Example:
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


def cluster_interval(
    top: npt.NDArray[np.generic],
    bottom: npt.NDArray[np.generic],
    units: Codes,
    draws: npt.NDArray[np.float32],
    level: float = LEVEL,
) -> tuple[Doubles, Doubles, Doubles]:
    """Compute sum(top) / sum(bottom) over rows, with a percentile interval from the cluster bootstrap.

    Args:
        top: array of shape (P, n), e.g. 1 where a test row is classified correctly.
        bottom: array of shape (P, n), e.g. 1 where a row is a test row.
        units: int64 array of shape (n,), entity of each row, 0 .. units - 1.
        draws: float32 array of shape (resamples, units) from `bootstrap_weights`.
        level: coverage.

    Returns:
        (ratio, low, high), each a float64 array of shape (P,); NaN where no row counts.
    """
    n_units = draws.shape[1]
    tops, bottoms = top.astype(np.float64), bottom.astype(np.float64)
    if len(units) != n_units or (units != np.arange(n_units)).any():
        tops = np.stack([np.bincount(units, row, n_units) for row in tops])
        bottoms = np.stack([np.bincount(units, row, n_units) for row in bottoms])
    mean = _ratio(tops.sum(axis=1), bottoms.sum(axis=1))
    both = draws @ np.concatenate([tops, bottoms]).T.astype(np.float32)
    resampled = _ratio(both[:, : len(tops)].astype(np.float64), both[:, len(tops) :].astype(np.float64))
    defined = np.isfinite(mean)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    tail = (1 - level) / 2
    if defined.any():
        low[defined], high[defined] = np.nanquantile(resampled[:, defined], (tail, 1 - tail), axis=0)
    return mean, low, high


def _ratio(top: Floats, bottom: Floats) -> Doubles:
    """top / bottom, NaN where bottom is 0."""
    out = np.full(np.shape(top), np.nan)
    np.divide(top, bottom, out=out, where=np.asarray(bottom) > 0)
    return out
