"""Permutation of labels over entities: p-values, and the false discovery rate of many of them."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.stats.bootstrap import LEVEL
from stratalens.store.errors import InputError


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

    With P permutations no p is below 1 / (P + 1). A single place among m passes 0.05 from P = 20 m - 1 on. Where some p
    are as small as they can be and no adjusted one passes 0.05, a UserWarning says so. The number of permutations comes
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
        f"no place passes the false discovery rate of 0.05, although some p-values are as small as {permutations} "
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
