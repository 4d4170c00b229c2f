"""Intervals of cross-validated controls: placements for the AUC, and the width that training sets add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask
from stratalens.analyses.stats.scores import ratio, sum_by_unit


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


def fold_factor(folds: int) -> float:
    """Factor by which overlapping training sets widen an interval that resamples the test rows of all folds.

    Nadeau and Bengio (2003): the mean over k test sets with a share h of the data has 1 / k + h / (1 - h) times the
    variance of one of them. Resampling rows gives 1 / k of it.

    Example:
        >>> fold_factor(5)
        1.5
    """
    return split_factor(1 / folds, folds, partition=True)


def split_factor(holdout: float, repeats: int, partition: bool = False) -> float:
    """Compute the factor of `fold_factor` for random splits, whose test sets overlap as well.

    Args:
        holdout: share of the entities in one test set, h.
        repeats: number of splits, k.
        partition: whether every entity is tested once.
    """
    tests = repeats * holdout  # of an entity
    resampled = 1.0 if partition else 1 + (1 - holdout) / tests
    return float(np.sqrt((1 / tests + 1 / (1 - holdout)) / resampled))


@dataclass(frozen=True)
class Resampler:
    """Cluster bootstrap of a ratio of sums over rows, with the width that training sets add.

    Attributes:
        units: int64 array of shape (n,), entity of each row, 0 .. units - 1.
        draws: float32 array of shape (resamples, units).
        factor: see `fold_factor` and `split_factor`.
    """

    units: Codes
    draws: npt.NDArray[np.float32]
    factor: float = 1.0

    def sums(self, rows: npt.NDArray[np.generic]) -> Doubles:
        """Sum rows (columns, n) in every resample: float64 array of shape (resamples, columns)."""
        by_unit = sum_by_unit(rows, self.units, self.draws.shape[1])
        return np.asarray(self.draws.astype(np.float64) @ by_unit.T, dtype=np.float64)

    def mean(
        self,
        top: npt.NDArray[np.generic],
        weight: npt.NDArray[np.generic],
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[Doubles, Doubles, Doubles]:
        """Compute sum(top) / sum(weight) with its 95 % interval; arrays (columns, n), results (columns,)."""
        value = ratio(np.asarray(top, np.float64).sum(axis=1), np.asarray(weight, np.float64).sum(axis=1))
        return value, *self.bounds(ratio(self.sums(top), self.sums(weight)), value, limits)

    def auc(
        self, top: npt.NDArray[np.generic], weight: npt.NDArray[np.generic], positive: Mask
    ) -> tuple[Doubles, Doubles, Doubles]:
        """Compute the AUC from sums of placements (columns, n) with its 95 % interval, results (columns,).

        The AUC of a resample is A1 + A0 - AUC, where A1 and A0 are the mean placements of its two classes (the linear
        part of the U-statistic; DeLong et al., 1988).
        """
        value, resampled = self.auc_draws(top, weight, positive)
        return value, *self.bounds(resampled, value, (0.0, 1.0))

    def auc_draws(
        self, top: npt.NDArray[np.generic], weight: npt.NDArray[np.generic], positive: Mask
    ) -> tuple[Doubles, Doubles]:
        """Compute the AUC (columns,) and its value in every resample (resamples, columns)."""
        value, resampled = np.zeros(len(positive)), np.zeros((len(self.draws), len(positive)))
        for side in (positive, ~positive):
            tops, weights = np.where(side, top, 0.0), np.where(side, weight, 0.0)
            value += ratio(tops.sum(axis=1), weights.sum(axis=1)) / 2
            resampled += ratio(self.sums(tops), self.sums(weights))
        return value, resampled - value

    def bounds(self, resampled: Doubles, value: Doubles, limits: tuple[float, float]) -> tuple[Doubles, Doubles]:
        """95 % interval from values (resamples, columns), widened by the factor around the estimate (columns,)."""
        defined = np.isfinite(value) & np.isfinite(resampled).all(axis=0)
        low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
        if defined.any():
            ends = np.quantile(resampled[:, defined], (0.025, 0.975), axis=0)
            at = value[defined]
            low[defined], high[defined] = np.clip(at + self.factor * (ends - at), *limits)
        return low, high
