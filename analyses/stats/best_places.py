"""Table of the best places of a result, with the p-value that allows for the choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.stats.estimates import estimate, judged_measure
from stratalens.analyses.stats.permutation import needed_permutations
from stratalens.store.errors import InputError

PLACES = ("stage", "layer", "token", "pair")
COLUMNS = (*PLACES, "measure", "estimate", "low", "high", "null", "p", "p_max")
# Measures of results that are not probes; the first that a result has counts.
OTHER_MEASURES = ("inner_rank_correlation", "rank_correlation", "r2")
# Part of the results of controls that judges them.
JUDGED_PARTS = {"sample": "matched", "scored": "matched"}


def best_places(data: object, n: int = 5) -> pd.DataFrame:
    """List the best places of a result.

    `p` is the p-value of the place alone. Among many places some have a small one by chance. `p_max` allows for this:
    it is the share of shuffles in which the best of all places is at least as good (Westfall and Young, 1993). The
    interval is that of the place alone and does not allow for the choice.

    Args:
        data: result of `probe`, `statistics_probe`, `residual_probe`, `matched_probe`, `baseline_probe` or `project`.
        n: number of places.

    Returns:
        DataFrame, sorted by p_max, then by the estimate:

        - stage, layer, token, pair: labels of the place; None where the result does not have the dim.
        - measure: accuracy, or balanced_accuracy for unequal classes; r2 for regressions; for `project`
          inner_rank_correlation, else rank_correlation or r2.
        - estimate, low, high, null, p, p_max: float64; NaN where unknown.

        The attribute `note` (`table.attrs["note"]`) says how many permutations a claim needs, if there are too few,
        and is empty otherwise.

    Raises:
        InputError: the object is no such result, or n is less than 1.
    """
    if n < 1:
        raise InputError(f"n={n}; at least one place is needed")
    if not isinstance(data, xr.Dataset):
        kind = "a dict; take one of its results" if isinstance(data, dict) else f"a {type(data).__name__}"
        raise InputError(f"best needs the result of probe or project, a Dataset, not {kind}")
    measure = _measure(data)
    chosen = {dim: part for dim, part in JUDGED_PARTS.items() if dim in data.dims and part in data[dim].values}
    data = data.sel(chosen)
    numbers = estimate(data, measure)
    extra = [str(d) for d in numbers["value"].dims if d not in PLACES]
    if extra:
        raise InputError(
            f"the result has the dims {', '.join(extra)}; select one value of each, e.g. .isel({extra[0]}=0)"
        )
    numbers = numbers.rename(value="estimate")
    numbers["p_max"] = data.get(f"{measure}_p_max", xr.full_like(numbers["estimate"], np.nan))
    dims = [d for d in PLACES if d in numbers["estimate"].dims]
    columns = {name: numbers[name].transpose(*dims).values.ravel() for name in numbers.data_vars}
    index = np.indices([numbers.sizes[d] for d in dims]).reshape(len(dims), len(columns["estimate"]))
    for dim in PLACES:
        labels = _labels(data, dim, dim in dims)
        positions = index[dims.index(dim)] if dim in dims else np.zeros(index.shape[1], dtype=int)
        columns[dim] = np.array([labels[i] for i in positions], dtype=object)
    table = pd.DataFrame(columns).assign(measure=measure).dropna(subset=["estimate"])
    table = table.sort_values(["p_max", "estimate"], ascending=[True, False], kind="stable", na_position="last")
    note = _note(data, measure, len(table))
    table = table[list(COLUMNS)].head(n).reset_index(drop=True)
    table.attrs["note"] = note
    return table


def _measure(data: xr.Dataset) -> str:
    """Name of the measure that places are compared by."""
    if any(name in data for name in ("accuracy", "accuracy_mean", "r2_mean")):
        return judged_measure(data)
    for name in OTHER_MEASURES:
        if name in data and set(data[name].dims) <= set(PLACES) and bool(data[name].notnull().any()):
            return name
    raise InputError(
        f"best needs the result of probe, of a control or of project; this Dataset has "
        f"{', '.join(map(str, data.data_vars)) or 'no variables'}"
    )


def _labels(data: xr.Dataset, dim: str, varies: bool) -> Sequence[object]:
    """Labels along a dim; without the dim, the label of the selected place, or None."""
    if dim in data.coords and (varies or data[dim].ndim == 0):
        return list(np.atleast_1d(data[dim].values).tolist())
    return list(range(data.sizes[dim])) if varies else [None]


def _note(data: xr.Dataset, measure: str, places: int) -> str:
    """Say how many permutations a claim about one place needs, if there are too few."""
    best = data.get(f"{measure}_p_max")
    permutations = int(data.attrs.get("permutations", 0))
    if best is not None:
        permutations, families = int(best.attrs.get("permutations", permutations)), int(best.attrs.get("families", 1))
        needed = needed_permutations(families)
        if permutations >= needed:
            return ""
        return (
            f"{permutations} permutations cannot make the p of the maximum smaller than "
            f"{min(1.0, families / (permutations + 1)):.2g}; a claim at 0.05 needs permutations={needed}"
        )
    if f"{measure}_p" not in data or not permutations:
        remedy = f": a claim about the best place needs permutations={needed_permutations(1)} or more"
        return "no p-values" + (remedy if "permutations" in data.attrs else " in this result")
    needed = needed_permutations(places)
    if permutations >= needed:
        return ""
    return (
        f"{permutations} permutations cannot make a p-value smaller than {1 / (permutations + 1):.2g}; a claim about "
        f"one of {places} places at 0.05 needs permutations={needed}"
    )
