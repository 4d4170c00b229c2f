"""Probability of a class given the statistics, weights that balance the classes, and their common support."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from stratalens.analyses.controls.spline_basis import SplineBasis
from stratalens.analyses.data.array_types import Codes, Doubles, Mask, Signs

# Inverse penalty of the logistic regression. A penalty that predicts best leaves part of the difference between the
# classes, so this one is weaker: in six simulated confounds it left the smallest difference.
INVERSE_PENALTY = 0.2
TRIMMED = 0.025  # share of each class that is left out of its range of propensities


def cross_fitted_log_odds(values: Doubles, sign: Signs, fold: Codes, parts: list[Mask]) -> Doubles:
    """Estimate the log odds of the positive class given the statistics, for rows that the estimate never saw.

    A logistic regression on splines and products of the statistics is fitted to the other folds (cross-fitting, as in
    Chernozhukov et al., 2018). Classes have equal weight, so that 0 means "equally likely" at equal class sizes.

    Args:
        values: float64 array of shape (n, statistic), all finite.
        sign: int8 array of shape (n,): +1, -1, or 0 for rows outside the pair.
        fold: int64 array of shape (n,).
        parts: bool arrays of shape (n,), rows that are estimated separately, such as training and test templates.

    Returns:
        float64 array of shape (n,); 0 where one class has no other row, NaN outside the pair.
    """
    out = np.full(len(sign), np.nan)
    for part in parts:
        rows = part & (sign != 0)
        for k in np.unique(fold[rows]):
            own, other = rows & (fold == k), rows & (fold != k)
            out[own] = _log_odds(values[other], sign[other], values[own])
    return out


def _log_odds(train: Doubles, sign: Signs, values: Doubles) -> Doubles:
    if not ((sign > 0).any() and (sign < 0).any()):
        return np.zeros(len(values))
    basis = SplineBasis(train)
    columns = basis.transform(train)
    if not columns.shape[1]:
        return np.zeros(len(values))
    model = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=500, tol=1e-4)
    model.fit(columns, sign > 0)
    return np.asarray(model.decision_function(basis.transform(values)), dtype=np.float64)


def overlap_weights(log_odds: Doubles, sign: Signs, rows: Mask) -> Doubles:
    """Weight each row by the probability of the other class (Li, Morgan and Zaslavsky, 2018).

    Rows that could be of either class weigh most, and both classes then have the same mean of every function of the
    statistics that the log odds are linear in.

    Args:
        log_odds: float64 array of shape (n,).
        sign: int8 array of shape (n,).
        rows: bool array of shape (n,), rows to weight.

    Returns:
        float64 array of shape (n,): each class sums to half the number of rows; 0 on other rows.

    Example:
        >>> sign = np.array([-1, -1, 1, 1], np.int8)
        >>> overlap_weights(np.zeros(4), sign, np.ones(4, bool)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    out = np.zeros(len(sign))
    inside = rows & (sign != 0)
    for side in (-1, 1):
        own = inside & (sign == side)
        weight = 1 / (1 + np.exp(np.clip(side * log_odds[own], -500, 500)))
        total = weight.sum()
        out[own] = weight * (inside.sum() / (2 * total)) if total > 0 else 0.0
    return out


def effective_rows(weights: Doubles) -> float:
    """Number of equally weighted rows with the same variance (Kish, 1965): (sum w)**2 / sum w**2.

    Example:
        >>> effective_rows(np.array([1.0, 1.0, 0.0]))
        2.0
    """
    square = float((weights**2).sum())
    return float(weights.sum() ** 2 / square) if square > 0 else 0.0


def common_support(log_odds: Doubles, sign: Signs, rows: Mask) -> float:
    """Share of the rows whose propensity is in the range of both classes (Dehejia and Wahba, 1999).

    A few rows cannot widen the range: 2.5 % of each class are left out at its end (trimming as in Crump, Hotz, Imbens
    and Mitnik, 2009, but by ranks, which a penalty does not move).

    Args:
        log_odds: float64 array of shape (n,).
        sign: int8 array of shape (n,): +1, -1 or 0.
        rows: bool array of shape (n,), rows to count.

    Example:
        >>> sign = np.repeat([-1, 1], 100).astype(np.int8)
        >>> common_support(np.repeat([-1.0, 1.0], 100), sign, np.ones(200, bool))
        0.0
    """
    sides = [log_odds[rows & (sign == side)] for side in (-1, 1)]
    if not all(len(side) for side in sides):
        return float("nan")
    high, low = np.quantile(sides[0], 1 - TRIMMED), np.quantile(sides[1], TRIMMED)
    inside = np.concatenate(sides)
    return float(((inside >= low) & (inside <= high)).mean())


def weighted_difference(values: Doubles, sign: Signs, weights: Doubles) -> Doubles:
    """Absolute standardised difference of the weighted class means of each statistic.

    The unit is the pooled standard deviation without weights, so that weights cannot change it (Austin and Stuart,
    2015). A statistic that is constant in both classes gives 0 if the two constants are equal, else infinity.

    Args:
        values: float64 array of shape (n, statistic).
        sign: int8 array of shape (n,), +1 or -1.
        weights: float64 array of shape (n,).

    Returns:
        float64 array of shape (statistic,); NaN if a class has no weight.
    """
    sides = [sign < 0, sign > 0]
    if any(weights[own].sum() <= 0 for own in sides):
        return np.full(values.shape[1], np.nan)
    low, high = (np.average(values[own], axis=0, weights=weights[own]) for own in sides)
    spread = np.sqrt(sum(values[own].var(axis=0) for own in sides) / 2)
    gap = np.abs(high - low)
    flat = spread <= 1e-12 * np.maximum(1, np.abs(values).max(axis=0))
    return np.where(
        flat, np.where(gap > 1e-9 * np.maximum(1, np.abs(low)), np.inf, 0.0), gap / np.where(flat, 1, spread)
    )
