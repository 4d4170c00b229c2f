"""Cluster bootstrap: intervals by resampling entities.

The unit of resampling is the entity, never the row, because rows of one entity are not independent. All functions are
vectorised over resamples.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.array_types import Array

LEVEL = 0.95


def bootstrap_weights(strata: Array, draws: int = 1000, seed: int = 0) -> npt.NDArray[np.float32]:
    """Number of times that each entity is drawn in each sample, with replacement inside its stratum.

    The last four results stay in memory, because every slab of a call asks for the same one.

    Args:
        strata: int array of shape (units,), stratum of each entity (its group); negative ones are never drawn.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        float32 array of shape (draws, units), read-only.
    """
    return _bootstrap_weights(np.asarray(strata, dtype=np.int64).tobytes(), draws, seed)


@lru_cache(maxsize=4)
def _bootstrap_weights(strata_bytes: bytes, draws: int, seed: int) -> npt.NDArray[np.float32]:
    strata = np.frombuffer(strata_bytes, dtype=np.int64)
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, len(strata)), np.float32)
    for stratum in np.unique(strata[strata >= 0]):
        members = np.flatnonzero(strata == stratum)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    weights.flags.writeable = False
    return weights


def cluster_bootstrap(
    values: Array,
    units: Array,
    *,
    strata: Array | None = None,
    draws: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[Array, Array]:
    """Interval of a mean over rows, by bootstrap over entities.

    Args:
        values: array of shape (rows, ...), e.g. 1.0 where a row was classified correctly; NaN = no value.
        units: int array of shape (rows,), entity of each row.
        strata: int array of shape (rows,), stratum (group) of each row's entity; None = one stratum.
        draws: bootstrap samples.
        level: coverage.
        seed: of the resampling.
        bounds: range of the mean.

    Returns:
        (low, high), each a float64 array of shape (...).

    Example:
        >>> right = np.repeat([1.0, 0.0, 1.0, 1.0], 25)
        >>> low, high = cluster_bootstrap(right, np.arange(100), bounds=(0, 1))
        >>> bool(low < 0.75 < high), round(float(high - low), 1)
        (True, 0.2)
    """
    values = np.asarray(values, dtype=np.float64)
    _, codes = np.unique(units, return_inverse=True)
    count = int(codes.max()) + 1
    flat = values.reshape(len(values), -1)
    has_value = ~np.isnan(flat)
    by_unit = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_unit], np.arange(count))
    sums = np.add.reduceat(np.where(has_value, flat, 0)[by_unit], starts, axis=0)
    sizes = np.add.reduceat(has_value[by_unit].astype(np.float64), starts, axis=0)
    stratum = np.zeros(count, int)
    if strata is not None:
        stratum[codes] = strata
    weights = bootstrap_weights(stratum, draws, seed).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = (weights @ sums) / (weights @ sizes)
        estimate = sums.sum(axis=0) / sizes.sum(axis=0)
    low, high = interval(replicates, estimate, level, bounds)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def interval(
    draws: Array, estimate: Array, level: float = LEVEL, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Array, Array]:
    """Bootstrap interval around an estimate: percentiles of the draws, moved so that their median is the estimate.

    A resample has its own noise on top of the sample's noise, which lowers statistics like R2 or a rank correlation.
    Plain percentiles would be too low and could miss the estimate.

    Args:
        draws: array of shape (draws, ...), bootstrap replicates.
        estimate: array of shape (...).
        level: coverage.
        bounds: range of the statistic; the interval is cut there.

    Returns:
        (low, high), each of shape (...); NaN where more than half of the replicates are NaN.
    """
    tail = (1 - level) / 2
    undefined = np.isnan(draws)
    levels = [tail, 0.5, 1 - tail]
    if undefined.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN columns stay NaN
            low, middle, high = np.nanquantile(draws, levels, axis=0)
        too_few = undefined.mean(axis=0) > 0.5
        low, middle, high = (np.where(too_few, np.nan, bound) for bound in (low, middle, high))
    else:
        low, middle, high = np.quantile(draws, levels, axis=0)
    return np.clip(estimate + low - middle, *bounds), np.clip(estimate + high - middle, *bounds)
