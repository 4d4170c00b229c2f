"""Accuracy and AUC of probes on rows that they never saw, fold by fold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

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
    return ratio(right.astype(np.float64) @ member, counted.astype(np.float64) @ member)


def is_right(score: Floats, signs: Signs) -> Mask:
    """Test rows that are classified correctly, shape (P, n); False on rows that are not test rows."""
    right: Mask = ((score > 0) == (signs.T > 0)) & (signs.T != 0)
    return right


def concordance(score: Floats, positive: Mask, negative: Mask, fold: Codes, folds: int) -> tuple[Doubles, Doubles]:
    """Count the pairs of a positive and a negative row of one fold, and those in the right order.

    Scores of different folds come from different probes and are not compared.

    Args:
        score: array of shape (P, n), finite on all rows that are counted.
        positive: bool array of shape (P, n).
        negative: bool array of shape (P, n).
        fold: int64 array of shape (n,).
        folds: number of folds.

    Returns:
        (concordant, pairs), each a float64 array of shape (P, folds); a tie counts half. The AUC of a fold is their
        ratio, and the AUC of all folds the ratio of their sums.
    """
    concordant, pairs = np.zeros((2, len(score), folds))
    for k, rows, is_positive, ranks, above in _ranked_folds(score, positive, negative, fold, folds):
        n_pos, n_neg = is_positive.sum(axis=1), negative[:, rows].sum(axis=1)
        concordant[:, k] = (ranks * is_positive).sum(axis=1) - n_pos * ((n_pos + 1) / 2 + above)
        pairs[:, k] = n_pos * n_neg
    return concordant, pairs


def placements(score: Floats, positive: Mask, negative: Mask, fold: Codes, folds: int) -> Doubles:
    """Number of rows of the other class and of the same fold that each row is in the right order with.

    These are the structural components of the AUC (DeLong, DeLong and Clarke-Pearson, 1988), not divided by the
    number of rows of the other class.

    Returns:
        float64 array of shape (P, n), 0 on rows in neither class.
    """
    out = np.zeros(score.shape)
    for _, rows, is_positive, ranks, above in _ranked_folds(score, positive, negative, fold, folds):
        is_negative = negative[:, rows]
        own = np.zeros(ranks.shape)
        for member in (is_positive, is_negative):
            within = rankdata(np.where(member, score[:, rows], -np.inf), axis=1)
            own += np.where(member, within - (~member).sum(axis=1, keepdims=True), 0)
        below = ranks - above[:, None] - own
        n_pos = is_positive.sum(axis=1, keepdims=True)
        out[:, rows] = np.where(is_positive, below, np.where(is_negative, n_pos - below, 0))
    return out


def _ranked_folds(
    score: Floats, positive: Mask, negative: Mask, fold: Codes, folds: int
) -> Iterator[tuple[int, Codes, Mask, Doubles, Codes]]:
    """Yield each fold, its rows, its positive rows, the ranks of its scores, and how many rows are outside (P,)."""
    for k in range(folds):
        rows = np.flatnonzero(fold == k)
        is_positive = positive[:, rows]
        outside = ~(is_positive | negative[:, rows])
        own = score[:, rows]
        if outside.any():  # rows in neither class get the lowest ranks
            own = np.where(outside, -np.inf, own)
        yield k, rows, is_positive, np.asarray(rankdata(own, axis=1), dtype=np.float64), outside.sum(axis=1)


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

    The interval does not include the variation of probes between training samples; see `intervals` for that.

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
    tops, bottoms = sum_by_unit(top, units, n_units), sum_by_unit(bottom, units, n_units)
    mean = ratio(tops.sum(axis=1), bottoms.sum(axis=1))
    both = draws @ np.concatenate([tops, bottoms]).T.astype(np.float32)
    resampled = ratio(both[:, : len(tops)].astype(np.float64), both[:, len(tops) :].astype(np.float64))
    defined = np.isfinite(mean)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    tail = (1 - level) / 2
    if defined.any():
        low[defined], high[defined] = np.nanquantile(resampled[:, defined], (tail, 1 - tail), axis=0)
    return mean, low, high


def sum_by_unit(values: npt.NDArray[np.generic], units: Codes, n_units: int) -> Doubles:
    """Sum values (P, n) over the rows of each entity, shape (P, units)."""
    numbers: Doubles = np.asarray(values, dtype=np.float64)
    if len(units) == n_units and (units == np.arange(n_units)).all():
        return numbers
    return np.stack([np.bincount(units, row, n_units) for row in numbers])


def ratio(top: Floats, bottom: Floats) -> Doubles:
    """top / bottom, NaN where bottom is 0."""
    out = np.full(np.shape(top), np.nan)
    np.divide(top, bottom, out=out, where=np.asarray(bottom) > 0)
    return out
