"""Rows of two classes matched in their statistics, by bins or nearest neighbours."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from stratalens.analyses.data.array_types import Codes, Doubles, Mask
from stratalens.analyses.estimators.logistic import fit_logistic
from stratalens.analyses.stats.scores import auc

CALIPER = 0.2  # largest distance of a match, in standard deviations of the log odds (Austin, 2011)


def joint_bins(values: Doubles, bins: int) -> Codes:
    """Assign every row to a joint bin of all statistics.

    The bins are quantiles of each statistic, shared by both classes.

    Args:
        values: array of shape (n, statistic), training rows of both classes.
        bins: bins of a statistic; equal quantiles (ties, constants) give fewer.

    Returns:
        int64 array of shape (n,), codes from 0 without gaps.

    Example:
        >>> joint_bins(np.array([[0.0], [1.0], [2.0], [3.0]]), 2).tolist()
        [0, 0, 1, 1]
    """
    code = np.zeros(len(values), dtype=np.int64)
    for column in values.T:
        edges = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
        # Renumbering after each statistic keeps codes small with any number of statistics.
        _, code = np.unique(code * (len(edges) + 1) + np.digitize(column, edges), return_inverse=True)
    return np.asarray(code, dtype=np.int64)


def match_bins(values: Doubles, positive: Mask, bins: int, rng: np.random.Generator) -> Mask:
    """Choose equal numbers of rows of both classes in each joint bin, at random.

    The balancing of Krasheninnikov, Turner and Krueger (2025): each bin keeps min(n1, n2) rows of each class.

    Args:
        values: array of shape (n, statistic), training rows.
        positive: bool array of shape (n,), class.
        bins: bins of a statistic.
        rng: chooses the rows.

    Returns:
        bool array of shape (n,), rows to keep.
    """
    code = joint_bins(values, bins)
    n_codes = int(code.max(initial=0)) + 1
    counts = [np.bincount(code[positive == side], minlength=n_codes) for side in (False, True)]
    quota = np.minimum(*counts)
    keep = np.zeros(len(values), dtype=bool)
    for side in (False, True):
        rows = rng.permutation(np.flatnonzero(positive == side))
        rows = rows[np.argsort(code[rows], kind="stable")]
        bin_of_row = code[rows]
        rank = np.arange(len(rows)) - np.searchsorted(bin_of_row, bin_of_row)  # inside the bin, in random order
        keep[rows[rank < quota[bin_of_row]]] = True
    return keep


def match_nearest(values: Doubles, positive: Mask, rng: np.random.Generator, caliper: float = CALIPER) -> Mask:
    """Match rows of the two classes one to one, by nearest log odds.

    Each row of the smaller class, in random order, takes the nearest free row of the other class. The log odds are
    those of the class given the statistics (a logistic regression on these rows). Matches farther than `caliper`
    standard deviations are dropped (Rosenbaum and Rubin, 1985; Austin, 2011).

    Args:
        values: array of shape (n, statistic), training rows.
        positive: bool array of shape (n,), class.
        rng: order in which rows choose.
        caliper: largest distance of a match.

    Returns:
        bool array of shape (n,), rows to keep, equally many of both classes.
    """
    signs = np.where(positive, 1, -1).astype(np.int8)[:, None]
    fit = fit_logistic(values, signs, C=1.0, standardize=True)
    odds = values @ fit.coef[0] + fit.intercept[0]
    reach = caliper * float(odds.std())
    small = positive if positive.sum() <= (~positive).sum() else ~positive
    others = np.flatnonzero(~small)
    free = others[np.argsort(odds[others], kind="stable")].tolist()
    free_odds = odds[free].tolist()
    keep = np.zeros(len(values), dtype=bool)
    # Deleting from a sorted list shifts its tail, which is fast enough: 0.65 s for 100,000 rows.
    for row in rng.permutation(np.flatnonzero(small)).tolist():
        place = bisect_left(free_odds, odds[row])
        neighbours = [i for i in (place, place - 1) if 0 <= i < len(free)]
        distances = [abs(free_odds[i] - odds[row]) for i in neighbours]
        if distances and min(distances) <= reach:
            nearest = neighbours[int(np.argmin(distances))]
            keep[[row, free.pop(nearest)]] = True
            del free_odds[nearest]
    return keep


def balance_classes(keep: Mask, positive: Mask, rng: np.random.Generator) -> Mask:
    """Drop rows of the larger class at random until both classes keep equally many."""
    sides = [np.flatnonzero(keep & (positive == side)) for side in (False, True)]
    size = min(map(len, sides))
    out = np.zeros_like(keep)
    for rows in sides:
        out[rng.permutation(rows)[:size]] = True
    return out


def standardised_difference(values: Doubles, positive: Mask) -> Doubles:
    """Compute the absolute standardised mean difference of each statistic.

    |m1 - m0| / sqrt((v1 + v0) / 2); below 0.1 counts as balanced (Austin, 2011). A statistic that is constant in both
    classes gives 0 if the two constants are equal, else infinity.

    Args:
        values: array of shape (n, statistic).
        positive: bool array of shape (n,), class.

    Returns:
        float64 array of shape (statistic,).

    Example:
        >>> positive = np.array([False, False, True, True])
        >>> standardised_difference(np.array([[0.0], [2.0], [1.0], [3.0]]), positive).tolist()
        [1.0]
    """
    low, high = values[~positive], values[positive]
    gap = np.abs(high.mean(axis=0) - low.mean(axis=0))
    spread = np.sqrt((high.var(axis=0) + low.var(axis=0)) / 2)
    flat = spread <= 1e-12 * np.maximum(1, np.abs(values).max(axis=0))
    return np.where(flat, np.where(gap > 0, np.inf, 0.0), gap / np.where(flat, 1, spread))


def find_most_separating(values: Doubles, positive: Mask) -> tuple[int, float]:
    """Find the column that alone separates the classes best, and its AUC (0.5 to 1)."""
    areas = [auc(column, positive) for column in values.T]
    folded = np.maximum(areas, 1 - np.asarray(areas))
    best = int(np.argmax(folded))
    return best, float(folded[best])
