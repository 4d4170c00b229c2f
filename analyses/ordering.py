"""In which order groups were trained, and which of them a stage has not seen yet.

Training order comes from the coordinates `stage` and `stage_order`, or from the
variable `exposure` of a Dataset that was narrowed to some of its stages.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.store.errors import InputError, listed

if TYPE_CHECKING:
    from stratalens.analyses.labels import Groups

Array = npt.NDArray[Any]
Data = xr.Dataset | xr.DataArray


def exposure(ds: Data, groups: Groups) -> xr.DataArray | None:
    """How many stages ago each group was trained on, dims (stage, group); None where unknown.

    Negative: not trained yet (a control), 0: just trained. Taken from the variable `exposure`
    where there is one, else from the coordinates `stage` and `stage_order` where the groups are stages.
    """
    known = ds.get("exposure") if isinstance(ds, xr.Dataset) else ds.coords.get("exposure")
    if known is not None and groups.by == "trained_stage" and "entity" in known.dims:
        rows = [int(np.flatnonzero(groups.codes == g)[0]) for g in range(len(groups))]
        known = known.drop_vars(_extra(known)).isel(entity=rows).compute(scheduler="synchronous")
        return known.rename(entity="group").assign_coords(group=groups.names)
    orders = stage_orders(ds)
    names = [str(name) for name in groups.names]
    if orders is None or "stage" not in ds.dims or not all(name in orders for name in names):
        return None
    stages = np.array([orders[str(s)] for s in ds["stage"].values])
    table = stages[:, None] - np.array([orders[name] for name in names])[None, :]
    return xr.DataArray(
        table,
        dims=("stage", "group"),
        coords={"stage": ds["stage"].values, "group": groups.names},
        name="exposure",
    )


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
                f"the training order of {by!r} ({listed(names)}) is unknown here, as none of them is among the "
                f"stages ({listed(orders)}); give order=[...], record the stages that lack, or correct the labels with "
                "stratalens.relabel"
            )
        return None
    strange = [str(name) for name, f in zip(names, found, strict=True) if f is None]
    if strange:
        raise InputError(
            f"only some groups of {by!r} are stages; not among {listed(orders)}: {listed(strange)}. If that is a slip, "
            f"stratalens.relabel corrects the labels, and the capture, run again, records stages that lack. Else say "
            f"which groups are meant and in which order with order=[...] (groups left out are excluded), "
            f"and narrow the stages (.sel) after, not before"
        )
    return np.argsort(np.array(found, dtype=float), kind="stable").astype(np.int64)


def _extra(array: xr.DataArray) -> list[Hashable]:
    """Coordinates of a table of rows that mean nothing for a table of groups."""
    return [name for name, coord in array.coords.items() if "entity" in coord.dims]
