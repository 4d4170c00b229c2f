"""Choosing rows of two classes that agree in their statistics: joint bins, or nearest neighbours.

Array functions; they see training rows only. The verb matched_probe is in matched.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stratalens.analyses.estimators.logistic import fit_logistic
from stratalens.analyses.stats.scores import auc

Doubles = npt.NDArray[np.float64]


Bools = npt.NDArray[np.bool_]


# Farthest match, in standard deviations of the log odds (Austin, 2011).
CALIPER = 0.2


def joint_bins(values: Doubles, bins: int) -> npt.NDArray[np.int64]:
    """Joint bin of every row: quantile bins of each statistic, shared by both classes, combined into one code.

    Args:
        values: [array-like, shape: (n, statistic)] of training rows of both classes.
        bins: bins a statistic; equal quantiles (ties, constants) make fewer.

    Returns:
        [shape: (n,)] codes 0 .. number of different joint bins - 1.

    >>> joint_bins(np.array([[0.0], [1.0], [2.0], [3.0]]), 2).tolist()
    [0, 0, 1, 1]
    """
    code = np.zeros(len(values), dtype=np.int64)
    for column in values.T:
        edges = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
        # Renumbered after each statistic, so that codes stay small however many statistics there are.
        _, code = np.unique(code * (len(edges) + 1) + np.digitize(column, edges), return_inverse=True)
    return np.asarray(code, dtype=np.int64)


def match_bins(values: Doubles, positive: Bools, bins: int, rng: np.random.Generator) -> Bools:
    """In each joint bin as many rows of one class as of the other, chosen at random.

    The balancing of Krasheninnikov, Turner and Krueger (2025): in each bin that both classes share keep
    min(n1, n2) rows of each.

    Args:
        values: [array-like, shape: (n, statistic)] of training rows.
        positive: [array-like, shape: (n,)] class.
        bins: bins a statistic.
        rng: chooses the rows.

    Returns:
        [shape: (n,)] rows that are kept.
    """
    code = joint_bins(values, bins)
    n_codes = int(code.max(initial=0)) + 1
    counts = [np.bincount(code[positive == side], minlength=n_codes) for side in (False, True)]
    keep = np.minimum(*counts)
    out = np.zeros(len(values), dtype=bool)
    for side in (False, True):
        rows = rng.permutation(np.flatnonzero(positive == side))
        rows = rows[np.argsort(code[rows], kind="stable")]
        # Rank of each row inside its bin, in random order; the first keep[bin] stay.
        own = code[rows]
        rank = np.arange(len(rows)) - np.searchsorted(own, own)
        out[rows[rank < keep[own]]] = True
    return out


def match_nearest(values: Doubles, positive: Bools, rng: np.random.Generator, caliper: float = CALIPER) -> Bools:
    """One to one, each row of the smaller class with the free row of the other class nearest in log odds.

    The log odds are those of the class given the statistics (a logistic regression on these rows);
    matches farther than `caliper` standard deviations are dropped (Rosenbaum and Rubin, 1985; Austin, 2011).

    Args:
        values: [array-like, shape: (n, statistic)] of training rows.
        positive: [array-like, shape: (n,)] class.
        rng: order in which rows choose.
        caliper: farthest match.

    Returns:
        [shape: (n,)] rows that are kept, as many of one class as of the other.
    """
    signs = np.where(positive, 1, -1).astype(np.int8)[:, None]
    fit = fit_logistic(values, signs, C=1.0, standardize=True)
    odds = values @ fit.coef[0] + fit.intercept[0]
    small = positive if positive.sum() <= (~positive).sum() else ~positive
    choosers, others = np.flatnonzero(small), np.flatnonzero(~small)
    others = others[np.argsort(odds[others], kind="stable")]
    ladder = odds[others]
    reach = caliper * float(odds.std())
    # Forests of places: the root of `place` in `right` is the first free place from there on, the root in `left`
    # is one more than the last free place before it.
    left, right = np.arange(len(others) + 1), np.arange(len(others) + 1)
    out = np.zeros(len(values), dtype=bool)
    for row in rng.permutation(choosers):
        place = int(np.searchsorted(ladder, odds[row]))
        above, below = _find(right, place), _find(left, place) - 1
        far_up = ladder[above] - odds[row] if above < len(others) else np.inf
        far_down = odds[row] - ladder[below] if below >= 0 else np.inf
        best, distance = (above, far_up) if far_up <= far_down else (below, far_down)
        if distance <= reach:
            out[[row, others[best]]] = True
            right[best] = best + 1
            left[best + 1] = best
    return out


def even_out(keep: Bools, positive: Bools, rng: np.random.Generator) -> Bools:
    """As many kept rows of one class as of the other: the surplus is dropped at random."""
    sides = [np.flatnonzero(keep & (positive == side)) for side in (False, True)]
    size = min(map(len, sides))
    out = np.zeros_like(keep)
    for rows in sides:
        out[rng.permutation(rows)[:size]] = True
    return out


def standardised_difference(values: Doubles, positive: Bools) -> Doubles:
    """Absolute standardised mean difference of each statistic between the classes, shape (statistic,).

    |m1 - m0| / sqrt((v1 + v0) / 2); below 0.1 counts as balanced (Austin, 2011). 0 where both are constant and equal.

    >>> standardised_difference(np.array([[0.0], [2.0], [1.0], [3.0]]), np.array([False, False, True, True])).tolist()
    [1.0]
    """
    low, high = values[~positive], values[positive]
    gap = np.abs(high.mean(axis=0) - low.mean(axis=0))
    spread = np.sqrt((high.var(axis=0) + low.var(axis=0)) / 2)
    flat = spread <= 1e-12 * np.maximum(1, np.abs(values).max(axis=0))
    return np.where(flat, np.where(gap > 0, np.inf, 0.0), gap / np.where(flat, 1, spread))


def most_separating(values: Doubles, positive: Bools) -> tuple[int, float]:
    """The statistic that alone tells the classes apart best: its column and its AUC (0.5 to 1)."""
    areas = [auc(column, positive) for column in values.T]
    folded = np.maximum(areas, 1 - np.asarray(areas))
    best = int(np.argmax(folded))
    return best, float(folded[best])


def _find(parent: npt.NDArray[np.int64], place: int) -> int:
    """Root of `place`, flattening the path."""
    root = place
    while parent[root] != root:
        root = int(parent[root])
    while parent[place] != root:
        parent[place], place = root, int(parent[place])
    return root
