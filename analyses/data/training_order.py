"""In which order groups were trained, and which of them a stage has not seen yet.

Training order comes from the coordinates `stage` and `stage_order`, or from the
variable `exposure` of a Dataset that was narrowed to some of its stages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.store.errors import InputError, join_names

Array = npt.NDArray[Any]


Data = xr.Dataset | xr.DataArray


def stage_orders(ds: Data) -> dict[str, float] | None:
    """Training order of each stage name: stage_order, or the position along `stage`."""
    if "stage" not in ds.coords:
        return None
    stages = np.atleast_1d(ds.coords["stage"].values)
    orders = np.atleast_1d(ds.coords["stage_order"].values) if "stage_order" in ds.coords else np.arange(len(stages))
    return {str(s): float(o) for s, o in zip(stages, orders, strict=True)}


def trained_order(ds: Data, by: str, names: Array, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """Positions of the groups in training order; None where the names are no stages."""
    orders = stage_orders(ds) or {}
    found = [orders.get(str(name)) for name in names]
    known = ds.get("exposure") if isinstance(ds, xr.Dataset) else ds.coords.get("exposure")
    if None in found and by == "trained_stage" and known is not None and "entity" in known.dims:
        # A Dataset narrowed to some stages no longer names them all, but exposure still orders the groups.
        age = known if "stage" not in known.dims else known.isel(stage=0)
        rows = [int(np.flatnonzero(codes == g)[0]) for g in range(len(names))]
        trained = -np.asarray(age.values, dtype=float)[rows]
        found = [None if np.isnan(t) else float(t) for t in trained]
    if all(f is None for f in found):
        if by == "trained_stage" and names.dtype == object and "stage_order" in ds.coords:
            raise InputError(
                f"the training order of {by!r} ({join_names(names)}) is unknown here, as none of them is among the "
                f"stages ({join_names(orders)}); give order=[...], record the stages that lack, or correct the labels "
                "with stratalens.relabel"
            )
        return None
    strange = [str(name) for name, f in zip(names, found, strict=True) if f is None]
    if strange:
        raise InputError(
            f"only some groups of {by!r} are stages; not among {join_names(orders)}: {join_names(strange)}. "
            f"If that is a slip, stratalens.relabel corrects the labels, and the capture, run again, records stages "
            f"that lack. Else say which groups are meant and in which order with order=[...] (groups left out are "
            f"excluded), and narrow the stages (.sel) after, not before"
        )
    return np.argsort(np.array(found, dtype=float), kind="stable").astype(np.int64)


def result_order(data: xr.Dataset | xr.DataArray) -> tuple[list[str], list[str]]:
    """Return (trained stages in training order, untrained stages), as far as the result's coordinates tell.

    Groups that are not names of stages are ordered as the result orders them.
    """
    groups = group_names(data)
    if "stage" not in data.coords:
        return groups, []
    stages = [str(s) for s in np.atleast_1d(data["stage"].values)]
    order = np.atleast_1d(data["stage_order"].values) if "stage_order" in data.coords else np.arange(len(stages))
    ranked = [stages[i] for i in np.argsort(order, kind="stable")]
    untrained = [stages[i] for i in np.flatnonzero(order == 0)] if "stage_order" in data.coords else []
    untrained = [name for name in untrained if name not in groups]
    if groups and not set(groups) <= set(ranked):
        return groups, untrained
    return [name for name in ranked if name not in untrained], untrained


def group_names(data: xr.Dataset | xr.DataArray) -> list[str]:
    """Names of the groups that a result is about, in its own order (empty when it has none)."""
    if "group" in data.coords:
        return [str(g) for g in np.atleast_1d(data["group"].values)]
    if "pair_first" in data.coords:
        first = [str(g) for g in np.atleast_1d(data["pair_first"].values)]
        second = [str(g) for g in np.atleast_1d(data["pair_second"].values)]
        return _merge(first, second)
    return []


def _merge(first: list[str], second: list[str]) -> list[str]:
    """Order in which every `first[i]` comes before `second[i]` (pairs are given earlier group first)."""
    names = list(dict.fromkeys([*first, *second]))
    before = {name: {a for a, b in zip(first, second, strict=True) if b == name} for name in names}
    return sorted(names, key=lambda name: (len(before[name]), names.index(name)))
