"""Resampling of entities: cluster bootstrap, permutation of labels, intervals, p-values, false discovery rate.

The unit of resampling is the entity, never the row, because rows of one entity are not independent. All functions are
vectorised over resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.data.array_types import Array
from stratalens.store.errors import InputError

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


def permuted_labels(labels: Array, draws: int, rng: np.random.Generator) -> Array:
    """Labels of entities in random order, shape (draws, units); all rows of an entity get the same new label."""
    return rng.permuted(np.tile(np.asarray(labels), (draws, 1)), axis=1)


def p_value(null: Array, observed: Array) -> Array:
    """One-sided permutation p-value, (1 + #{null >= observed}) / (1 + P), along the first axis.

    Phipson and Smyth (2010), "Permutation P-values should never be zero". NaN where the estimate is NaN. A shuffle
    whose value is NaN counts as one that exceeds the estimate.

    Example:
        >>> float(p_value(np.arange(99.0), np.array(97.5)))
        0.02
    """
    # Ties that differ by rounding are ties: a discrete statistic must not win by 1e-16.
    count = (~(null < observed - 1e-9 * np.maximum(1, np.abs(observed)))).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (1 + count) / (1 + len(null)))


def fdr(
    p: xr.DataArray | xr.Dataset, over: Sequence[Hashable] | None = None, method: Literal["bh", "by"] = "bh"
) -> Any:
    """Adjust p-values for the false discovery rate over layers, tokens and all other tests of a family.

    Benjamini and Hochberg (1995) with method="bh" (independent or positively dependent tests, as layers are),
    Benjamini and Yekutieli (2001) with method="by" (any dependence). NaN stays NaN and does not count.

    With P permutations no p is below 1 / (P + 1). A single place among m passes .05 from P = 20 m - 1 on. A UserWarning
    says so where some p are as small as they can be and no adjusted one passes .05. The number of permutations comes
    from the attribute `permutations` of `p`.

    Args:
        p: p-values; in a Dataset, every variable that ends in "_p" is adjusted separately.
        over: dims that form one family; None = all.
        method: "bh" or "by".

    Returns:
        The type of `p`, with the same dims, labels and other variables:
        a DataArray: float64 adjusted p-values.
        a Dataset: <name>_p (...): float64 adjusted p-values; all other variables unchanged.

    Raises:
        InputError: unknown method.

    Example:
        >>> p = xr.DataArray([[0.01, 0.02], [0.03, 0.5]], dims=("layer", "token"))
        >>> fdr(p).values.round(3).tolist()
        [[0.04, 0.04], [0.04, 0.5]]
    """
    from scipy.stats import false_discovery_control  # more than a second, which every worker of a cluster would pay

    if method not in ("bh", "by"):
        raise InputError(f"method={method!r}: valid are bh, by")
    if isinstance(p, xr.Dataset):
        count = {"permutations": p.attrs["permutations"]} if "permutations" in p.attrs else {}
        values = {name: v for name, v in p.data_vars.items() if str(name).endswith("_p")}
        return p.assign(
            {n: fdr(v.assign_attrs(count | v.attrs), over, method).assign_attrs(v.attrs) for n, v in values.items()}
        )
    dims = list(p.dims) if over is None else [d for d in over if d in p.dims]

    def adjust(family: Array) -> Array:
        adjusted = np.full(family.shape, np.nan)
        known = ~np.isnan(family)
        if known.any():
            adjusted[known] = false_discovery_control(family[known], method=method)
        return adjusted

    flat = xr.apply_ufunc(
        adjust,
        p.stack(_family=dims),
        input_core_dims=[["_family"]],
        output_core_dims=[["_family"]],
        vectorize=True,
    )
    adjusted = flat.unstack("_family")
    if all(d in p.coords for d in dims):
        adjusted = adjusted.reindex_like(p)  # stacking sorted the labels
    adjusted = adjusted.transpose(*p.dims)
    _warn_of_few_permutations(p, adjusted, dims)
    return adjusted


def _warn_of_few_permutations(p: xr.DataArray, adjusted: xr.DataArray, dims: list[Hashable]) -> None:
    """Warn where the smallest possible p cannot pass among so many tests."""
    permutations = int(p.attrs.get("permutations", 0))
    if not permutations or not bool(np.isclose(p, 1 / (permutations + 1)).any()) or bool((adjusted <= 1 - LEVEL).any()):
        return
    tests = int(p.notnull().sum(dims).max())
    warnings.warn(
        f"no place passes the false discovery rate of .05, although some p-values are as small as {permutations} "
        f"permutations can make them (1/{permutations + 1}); a single place among {tests} needs "
        f"permutations={needed_permutations(tests)}",
        stacklevel=3,
    )


def needed_permutations(tests: int, level: float = LEVEL) -> int:
    """Permutations with which a single place among `tests` can pass after adjustment.

    Example:
        >>> needed_permutations(1), needed_permutations(200)
        (19, 3999)
    """
    return round(tests / (1 - level)) - 1
