"""Estimates for figures and headline numbers: value, interval, null and p of any result.

A result's own `<name>_low`, `_high`, `_null` and `_p` have priority. Without them, the interval comes from the folds
(Nadeau & Bengio 2003: the variance of a cross-validated mean corrected for overlapping training sets).
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

from stratalens.analyses.data.results import as_text
from stratalens.analyses.data.training_order import group_names

REPLICATES = ("fold", "repeat")
SHARES = ("accuracy", "auc")  # these and their intervals are from 0 to 1
PARTS = ("value", "low", "high", "null", "p")


def estimate(data: xr.Dataset, name: str = "accuracy", chance: float | None = None) -> xr.Dataset:
    """Estimate a variable over the dims that remain without folds and repeats.

    Args:
        data: result of an analysis with a variable `name`.
        name: the variable.
        chance: level expected without any signal, where the result has no `<name>_null`;
            default the result's variable or attribute `chance`, else 1/2.

    Returns:
        Dataset, NaN where a value is unknown:

        - value (...): float64, mean over folds and repeats.
        - low, high (...): float64, 95 % interval; the attribute `interval` describes it.
        - null (...): float64, value expected without any signal.
        - p (...): float64.
    """
    array = data[name]
    replicate = [d for d in REPLICATES if d in array.dims]
    value = array.mean(replicate) if replicate else array
    if f"{name}_mean" in data:  # over all held-out rows, like the interval
        value = data[f"{name}_mean"]
    if f"{name}_low" in data:
        low, high = data[f"{name}_low"], data[f"{name}_high"]
        description = str(data.attrs.get("interval", "95 % by resampling entities"))
    elif replicate:
        half = corrected_half_width(array, replicate)
        low, high = value - half, value + half
        if name in SHARES:
            low, high = low.clip(0, 1), high.clip(0, 1)
        description = f"95 % interval over {'s and '.join(replicate)}s, corrected for overlapping training sets"
    else:
        low = high = xr.full_like(value, np.nan, dtype=float)
        description = "no interval"
    if f"{name}_null" in data:
        null = data[f"{name}_null"]
    elif chance is None and name == "accuracy" and "chance" in data:
        null = data["chance"].broadcast_like(value)
    else:
        base = chance if chance is not None else float(data.attrs.get("chance", 0.5))
        null = xr.full_like(value, base, dtype=float)
    p = data[f"{name}_p"] if f"{name}_p" in data else xr.full_like(value, np.nan, dtype=float)
    variables = {}
    for key, array in zip(PARTS, (value, low, high, null, p), strict=True):
        array = array.astype(float).drop_vars("quantile", errors="ignore")
        remaining = [d for d in replicate if d in array.dims]
        variables[key] = array.mean(remaining) if remaining else array
    return xr.Dataset(variables, attrs={**data.attrs, "interval": description, "measured": name})


def corrected_half_width(array: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """Half width of the corrected 95 % interval of the mean over `dims`.

    With k replicates whose test share is 1/k of the data, the variance of the mean is
    (1/k + 1/(k-1)) times the sample variance. The quantile is of Student's t with k-1 degrees of freedom.
    """
    k = int(np.prod([array.sizes[d] for d in dims]))
    if k < 2:
        return xr.full_like(array.mean(dims), np.nan, dtype=float)
    spread = array.std(dims, ddof=1)
    return spread * (float(stats.t.ppf(0.975, k - 1)) * float(np.sqrt(1 / k + 1 / (k - 1))))


def pair_mean(data: xr.Dataset, name: str = "accuracy") -> xr.Dataset:
    """Estimate the mean over all pairs; with folds, the interval is over folds of that mean.

    Without folds, the pairs' intervals are averaged. The average is wider than the interval of the mean if the errors
    of pairs are independent, and exact if they are equal.
    """
    array = data[name]
    if "pair" not in array.dims:
        return estimate(data, name)
    single = estimate(data, name)
    if data.sizes["pair"] == 1:  # keeps the pair's own interval
        return single.isel(pair=0, drop=True)
    replicate = [d for d in REPLICATES if d in array.dims]
    if replicate:
        averaged = xr.Dataset({name: array.mean("pair")}, attrs=data.attrs)
        result = estimate(averaged, name)
        result["null"] = single["null"].mean("pair")
        return result
    result = single.mean("pair", keep_attrs=True)
    result["p"] = xr.full_like(result["value"], np.nan)
    return result


def extreme_pair(data: xr.Dataset | xr.DataArray) -> str | None:
    """Label of the pair of the first and the last group; None when the result has no such pair."""
    if "pair_first" not in data.coords or not data["pair_first"].ndim or not data.sizes.get("pair"):
        return None
    names = group_names(data)
    first = as_text(data["pair_first"].values)
    second = as_text(data["pair_second"].values)
    positions = np.flatnonzero((first == names[0]) & (second == names[-1]))
    return str(data["pair"].values[positions[0]]) if positions.size else None


def differs_from_null(value: float, low: float, high: float, null: float, p: float, alpha: float = 0.05) -> bool:
    """Whether an estimate differs from its null, by p, or by its interval without p.

    Example:
        >>> differs_from_null(0.7, 0.6, 0.8, 0.5, float("nan")), differs_from_null(0.52, 0.4, 0.6, 0.5, float("nan"))
        (True, False)
    """
    if np.isfinite(p):
        return p < alpha
    if np.isfinite(low) and np.isfinite(high):
        return low > null or high < null
    return False
