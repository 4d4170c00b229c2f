"""Intervals of cross-validated controls: placements for the AUC, and the width that training sets add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask


def placements(score: Floats, positive: Mask, weights: Doubles) -> Doubles:
    """Share of the other class that each row is on the right side of; ties count half.

    These are the structural components of the AUC (DeLong, DeLong and Clarke-Pearson, 1988): their weighted mean over
    either class is the AUC, and the AUC of a resample of entities is close to the mean of the two.

    Args:
        score: array of shape (n,).
        positive: bool array of shape (n,).
        weights: float64 array of shape (n,), weight of each row among its class.

    Returns:
        float64 array of shape (n,); NaN if the other class has no weight.

    Example:
        >>> placements(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]), np.ones(4)).tolist()
        [1.0, 0.5, 0.5, 1.0]
    """
    out = np.full(len(score), np.nan)
    for own, other, direction in ((positive, ~positive, 1), (~positive, positive, -1)):
        total = weights[other].sum()
        if not total > 0:
            continue
        order = np.argsort(direction * score[other], kind="stable")
        values = direction * score[other][order]
        below = np.concatenate([[0.0], np.cumsum(weights[other][order])])
        own_values = direction * score[own]
        sides = (np.searchsorted(values, own_values, side) for side in ("left", "right"))
        out[own] = sum(below[i] for i in sides) / (2 * total)
    return out


def fold_placements(score: Floats, positive: Mask, weights: Doubles, fold: Codes) -> Doubles:
    """Placements of every row among the rows of its own fold; 0 where a row has no weight or no counterpart."""
    out = np.zeros(len(score))
    for k in np.unique(fold[weights > 0]):
        rows = np.flatnonzero((fold == k) & (weights > 0))
        out[rows] = np.nan_to_num(placements(score[rows], positive[rows], weights[rows]), nan=0.5)
    return out


def training_factor(holdout: float, tests: float) -> float:
    """Factor by which the training sets widen an interval that resamples the test rows alone.

    Nadeau and Bengio (2003): the mean over `tests` test sets with a share `holdout` of the data each has 1 / tests +
    holdout / (1 - holdout) times the variance of one of them, not 1 / tests, because the training sets overlap.

    Args:
        holdout: share of the entities in one test set.
        tests: number of test sets.

    Example:
        >>> round(training_factor(0.2, 5), 9)  # five folds
        1.5
    """
    return float(np.sqrt(1 + tests * holdout / (1 - holdout)))


@dataclass(frozen=True)
class Resampler:
    """Cluster bootstrap of a ratio of sums over rows, with the width that training sets add.

    Attributes:
        units: int64 array of shape (n,), entity of each row, 0 .. units - 1.
        draws: float32 array of shape (resamples, units).
        factor: see `training_factor`.
    """

    units: Codes
    draws: npt.NDArray[np.float32]
    factor: float = 1.0

    def sums(self, rows: npt.NDArray[np.generic]) -> Doubles:
        """Sum rows (columns, n) in every resample: float64 array of shape (resamples, columns)."""
        n_units = self.draws.shape[1]
        by_unit = np.stack([np.bincount(self.units, np.asarray(row, np.float64), n_units) for row in rows])
        return np.asarray(self.draws.astype(np.float64) @ by_unit.T, dtype=np.float64)

    def mean(self, top: npt.NDArray[np.generic], weight: npt.NDArray[np.generic]) -> tuple[Doubles, Doubles, Doubles]:
        """Compute sum(top) / sum(weight) with its 95 % interval; arrays (columns, n), results (columns,).

        The interval is cut at 0 and 1.
        """
        value = divide(np.asarray(top, np.float64).sum(axis=1), np.asarray(weight, np.float64).sum(axis=1))
        return value, *self.bounds(divide(self.sums(top), self.sums(weight)), value, (0.0, 1.0))

    def auc(self, top: npt.NDArray[np.generic], weight: npt.NDArray[np.generic]) -> tuple[Doubles, Doubles, Doubles]:
        """Compute the AUC from weighted placements with its 95 % interval; arrays (columns, n), results (columns,).

        Rows of both classes are in the sums, and each class has half of the weight.
        """
        value = divide(np.asarray(top, np.float64).sum(axis=1), np.asarray(weight, np.float64).sum(axis=1))
        resampled = divide(self.sums(top), self.sums(weight))
        # The AUC of a resample is A1 + A0 - AUC, with the mean placements A1 and A0 of the classes; these sums give
        # (A1 + A0) / 2, which varies half as much.
        return value, *self.bounds(2 * resampled - value, value, (0.0, 1.0))

    def bounds(self, resampled: Doubles, value: Doubles, limits: tuple[float, float]) -> tuple[Doubles, Doubles]:
        """95 % interval from values (resamples, columns), widened by the factor around the estimate (columns,)."""
        defined = np.isfinite(value) & np.isfinite(resampled).all(axis=0)
        low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
        if defined.any():
            ends = np.quantile(resampled[:, defined], (0.025, 0.975), axis=0)
            at = value[defined]
            low[defined], high[defined] = np.clip(at + self.factor * (ends - at), *limits)
        return low, high


def divide(top: Doubles, bottom: Doubles) -> Doubles:
    """top / bottom, NaN where bottom is 0."""
    out = np.full(np.shape(top), np.nan)
    np.divide(top, bottom, out=out, where=np.asarray(bottom) > 0)
    return out
