"""Training order of groups: from the stages of the data, and as a result shows it."""

from __future__ import annotations

import numpy as np

from stratalens.analyses.data.array_types import Array, Codes, Data
from stratalens.analyses.data.results import find_variable
from stratalens.store.errors import InputError, join_names


def stage_orders(ds: Data) -> dict[str, float] | None:
    """Training order of each stage name: `stage_order`, else the position along `stage`; None without stages."""
    if "stage" not in ds.coords:
        return None
    stages = np.atleast_1d(ds.coords["stage"].values)
    orders = np.atleast_1d(ds.coords["stage_order"].values) if "stage_order" in ds.coords else np.arange(len(stages))
    return {str(s): float(o) for s, o in zip(stages, orders, strict=True)}


def trained_order(ds: Data, by: str, names: Array, codes: Codes) -> Codes | None:
    """Positions of the groups in training order; None where the names are not stages.

    Args:
        ds: data with the coordinates `stage` and `stage_order`, or with the variable `exposure`.
        by: label column of the groups.
        names: array of shape (groups,).
        codes: int64 array of shape (entity,), index into `names`.

    Raises:
        InputError: only some of the names are stages, or the order of trained stages is unknown.
    """
    stages = stage_orders(ds) or {}
    orders = [stages.get(str(name)) for name in names]
    exposure = find_variable(ds, "exposure")
    if None in orders and by == "trained_stage" and exposure is not None and "entity" in exposure.dims:
        # A Dataset narrowed to some stages no longer names them all, but exposure still orders the groups.
        age = exposure.isel(stage=0) if "stage" in exposure.dims else exposure
        first_rows = [int(np.argmax(codes == g)) for g in range(len(names))]
        trained = -np.asarray(age.values, dtype=float)[first_rows]
        orders = [None if np.isnan(t) else float(t) for t in trained]
    if all(order is None for order in orders):
        if by == "trained_stage" and names.dtype == object and "stage_order" in ds.coords:
            raise InputError(
                f"the training order of {by!r} ({join_names(names)}) is unknown here: none of these groups is among "
                f"the stages ({join_names(stages)}). Give order=[...], record the missing stages, or correct the "
                f"labels with stratalens.relabel"
            )
        return None
    unknown = [str(name) for name, order in zip(names, orders, strict=True) if order is None]
    if unknown:
        raise InputError(
            f"only some groups of {by!r} are stages; not among {join_names(stages)}: {join_names(unknown)}. "
            f"Correct misspelled labels with stratalens.relabel, or record missing stages by running the capture "
            f"again. Otherwise give the wanted groups in order with order=[...], which excludes all others. "
            f"Narrow the stages (.sel) after this call, not before"
        )
    return np.argsort(np.array(orders, dtype=float), kind="stable").astype(np.int64)


def result_order(data: Data) -> tuple[list[str], list[str]]:
    """Trained stages in training order, and untrained stages, as a result's coordinates show them.

    Groups that are not names of stages keep the order that they have in the result.
    """
    groups = group_names(data)
    orders = stage_orders(data)
    if orders is None:
        return groups, []
    is_untrained = {name: order == 0 and "stage_order" in data.coords for name, order in orders.items()}
    untrained = [name for name in orders if is_untrained[name] and name not in groups]
    if groups and not set(groups) <= set(orders):
        return groups, untrained
    return [name for name in sorted(orders, key=orders.__getitem__) if name not in untrained], untrained


def is_ordered(result: Data) -> bool:
    """Whether the groups of a result have a known order.

    A result has the attribute `ordered`. An older one counts as ordered if all its groups are stages of it.
    """
    if "ordered" in result.attrs:
        return bool(result.attrs["ordered"])
    stages = stage_orders(result) or {}
    names = [name for name in group_names(result) if name != "rest"]
    return bool(names) and all(name in stages for name in names)


def group_names(data: Data) -> list[str]:
    """Names of the groups of a result in its own order; empty without groups."""
    if "group" in data.coords:
        return [str(g) for g in np.atleast_1d(data["group"].values)]
    if "pair_first" in data.coords:
        first = [str(g) for g in np.atleast_1d(data["pair_first"].values)]
        second = [str(g) for g in np.atleast_1d(data["pair_second"].values)]
        return _merge_pairs(first, second)
    return []


def _merge_pairs(first: list[str], second: list[str]) -> list[str]:
    """Order in which every `first[i]` comes before `second[i]`; pairs name the earlier group first."""
    names = list(dict.fromkeys([*first, *second]))
    before = {name: {a for a, b in zip(first, second, strict=True) if b == name} for name in names}
    return sorted(names, key=lambda name: (len(before[name]), names.index(name)))
