"""Uncertainty: intervals by cluster bootstrap, p-values by permutation of labels over entities, false discovery rate.

The unit of resampling is always the entity, never the row: rows about one
entity are no independent evidence. Everything is vectorised over resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.data.groups import Array
from stratalens.store.errors import InputError

LEVEL = 0.95


def interval(
    draws: Array, estimate: Array, level: float = LEVEL, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Array, Array]:
    """Bootstrap interval around an estimate: percentiles of the draws, moved so that their median is the estimate.

    A resample has its own noise on top of the sample's, which pulls statistics like R2 or a rank correlation
    down; plain percentiles would then lie below the estimate or miss it.

    Args:
        draws: [array-like, shape: (B, ...)] bootstrap replicates.
        estimate: [array-like, shape: (...)].
        level: coverage.
        bounds: values that the statistic can take; the interval is cut there.

    NaN where more than half of the replicates are NaN.
    """
    tail = (1 - level) / 2
    undefined = np.isnan(draws)
    levels = [tail, 0.5, 1 - tail]
    if undefined.any():  # replicates that could not be computed say nothing; with most of them gone nor does the rest
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN columns stay NaN
            low, middle, high = np.nanquantile(draws, levels, axis=0)
        few = undefined.mean(axis=0) > 0.5
        low, middle, high = (np.where(few, np.nan, bound) for bound in (low, middle, high))
    else:
        low, middle, high = np.quantile(draws, levels, axis=0)
    return np.clip(estimate + low - middle, *bounds), np.clip(estimate + high - middle, *bounds)


def p_value(null: Array, observed: Array) -> Array:
    """One-sided permutation p-value, (1 + #{null >= observed}) / (1 + P), along the first axis.

    Phipson and Smyth (2010), "Permutation P-values should never be zero". NaN where the estimate is NaN.

    >>> float(p_value(np.arange(99.0), np.array(97.5)))
    0.02
    """
    # Ties that differ by rounding are ties: a discrete statistic must not win by 1e-16.
    count = (null >= observed - 1e-9 * np.maximum(1, np.abs(observed))).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (1 + count) / (1 + len(null)))


def bootstrap_weights(strata: Array, draws: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """How often each entity is drawn, (draws, E): with replacement inside each stratum.

    Args:
        strata: [array-like, shape: (E,)] int stratum of each entity (its group); negative ones get weight 0.
        draws: bootstrap samples.
        rng: random generator.
    """
    out = np.zeros((draws, len(strata)), np.float32)
    for stratum in np.unique(strata[strata >= 0]):
        mine = np.flatnonzero(strata == stratum)
        out[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=draws)
    return out


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
    """Interval of a mean over rows by cluster bootstrap over entities.

    Args:
        values: [array-like, shape: (rows, ...)] e.g. 1.0 where a row was classified rightly; NaN = no value.
        units: [array-like, shape: (rows,)] int entity of each row.
        strata: [array-like, shape: (rows,)] int stratum (group) of each row's entity; None = one stratum.
        draws: bootstrap samples.
        level: coverage.
        seed: of the resampling.
        bounds: values that the mean can take.

    Returns:
        (low, high), each of shape (...).

    >>> right = np.repeat([1.0, 0.0, 1.0, 1.0], 25)
    >>> low, high = cluster_bootstrap(right, np.arange(100), bounds=(0, 1))
    >>> bool(low < 0.75 < high), round(float(high - low), 1)
    (True, 0.2)
    """
    values = np.asarray(values, dtype=np.float64)
    _, codes = np.unique(units, return_inverse=True)
    count = int(codes.max()) + 1
    flat = values.reshape(len(values), -1)
    have = ~np.isnan(flat)
    by_unit = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_unit], np.arange(count))
    sums = np.add.reduceat(np.where(have, flat, 0)[by_unit], starts, axis=0)
    sizes = np.add.reduceat(have[by_unit].astype(np.float64), starts, axis=0)
    stratum = np.zeros(count, int)
    if strata is not None:
        stratum[codes] = strata
    weights = bootstrap_weights(stratum, draws, np.random.default_rng(seed)).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = (weights @ sums) / (weights @ sizes)
        estimate = sums.sum(axis=0) / sizes.sum(axis=0)
    low, high = interval(replicates, estimate, level, bounds)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def permuted_labels(labels: Array, draws: int, rng: np.random.Generator) -> Array:
    """Labels of entities in random order, (draws, E): all rows of an entity get the same new label."""
    return rng.permuted(np.tile(np.asarray(labels), (draws, 1)), axis=1)


def fdr(
    p: xr.DataArray | xr.Dataset, over: Sequence[Hashable] | None = None, method: Literal["bh", "by"] = "bh"
) -> Any:
    """p-values with false discovery control over layers, tokens, and whatever else was asked at once.

    Benjamini and Hochberg (1995) with method="bh" (independent or positively dependent tests, as layers are),
    Benjamini and Yekutieli (2001) with method="by" (any dependence). NaN stays NaN and does not count.

    Args:
        p: p-values; of a Dataset every variable that ends in "_p" is adjusted by itself.
        over: dims that form one family; None = all.
        method: "bh" or "by".

    >>> p = xr.DataArray([[0.01, 0.02], [0.03, 0.5]], dims=("layer", "token"))
    >>> fdr(p).values.round(3).tolist()
    [[0.04, 0.04], [0.04, 0.5]]
    """
    from scipy.stats import false_discovery_control  # more than a second, which every worker of a cluster would pay

    if method not in ("bh", "by"):
        raise InputError(f"method={method!r}: valid are bh, by")
    if isinstance(p, xr.Dataset):
        return p.assign({name: fdr(v, over, method) for name, v in p.data_vars.items() if str(name).endswith("_p")})
    dims = list(p.dims) if over is None else [d for d in over if d in p.dims]

    def adjust(block: Array) -> Array:
        out = np.full(block.shape, np.nan)
        known = ~np.isnan(block)
        if known.any():
            out[known] = false_discovery_control(block[known], method=method)
        return out

    flat = p.stack(_family=dims)
    adjusted = xr.apply_ufunc(
        adjust, flat, input_core_dims=[["_family"]], output_core_dims=[["_family"]], vectorize=True
    )
    return (
        adjusted.unstack("_family").reindex_like(p).transpose(*p.dims)
        if all(d in p.coords for d in dims)
        else adjusted.unstack("_family").transpose(*p.dims)
    )
