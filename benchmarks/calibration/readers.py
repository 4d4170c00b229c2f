"""Read p-values, intervals and claims of results, one number for each data set (layer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import stratalens as sl
from benchmarks.calibration.cells import Draws, NotAvailableError
from stratalens.analyses.stats.estimates import estimate

RUN: dict[str, Any] = {"cache": False, "progress": False, "scheduler": "synchronous"}
QUALITY = {"accuracy": "accuracy", "auc": "AUC", "balanced_accuracy": "balanced accuracy", "r2": "R2"}


def function(name: str) -> Callable[..., Any]:
    """Return a function of stratalens.

    Raises:
        NotAvailableError: this version does not have it.
    """
    try:
        return getattr(sl, name)  # type: ignore[no-any-return]
    except AttributeError as error:
        raise NotAvailableError(f"stratalens has no {name}") from error


def p_values(result: xr.Dataset, measures: Mapping[str, str] = QUALITY) -> dict[str, npt.NDArray[Any]]:
    """Return the p-values of all measures that have one, by their words."""
    known = {name: words for name, words in measures.items() if f"{name}_p" in result}
    return {words: flat(result[f"{name}_p"]) for name, words in known.items()}


def intervals(
    result: xr.Dataset, truth: Mapping[str, npt.NDArray[Any]] | None = None, measures: Mapping[str, str] = QUALITY
) -> dict[str, npt.NDArray[Any]]:
    """Return (value, low, high, truth) of all measures that have an interval; NaN = unknown truth."""
    out = {}
    for name, words in measures.items():
        if f"{name}_low" not in result:
            continue
        value = result[f"{name}_mean"] if f"{name}_mean" in result else result[name]
        own = (truth or {}).get(name)
        columns = [flat(value), flat(result[f"{name}_low"]), flat(result[f"{name}_high"])]
        out[words] = np.stack([*columns, np.full_like(columns[0], np.nan) if own is None else own], axis=1)
    return out


def flat(array: xr.DataArray) -> npt.NDArray[np.float64]:
    """Return one float64 for each data set; all dims but `layer` have size 1."""
    return np.asarray(array.values, dtype=np.float64).reshape(array.sizes.get("layer", 1), -1)[:, 0]


def claims(result: xr.Dataset, name: str | None = None, two_sided: bool = False) -> npt.NDArray[np.bool_]:
    """Return whether the 95 % interval is above the value without a signal, as sentences of the report judge it.

    Args:
        result: one value for each data set.
        name: measure; None = the one that the report takes.
        two_sided: also count intervals below it.
    """
    numbers = estimate(result) if name is None else estimate(result, name)
    above = flat(numbers["low"]) > flat(numbers["null"])
    return above | (flat(numbers["high"]) < flat(numbers["null"])) if two_sided else above


def interval_claims(result: xr.Dataset) -> Draws:
    """Return two-sided claims by the intervals of all measures whose value without a signal is known."""
    known = [n for n in ("accuracy", "auc", "balanced_accuracy") if f"{n}_low" in result]
    return {f"{QUALITY[n]}, interval without chance": claims(result, n, two_sided=True) for n in known}


def matched_rows(result: xr.Dataset, sample: str) -> dict[str, xr.Dataset]:
    """Return the result of one sample of a matched probe, by the test rows that it is scored on.

    A version that scores on all test rows only has no dim `scored`, and one entry called "unmatched".
    """
    own = result.sel(sample=sample)
    if "scored" not in own.dims:
        return {"unmatched": own}
    return {str(scored): own.sel(scored=scored) for scored in own["scored"].values}


def conditional_p(result: xr.Dataset) -> dict[str, npt.NDArray[Any]]:
    """Return the p-values of the conditional test.

    Raises:
        NotAvailableError: the result has no p-value.
    """
    known = p_values(result) or ({"p": flat(result["p"])} if "p" in result else {})
    if not known:
        raise NotAvailableError("the result of conditional_test has no p-value")
    return known
