"""Quantiles of norms from counts in logarithmic buckets, which add up over processes.

The buckets are those of DDSketch (Masson, Rim and Lee, 2019) with fixed ends: each one is 2 % wider than the one
before it, so that every quantile between 1e-12 and 1e12 is within 1 % of a value of the data at this rank. Counts add
up exactly, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stratalens.analyses.data.array_types import Array, Doubles

ACCURACY = 0.01  # largest relative error of a quantile
LOG_GAMMA = math.log((1 + ACCURACY) / (1 - ACCURACY))
LOG_LOWEST = math.log(1e-12)
BUCKETS = math.ceil(2 * -LOG_LOWEST / LOG_GAMMA)


def bucket_values() -> Doubles:
    """Representative value of each bucket: float64 array of shape (BUCKETS,)."""
    upper = np.exp(LOG_LOWEST + LOG_GAMMA * np.arange(1, BUCKETS + 1))
    return np.asarray(2 * upper / (1 + math.exp(LOG_GAMMA)))


def sketch_quantiles(counts: Array, q: Sequence[float]) -> Doubles:
    """Quantiles of the values that were counted.

    Args:
        counts: integer array of shape (..., BUCKETS).
        q: quantiles, from 0 to 1.

    Returns:
        float64 array of shape (..., q); NaN without values.

    Example:
        >>> counts = np.zeros(BUCKETS, np.int64)
        >>> counts[np.searchsorted(bucket_values(), [1.0, 2.0, 3.0])] = 1
        >>> sketch_quantiles(counts, [0.0, 0.5, 1.0]).round(1).tolist()
        [1.0, 2.0, 3.0]
    """
    total = counts.sum(axis=-1)
    below = np.cumsum(counts, axis=-1)
    values = bucket_values()
    out = np.full((*counts.shape[:-1], len(q)), np.nan)
    for place in np.ndindex(counts.shape[:-1]):
        if total[place]:
            rank = np.asarray(q) * (total[place] - 1)
            out[place] = values[np.searchsorted(below[place], rank, side="right").clip(0, BUCKETS - 1)]
    return out
