"""Training order of groups: from the stages of the data, and as a result shows it."""

from __future__ import annotations

import numpy as np

from stratalens.analyses.data.array_types import Array, Codes, Data
from stratalens.analyses.data.results import find_variable
from stratalens.store.errors import InputError, join_names

STAGES = "stages"  # order="stages" asks for training order in any column


def label_text(label: object) -> str:
    """Text of a label as it is compared with names of stages; whole numbers have no decimal point.

    >>> label_text("512"), label_text(np.int64(512)), label_text(512.0), label_text("007")
    ('512', '512', '512', '007')
    """
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def stage_orders(ds: Data) -> dict[str, float] | None:
    """Training order of each stage name: `stage_order`, else the position along `stage`; None without stages."""
    if "stage" not in ds.coords:
        return None
    stages = np.atleast_1d(ds.coords["stage"].values)
    orders = np.atleast_1d(ds.coords["stage_order"].values) if "stage_order" in ds.coords else np.arange(len(stages))
    return {label_text(s): float(o) for s, o in zip(stages, orders, strict=True)}


def ordered_categories(ds: Data, by: str) -> list[str]:
    """Categories of an ordered categorical column, in order; empty for other columns."""
    return [label_text(c) for c in np.atleast_1d(ds.coords[by].attrs.get("ordered_categories", []))]


def category_order(ds: Data, by: str, names: Array) -> Codes | None:
    """Positions of the groups in the order of the categories; None unless each name is a category."""
    position = {category: i for i, category in enumerate(ordered_categories(ds, by))}
    if not position or not all(label_text(name) in position for name in names):
        return None
    return np.argsort([position[label_text(name)] for name in names], kind="stable").astype(np.int64)


def group_orders(ds: Data, by: str, names: Array) -> Array:
    """Training order of each group on the scale of `stage_order`, float64 of shape (groups,); NaN where unknown.

    A group that is no recorded stage has its order from the categories of the column: they list the stages of the run,
    so that the difference of two positions is a number of stages. The recorded stages must agree with that.
    """
    stages, categories = stage_orders(ds) or {}, ordered_categories(ds, by)
    orders = np.array([stages.get(label_text(name), np.nan) for name in names])
    shifts = {stages[c] - i for i, c in enumerate(categories) if c in stages}
    if np.isnan(orders).any() and len(shifts) == 1:
        position = {category: i for i, category in enumerate(categories)}
        orders = np.array([position.get(label_text(name), np.nan) for name in names]) + shifts.pop()
    return orders


def trained_order(ds: Data, by: str, names: Array, codes: Codes, required: bool = False) -> Codes | None:
    """Positions of the groups in training order; None where the names are not stages.

    The sources, in this order: the recorded stages; the variable `exposure`, which knows stages that the data was
    narrowed to; the categories of the column, which know stages that were never recorded.

    Args:
        ds: data with the coordinates `stage` and `stage_order`, or with the variable `exposure`.
        by: label column of the groups.
        names: array of shape (groups,).
        codes: int64 array of shape (entity,), index into `names`.
        required: refuse names of which none is a stage.

    Raises:
        InputError: only some of the names are stages, or the order of trained stages is unknown.
    """
    stages = stage_orders(ds) or {}
    orders = np.array([stages.get(label_text(name), np.nan) for name in names])
    exposure = find_variable(ds, "exposure")
    if np.isnan(orders).any() and by == "trained_stage" and exposure is not None and "entity" in exposure.dims:
        # A Dataset narrowed to some stages no longer names them all, but exposure still orders the groups.
        age = exposure.isel(stage=0) if "stage" in exposure.dims else exposure
        first_rows = [int(np.argmax(codes == g)) for g in range(len(names))]
        orders = -np.asarray(age.values, dtype=float)[first_rows]
    unknown = [str(name) for name, order in zip(names, orders, strict=True) if np.isnan(order)]
    if not unknown:
        return np.argsort(orders, kind="stable").astype(np.int64)
    if category_order(ds, by, names) is not None:
        return None  # the categories order all groups, recorded or not
    if len(unknown) == len(names):
        if required or (by == "trained_stage" and names.dtype == object and "stage_order" in ds.coords):
            raise InputError(
                f"the training order of {by!r} ({join_names(names)}) is unknown here: none of these groups is among "
                f"the stages ({join_names(stages)}). Give order=[...], record the missing stages, or correct the "
                f"labels with stratalens.relabel"
            )
        return None
    raise InputError(
        f"only some groups of {by!r} are stages; not among {join_names(stages)}: {join_names(unknown)}. "
        f"Correct misspelled labels with stratalens.relabel, or record missing stages by running the capture "
        f"again. Otherwise give the wanted groups in order with order=[...], which excludes all others, or make "
        f"{by!r} an ordered pandas Categorical of all stages. Narrow the stages (.sel) after this call, not before"
    )


def is_ordered(result: Data) -> bool:
    """Whether the order of a result's groups means something.

    The attribute `ordered` of the result says so. A result of an earlier version has no such attribute; its groups are
    ordered if they are all stages of the result.
    """
    if "ordered" in result.attrs:
        return bool(result.attrs["ordered"])
    groups, stages = group_names(result), stage_orders(result)
    return bool(groups) and stages is not None and set(groups) <= set(stages)


def result_order(data: Data) -> tuple[list[str], list[str]]:
    """Trained stages in training order, and untrained stages, as a result's coordinates show them.

    Groups that are not names of stages, or not ordered, keep the order that they have in the result.
    """
    groups = group_names(data)
    orders = stage_orders(data)
    if orders is None:
        return groups, []
    is_untrained = {name: order == 0 and "stage_order" in data.coords for name, order in orders.items()}
    untrained = [name for name in orders if is_untrained[name] and name not in groups]
    if groups and not (set(groups) <= set(orders) and is_ordered(data)):
        return groups, untrained
    return [name for name in sorted(orders, key=orders.__getitem__) if name not in untrained], untrained


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
