"""Estimates for figures and headline numbers: value, interval, null and p of any result.

A result's own `<name>_low`, `_high`, `_null` and `_p` have priority. Without them, the interval comes from the folds
or repeats (Nadeau and Bengio, 2003, "Inference for the generalization error").
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

from stratalens.analyses.data.results import as_text
from stratalens.analyses.data.training_order import group_names

REPLICATES = ("fold", "repeat")
SHARES = ("accuracy", "balanced_accuracy", "auc")  # these and their intervals are from 0 to 1
PARTS = ("value", "low", "high", "null", "p")
# Largest share of the larger class, relative to equal classes, at which accuracy judges a probe.
ABOUT_EQUAL = 1.1


def judged_measure(data: xr.Dataset) -> str:
    """Name of the measure that judges a result of probes.

    Accuracy does not suit unequal classes: a probe that always names the larger class exceeds one half, and shuffled
    labels tie with it (Brodersen et al., 2010, "The balanced accuracy and its posterior distribution").

    Args:
        data: result of `probe`, `statistics_probe`, `matched_probe`, `residual_probe` or `baseline_probe`.

    Returns:
        "r2" for regressions. "accuracy" where the larger class of every pair has at most 1.1 times the share of equal
        classes, or where the result has no balanced accuracy. Otherwise "balanced_accuracy".

    Example:
        >>> probes = xr.Dataset({"accuracy_mean": ("pair", [0.9]), "balanced_accuracy_mean": ("pair", [0.6])})
        >>> judged_measure(probes.assign(chance=("pair", [0.5])))
        'accuracy'
        >>> judged_measure(probes.assign(chance=("pair", [0.8])))
        'balanced_accuracy'
    """
    if "accuracy" not in data and "accuracy_mean" not in data and ("r2" in data or "r2_mean" in data):
        return "r2"
    if "balanced_accuracy_mean" not in data or "chance" not in data:
        return "accuracy"
    equal = bool((data["chance"] <= ABOUT_EQUAL / _class_count(data)).all())
    return "accuracy" if equal else "balanced_accuracy"


def _class_count(data: xr.Dataset) -> int:
    """Number of classes of each probe."""
    return data.sizes["group"] if data.attrs.get("pairs") == "multiclass" and "group" in data.dims else 2


def estimate(data: xr.Dataset, name: str | None = None, chance: float | None = None) -> xr.Dataset:
    """Estimate a variable over the dims that remain without folds and repeats.

    Args:
        data: result of an analysis with a variable `name` or `<name>_mean`.
        name: the variable; None = the one that `judged_measure` names.
        chance: level expected without any signal, where the result has no `<name>_null`;
            default the result's variable or attribute `chance`, else 1/2 for shares and 0 for other variables.

    Returns:
        Dataset, NaN where a value is unknown:

        - value (...): float64, mean over folds and repeats.
        - low, high (...): float64, 95 % interval; the attribute `interval` describes it.
        - null (...): float64, value expected without any signal.
        - p (...): float64.
    """
    name = judged_measure(data) if name is None else name
    array = (data[name] if name in data else data[f"{name}_mean"]).compute()
    replicate = [d for d in REPLICATES if d in array.dims]
    value = array.mean(replicate) if replicate else array
    if f"{name}_mean" in data:  # over all held-out rows, like the interval
        value = data[f"{name}_mean"]
    if f"{name}_low" in data:
        low, high = data[f"{name}_low"], data[f"{name}_high"]
        description = str(data.attrs.get("interval", "95 % by resampling entities"))
    elif replicate:
        half = corrected_half_width(array, replicate, _held_out_share(data, array))
        low, high = value - half, value + half
        if name in SHARES:
            low, high = low.clip(0, 1), high.clip(0, 1)
        description = f"95 % interval over {'s and '.join(replicate)}s, corrected for overlapping training sets"
        if bool(half.isnull().all()):
            description = "no interval"
    else:
        low = high = xr.full_like(value, np.nan, dtype=float)
        description = "no interval"
    if f"{name}_null" in data:
        null = data[f"{name}_null"]
    elif chance is None and name == "accuracy" and "chance" in data:
        null = data["chance"].broadcast_like(value)
    else:
        base = _level_without_signal(data, name) if chance is None else chance
        null = xr.full_like(value, base, dtype=float)
    p = data[f"{name}_p"] if f"{name}_p" in data else xr.full_like(value, np.nan, dtype=float)
    variables = {}
    for key, array in zip(PARTS, (value, low, high, null, p), strict=True):
        array = array.astype(float).drop_vars("quantile", errors="ignore")
        remaining = [d for d in replicate if d in array.dims]
        variables[key] = array.mean(remaining) if remaining else array
    return xr.Dataset(variables, attrs={**data.attrs, "interval": description, "measured": name})


def _level_without_signal(data: xr.Dataset, name: str) -> float:
    if name == "balanced_accuracy":
        return 1 / _class_count(data)
    return float(data.attrs.get("chance", 0.5 if name in SHARES else 0.0))


def _held_out_share(data: xr.Dataset, array: xr.DataArray) -> float | None:
    """Share of the entities that each replicate holds out; None if the result does not say."""
    if "fold" in array.dims:
        return 1 / array.sizes["fold"]
    share = data.attrs.get("holdout")
    return None if share is None else float(share)


def corrected_half_width(array: xr.DataArray, dims: list[str], held_out: float | None = None) -> xr.DataArray:
    """Half width of the corrected 95 % interval of the mean over `dims`.

    With k replicates that each hold out a share h of the entities, the variance of the mean is (1/k + h/(1-h)) times
    the sample variance (Nadeau and Bengio, 2003, "Inference for the generalization error"). The quantile is of
    Student's t with k-1 degrees of freedom.

    Args:
        array: values of the replicates.
        dims: dims of the replicates.
        held_out: the share h; None = 1/k for folds, unknown otherwise.

    Returns:
        float64 array without `dims`; NaN with fewer than two replicates, or where the share is unknown.
    """
    k = int(np.prod([array.sizes[d] for d in dims]))
    if held_out is None and dims == ["fold"]:
        held_out = 1 / k
    if k < 2 or held_out is None:
        return xr.full_like(array.mean(dims), np.nan, dtype=float)
    spread = array.std(dims, ddof=1)
    return spread * (float(stats.t.ppf(0.975, k - 1)) * float(np.sqrt(1 / k + held_out / (1 - held_out))))


def pair_mean(data: xr.Dataset, name: str | None = None) -> xr.Dataset:
    """Estimate the mean over all pairs; with folds, the interval is over folds of that mean.

    Without folds, the pairs' intervals are averaged. The average is wider than the interval of the mean if the errors
    of pairs are independent, and exact if they are equal. The arguments are those of `estimate`.
    """
    name = judged_measure(data) if name is None else name
    array = data[name] if name in data else data[f"{name}_mean"]
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
