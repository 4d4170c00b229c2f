"""Ridge, LDA and difference-of-means probes from sums of rows, without the rows.

The formulas are those of `closed_form`, solved in float64 from the scatter of each group. The Ledoit-Wolf shrinkage of
LDA needs the fourth order: the sum over rows of their squared standardised length squared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg

from stratalens.analyses.data.array_types import Doubles, Signs
from stratalens.analyses.data.row_moments import RowMoments, join

# Order of the sums that each method needs.
NEEDS = {"diffmeans": "vectors", "ridge": "scatter", "lda": "squares"}


def fit_from_moments(
    moments: Sequence[RowMoments],
    signs: Signs,
    method: str,
    *,
    values: Doubles | None = None,
    alpha: float = 10.0,
    standardize: bool = False,
) -> tuple[Doubles, float]:
    """Fit one probe of two classes.

    Args:
        moments: sums of the rows of each group.
        signs: int8 array of shape (groups,), class of each group; 0 = in neither.
        method: "ridge", "lda" or "diffmeans".
        values: float64 array of shape (groups,), for "ridge" a number to predict instead of the classes.
        alpha: ridge penalty.
        standardize: scale features to unit variance; lda always does.

    Returns:
        Coefficients, float64 array of shape (d,), and the intercept.

    Example:
        >>> low, high = (RowMoments.of_rows(np.array(x)) for x in ([[0.0], [2.0]], [[4.0], [6.0]]))
        >>> w, b = fit_from_moments([low, high], np.array([-1, 1]), "diffmeans")
        >>> w.tolist(), b
        ([4.0], -12.0)
    """
    if method == "ridge":
        return _ridge(moments, signs, values, alpha, standardize)
    low, high = (join([m for m, s in zip(moments, signs, strict=True) if s == side]).central() for side in (-1, 1))
    # The threshold of a variance that counts as rounding depends on the middle of the rows.
    middle = (low.count * low.mean + high.count * high.mean) / (low.count + high.count)
    difference = high.mean - low.mean
    if method == "diffmeans":
        w = difference / _deviation(low + high, middle) ** 2 if standardize else difference
        return w, float(-w @ (high.mean + low.mean) / 2)
    share = np.array([low.count, high.count]) / (low.count + high.count)
    matrix = np.zeros((len(difference),) * 2)
    for part, weight in zip((low, high), share, strict=True):
        scale = _deviation(part, middle)
        shrinkage, variance = ledoit_wolf(part, scale)
        assert part.scatter is not None
        matrix += weight * (1 - shrinkage) / part.count * part.scatter
        matrix[np.diag_indices_from(matrix)] += weight * shrinkage * variance * scale**2
    w = _solve(matrix, difference)
    return w, float(-w @ (high.mean + low.mean) / 2 + np.log(share[1] / share[0]))


def _ridge(
    moments: Sequence[RowMoments], signs: Signs, values: Doubles | None, alpha: float, standardize: bool
) -> tuple[Doubles, float]:
    target = signs.astype(np.float64) if values is None else values
    used = [(m, t) for m, s, t in zip(moments, signs, target, strict=True) if s]
    total = join([m for m, _ in used]).central()
    right = sum((t * m.count * (m.mean - total.mean) for m, t in used), np.zeros_like(total.centre))
    scale = _deviation(total, total.mean) ** 2 if standardize else np.ones_like(total.centre)
    assert total.scatter is not None
    matrix = total.scatter.copy()
    matrix[np.diag_indices_from(matrix)] += alpha * scale
    w = _solve(matrix, right)
    mean_target = sum(t * m.count for m, t in used) / total.count
    return w, float(mean_target - w @ total.mean)


def ledoit_wolf(part: RowMoments, scale: Doubles) -> tuple[float, float]:
    """Estimate the shrinkage of the covariance of standardised rows (Ledoit and Wolf, 2004).

    Args:
        part: sums of the rows of one class up to the fourth order, around their mean.
        scale: float64 array of shape (d,), standard deviations.

    Returns:
        The shrinkage, and the mean variance of the features.
    """
    assert part.scatter is not None
    n, d = part.count, len(scale)
    covariance = part.scatter / (n * np.outer(scale, scale))
    trace, square = float(np.trace(covariance)), float(np.vdot(covariance, covariance))
    mean = trace / d
    delta = (square - 2 * mean * trace + d * mean**2) / d
    beta = min((part.quartic(1 / scale**2) / n - square) / (d * n), delta)
    return (0.0 if beta <= 0 else beta / (delta if delta > 0 else 1.0)), mean


def _deviation(part: RowMoments, middle: Doubles) -> Doubles:
    """Standard deviation of each feature; 1 where it is constant up to the rounding of float32."""
    variance, mean = part.variance, part.mean - middle
    rounding = 64 * np.finfo(np.float32).eps * np.maximum(mean**2, np.finfo(np.float64).tiny)
    constant = variance <= rounding
    return np.where(constant, 1.0, np.sqrt(np.where(constant, 1.0, variance)))


def _solve(matrix: Doubles, right: Doubles) -> Doubles:
    """Solve a symmetric system; the least-squares solution where the matrix is singular."""
    try:
        factor = linalg.cho_factor(matrix, lower=True)
    except linalg.LinAlgError:
        return np.asarray(linalg.lstsq(matrix, right)[0], dtype=np.float64)
    return np.asarray(linalg.cho_solve(factor, right), dtype=np.float64)
