"""From a result's folds or repeats to value, interval and null: what every figure and headline number reads.

Where the analysis already reports `<name>_low`, `_high`, `_null`, `_p`, those
are used; otherwise the interval comes from the folds (Nadeau & Bengio 2003:
the variance of a cross-validated mean corrected for overlapping training sets).
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

REPLICATES = ("fold", "repeat")


SHARES = ("accuracy", "auc")  # cannot leave 0 .. 1, nor can their intervals


PARTS = ("value", "low", "high", "null", "p")


def estimate(data: xr.Dataset, name: str = "accuracy", chance: float | None = None) -> xr.Dataset:
    """Return value, low, high (95 %), null and p over the dims that remain without folds and repeats.

    Args:
        data: result of a verb with a variable `name`.
        name: which variable.
        chance: level expected without any signal, where the result has no `<name>_null`;
            default the result's variable or attribute `chance`, else 1/2.

    Returns:
        Dataset with float64 variables value, low, high, null and p (NaN where not known);
        attribute `interval` says in words how the interval was made.
    """
    array = data[name]
    replicate = [d for d in REPLICATES if d in array.dims]
    value = array.mean(replicate) if replicate else array
    if f"{name}_mean" in data:  # over all held-out rows, as the interval is
        value = data[f"{name}_mean"]
    if f"{name}_low" in data:
        low, high = data[f"{name}_low"], data[f"{name}_high"]
        how = str(data.attrs.get("interval", "95 % by resampling entities"))
    elif replicate:
        half = corrected_half_width(array, replicate)
        low, high = value - half, value + half
        if name in SHARES:
            low, high = low.clip(0, 1), high.clip(0, 1)
        how = f"95 % interval over {'s and '.join(replicate)}s, corrected for overlapping training sets"
    else:
        low = high = xr.full_like(value, np.nan, dtype=float)
        how = "no interval"
    if f"{name}_null" in data:
        null = data[f"{name}_null"]
    elif chance is None and name == "accuracy" and "chance" in data:
        null = data["chance"].broadcast_like(value)
    else:
        base = chance if chance is not None else float(data.attrs.get("chance", 0.5))
        null = xr.full_like(value, base, dtype=float)
    p = data[f"{name}_p"] if f"{name}_p" in data else xr.full_like(value, np.nan, dtype=float)
    parts = {"value": value, "low": low, "high": high, "null": null, "p": p}
    cleaned = {k: v.astype(float).drop_vars("quantile", errors="ignore") for k, v in parts.items()}
    result = xr.Dataset({k: _without(v, replicate) for k, v in cleaned.items()})
    result.attrs = {**data.attrs, "interval": how, "measured": name}
    return result


def _without(array: xr.DataArray, dims: list[str]) -> xr.DataArray:
    left = [d for d in dims if d in array.dims]
    return array.mean(left) if left else array


def corrected_half_width(array: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """Half width of the corrected 95 % interval of the mean over `dims`.

    With k replicates whose test share is 1/k of the data, the variance of the mean is
    (1/k + 1/(k-1)) times the sample variance; Student's t with k-1 degrees of freedom.
    """
    k = int(np.prod([array.sizes[d] for d in dims]))
    if k < 2:
        return xr.full_like(array.mean(dims), np.nan, dtype=float)
    spread = array.std(dims, ddof=1)
    return spread * (float(stats.t.ppf(0.975, k - 1)) * float(np.sqrt(1 / k + 1 / (k - 1))))


def pair_mean(data: xr.Dataset, name: str = "accuracy") -> xr.Dataset:
    """Estimate of the mean over all pairs; the interval is over folds of that mean where folds are there.

    Without folds the pairs' intervals are averaged, which is wider than the interval of the
    mean when pairs err independently, and right when they err together.
    """
    array = data[name]
    if "pair" not in array.dims:
        return estimate(data, name)
    single = estimate(data, name)
    if data.sizes["pair"] == 1:  # its own interval, not one made anew
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
    """Label of the pair of the first and the last group (None when the result has no such pair)."""
    if "pair_first" not in data.coords or not data["pair_first"].ndim or not data.sizes.get("pair"):
        return None
    from stratalens.analyses.data.training_order import group_names

    names = group_names(data)
    first = data["pair_first"].values.astype(str)
    second = data["pair_second"].values.astype(str)
    found = np.flatnonzero((first == names[0]) & (second == names[-1]))
    return str(data["pair"].values[found[0]]) if found.size else None


def differs_from_null(value: float, low: float, high: float, null: float, p: float, alpha: float = 0.05) -> bool:
    """Whether an estimate is told apart from its null: by p where there is one, else by its interval.

    >>> differs_from_null(0.7, 0.6, 0.8, 0.5, float("nan")), differs_from_null(0.52, 0.4, 0.6, 0.5, float("nan"))
    (True, False)
    """
    if np.isfinite(p):
        return p < alpha
    if np.isfinite(low) and np.isfinite(high):
        return low > null or high < null
    return False
