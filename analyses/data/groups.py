"""Groups of rows by a label column, entities of rows, and how long ago each group was trained on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.data.array_types import Array, Codes, Data
from stratalens.analyses.data.results import find_variable
from stratalens.analyses.data.training_order import (
    STAGES,
    category_order,
    group_orders,
    label_text,
    stage_orders,
    trained_order,
)
from stratalens.store.errors import InputError, join_names, suggest
from stratalens.store.format.schema import AXES

# A float column with more different non-integer values than this is a measurement, not a set of classes.
MOST_FRACTIONAL_GROUPS = 12
# Columns that name what a row is about; duplicates suggest rows of one entity.
TEXT_COLUMNS = ("entity", "prompt", "text", "entity_text", "entity_name", "subject")
# Least share of different values in a column of identifiers of rows or entities.
FEWEST_IDENTITIES = 0.1
TRAINED_STAGE = "trained_stage"  # the column whose labels are stages
# Sources of an order that means something. Numeric order and the order of the file are only a way to list groups.
MEANINGFUL_ORDERS = ("order", "stage_order", "categories")


@dataclass(frozen=True)
class Groups:
    """Groups of rows.

    Attributes:
        by: name of the label column.
        names: array of shape (groups,), in order; object dtype for strings.
        codes: int64 array of shape (entity,), index into `names`; -1 = in no group.
        ordering: source of the order: 'order' (the argument), 'stage_order' (the groups are stages), 'categories' (of
            an ordered categorical column), 'numeric' or 'first appearance'.
    """

    by: str
    names: Array
    codes: Codes
    ordering: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ordered(self) -> bool:
        """Whether the order means something: the user, the stages or the categories of the column define it."""
        return self.ordering in MEANINGFUL_ORDERS

    def index(self, name: object) -> int:
        """Position of the group called `name`.

        Raises:
            InputError: unknown group; the message names similar ones.
        """
        for i, own in enumerate(self.names):
            if own == name or str(own) == str(name):
                return i
        raise InputError(f"no group {name!r} in {self.by!r}: {suggest(str(name), map(str, self.names))}")

    def pairs(self, pairs: str | Sequence[Sequence[object]] = "all") -> list[tuple[int, int]]:
        """Pairs of group indices, earlier group first.

        Args:
            pairs: "all" (every pair, in order), or a list of (name, name). The order inside a pair does not matter.

        Raises:
            InputError: an unknown word or group, or a pair of a group with itself.

        Example:
            >>> g = Groups("by", np.array(["a", "b", "c"], object), np.array([0, 1, 2]), "order")
            >>> g.pairs()
            [(0, 1), (0, 2), (1, 2)]
            >>> g.pairs([("c", "a")])
            [(0, 2)]
        """
        if isinstance(pairs, str):
            if pairs != "all":
                raise InputError(f"pairs={pairs!r}: {suggest(pairs, ['all'])}, or a list of pairs of group names")
            return [(i, j) for i in range(len(self)) for j in range(i + 1, len(self))]
        indices = []
        for pair in pairs:
            if isinstance(pair, str) or len(pair) != 2:
                raise InputError(
                    f"pairs contains {pair!r}; each must be two group names, e.g. {self.names[:2].tolist()}"
                )
            first, second = sorted((self.index(pair[0]), self.index(pair[1])))
            if first == second:
                raise InputError(f"the pair {pair!r} names the same group twice")
            indices.append((first, second))
        if not indices:
            raise InputError("pairs is empty; give 'all' or at least one pair of group names")
        return indices

    def require(
        self,
        classes: int = 2,
        per_class: int = 1,
        units: Codes | None = None,
        why: str = "",
        for_numbers: str = "",
    ) -> None:
        """Refuse too few groups, or groups that are too small.

        Args:
            classes: least number of groups.
            per_class: least number of rows (or of units, e.g. entities) in each group.
            units: int64 array of shape (entity,), codes of the units to count; None counts rows.
            why: reason for these numbers, for the message (e.g. "5 folds").
            for_numbers: remedy for labels that are numbers, for the message.

        Raises:
            InputError: names every group that is too small, with its size.
        """
        reason = f" ({why})" if why else ""
        if len(self) < classes:
            raise InputError(
                f"{self.by!r} has {len(self)} group{'s' if len(self) != 1 else ''} "
                f"({', '.join(map(str, self.names))}), at least {classes} are needed{reason}; "
                f"choose another column with by=/target="
            )
        sizes = self.sizes(units)
        small = [f"{name} ({size})" for name, size in zip(self.names, sizes, strict=True) if size < per_class]
        if not small:
            return
        kind = "rows" if units is None else "entities"
        instead = f". {for_numbers}" if for_numbers and self.names.dtype != object else ""
        if self.names.dtype != object and len(small) > MOST_FRACTIONAL_GROUPS:
            raise InputError(
                f"{self.by!r} has {len(self)} values on {int(sizes.sum())} {kind}; {len(small)} of them have fewer "
                f"than {per_class}{reason}: bin it into classes first, for example with pandas.qcut"
            )
        raise InputError(
            f"too few {kind} in {self.by!r}: {join_names(small)}; each group needs at least "
            f"{per_class}{reason}. Leave these groups out with order=[...], or lower the requirement{instead}"
        )

    def sizes(self, units: Codes | None = None) -> Codes:
        """Rows, or distinct units (e.g. entities), in each group: int64 array of shape (groups,)."""
        if units is None:
            return np.bincount(self.codes[self.codes >= 0], minlength=len(self)).astype(np.int64)
        return np.array([len(np.unique(units[self.codes == g])) for g in range(len(self))], dtype=np.int64)


def groups(ds: Data, by: str, order: Iterable[object] | None = None) -> Groups:
    """Group the rows of `ds` by a label column.

    With a list as `order`, the groups have that order, and groups outside it are excluded (code -1). The groups of
    `trained_stage` have training order if they are stages. Groups of an ordered categorical column have the order of
    its categories. Numbers have numeric order, and all others have the order of their first appearance; these two are
    not `ordered`. Strings are never sorted. Missing labels (NaN, None, "") are excluded.

    Args:
        ds: Dataset or DataArray with a coordinate `by` along `entity`.
        by: name of the label column.
        order: the groups wanted, in order; or "stages": the groups are stages, although the column is not
            `trained_stage`. A label is a stage if its text is the name of the stage.

    Raises:
        InputError: unknown column, mixed types, a continuous column, an unknown name in `order`,
            or names of which only some are stages.

    Example:
        >>> ds = xr.Dataset(coords={"colour": ("entity", np.array(["red", "blue", "red"], object))})
        >>> groups(ds, "colour").names.tolist(), groups(ds, "colour").codes.tolist()
        (['red', 'blue'], [0, 1, 0])
        >>> groups(ds, "colour", order=["blue"]).codes.tolist()
        [-1, 0, -1]
        >>> groups(ds, "colour").ordered, groups(ds, "colour", order=["blue", "red"]).ordered
        (False, True)
    """
    codes, names = factorize_labels(label_column(ds, by), by)
    if len(names) == 0:
        raise InputError(f"every label in {by!r} is missing; choose another column: {join_names(label_columns(ds))}")
    positions, ordering = _ordered_positions(ds, by, names, codes, order)
    rank = np.full(len(names) + 1, -1, dtype=np.int64)
    rank[positions] = np.arange(len(positions))
    return Groups(by, names[positions], rank[codes], ordering)


def _ordered_positions(
    ds: Data, by: str, names: Array, codes: Codes, order: Iterable[object] | None
) -> tuple[Codes, str]:
    """Indices of `names` in order, and the source of the order."""
    if isinstance(order, str) and order != STAGES:
        raise InputError(
            f"order={order!r}: give a list of groups of {by!r} in order, or {STAGES!r}: {join_names(names)}"
        )
    if order is not None and not isinstance(order, str):
        return _requested_order(names, list(order), by), "order"
    if order == STAGES or by == TRAINED_STAGE:
        by_stage = trained_order(ds, by, names, codes, required=order == STAGES)
        if by_stage is not None:
            return by_stage, "stage_order"
    categories = category_order(ds, by, names)
    if categories is not None:
        return categories, "categories"
    if names.dtype != object:
        return np.argsort(names, kind="stable"), "numeric"
    return np.arange(len(names)), "first appearance"


def clusters(ds: Data, groups: str = "entity_id") -> Codes:
    """Entity of each row: int64 codes of shape (entity,).

    Without a column `entity_id`, rows with the same label of `entity` are one entity, and every row is its own entity
    where these labels differ or are missing. A warning says so where another column suggests that several rows are
    about the same thing. Any other missing column is an error. A missing label is an error too,
    because a split could put its row on both sides.

    Raises:
        InputError: no such column, or rows without a label.
    """
    check_data(ds)
    if groups == "entity_id" and "entity_id" not in ds.coords:
        if ds.xindexes.get("entity") is None or plain_entities(ds) is not ds:
            _warn_of_duplicates(ds)
            return np.arange(ds.sizes["entity"], dtype=np.int64)
        codes = pd.factorize(ds.indexes["entity"])[0].astype(np.int64)
        if codes.max(initial=-1) + 1 == len(codes):
            _warn_of_duplicates(ds)
        return codes
    codes, _ = factorize_labels(label_column(ds, groups), groups, continuous=True)
    if (codes < 0).any():
        rows = np.flatnonzero(codes < 0)[:5].tolist()
        raise InputError(f"{groups!r} is missing in rows {rows}; every row needs one, or splits could leak")
    return codes


def _warn_of_duplicates(ds: Data) -> None:
    """Warn where rows share a prompt or an identifier, but the data does not say which entity they are about."""
    for name in ("entity", *label_columns(ds)):
        is_text = name in TEXT_COLUMNS
        if name not in ds.coords or not (is_text or name.endswith("_id")):
            continue
        labels = pd.Series(np.asarray(ds.coords[name].values).astype(object))
        labels = labels[[not _is_missing(value) for value in labels]]
        values = labels.nunique()
        # Few values of an identifier are classes, e.g. those of templates.
        if values == len(labels) or (not is_text and values < FEWEST_IDENTITIES * len(labels)):
            continue
        warnings.warn(
            f"{len(labels) - values} rows repeat a value of {name!r}, but the data has no column 'entity_id', so that "
            f"every row counts as an entity of its own. Rows of one entity in training and test rows give too high a "
            f"score. Add the entity of each row: ds.assign_coords(entity_id=('entity', ids)), or pass groups={name!r} "
            f"to a probe",
            stacklevel=3,
        )
        return


def labels_by_cluster(groups: Groups, units: Codes) -> Codes:
    """Group code of each entity, shape (units,); -1 where none of its rows is in a group.

    Raises:
        InputError: rows of one entity are in different groups, so that labels cannot move between entities.
    """
    label = np.full(int(units.max(initial=-1)) + 1, -1, dtype=np.int64)
    used = groups.codes >= 0
    label[units[used]] = groups.codes[used]
    conflicting = np.flatnonzero(used & (label[units] != groups.codes))
    if len(conflicting):
        raise InputError(
            f"{len(np.unique(units[conflicting]))} entities have rows in several groups of {groups.by!r} "
            f"(first such row: {int(conflicting[0])}); a label must belong to the whole entity here"
        )
    return label


def exposure(ds: Data, groups: Groups) -> xr.DataArray | None:
    """Number of stages since each group was trained on, dims (stage, group); None where unknown.

    A negative number marks a group that is not trained yet (a control), 0 one that was just trained. The source is the
    variable `exposure`; without it, the coordinates `stage` and `stage_order`. Stages that are not recorded have the
    order of the categories of the column, or NaN without categories. Only groups of `trained_stage`, or with the order
    of stages, have an exposure.
    """
    if groups.by != TRAINED_STAGE and groups.ordering != "stage_order":
        return None
    known = find_variable(ds, "exposure") if groups.by == TRAINED_STAGE else None
    table = None
    if known is not None and "entity" in known.dims:
        first_rows = [int(np.argmax(groups.codes == g)) for g in range(len(groups))]
        labels_of_rows = [name for name, coord in known.coords.items() if "entity" in coord.dims]
        table = known.drop_vars(labels_of_rows).isel(entity=first_rows).compute(scheduler="synchronous")
        table = table.rename(entity="group").assign_coords(group=groups.names)
        if not bool(table.isnull().any()):
            return table
    orders, stages = group_orders(ds, groups.by, groups.names), stage_orders(ds)
    if stages is None or np.isnan(orders).all() or (table is None and np.isnan(orders).any()):
        return table if table is None or bool(table.notnull().any()) else None
    order_of_stage = xr.DataArray([stages[label_text(s)] for s in np.atleast_1d(ds["stage"].values)], dims="stage")
    computed = order_of_stage - xr.DataArray(orders, dims="group", coords={"group": groups.names})
    computed = computed.assign_coords(stage=np.atleast_1d(ds["stage"].values))
    if "stage" not in ds.dims:
        computed = computed.isel(stage=0)
    if table is not None:
        return table.fillna(computed.drop_vars("stage"))
    return computed.transpose(..., "group").rename("exposure")


def plain_entities(data: Data) -> Data:
    """Turn a MultiIndex along `entity`, as `set_index` makes it, into label columns; other data is returned as it is.

    Example:
        >>> ds = xr.Dataset(coords={"x": ("entity", [1, 2]), "y": ("entity", [3, 3])}).set_index(entity=["x", "y"])
        >>> sorted(map(str, ds.coords)), sorted(map(str, plain_entities(ds).coords))
        (['entity', 'x', 'y'], ['x', 'y'])
    """
    if isinstance(data.xindexes.get("entity"), xr.indexes.PandasMultiIndex):
        return data.reset_index("entity")
    return data


def check_data(data: object) -> None:
    """Refuse data that is not a Dataset or DataArray with entities, such as the path of a store.

    Raises:
        InputError: names the type, and says how to open a store.
    """
    if not isinstance(data, xr.Dataset | xr.DataArray):
        path = data if isinstance(data, str | os.PathLike) else "run.zarr"
        raise InputError(
            f"expected a Dataset or a DataArray, got {type(data).__name__}; open a store with "
            f"stratalens.open_store({os.fspath(path)!r})"
        )
    if "entity" not in data.dims:
        raise InputError(f"the data has no dim 'entity' (dims: {', '.join(map(str, data.dims))})")
    empty = [dim for dim in AXES if data.sizes.get(dim) == 0]
    if empty:
        raise InputError(f"the data is empty along {empty[0]!r}; nothing was selected")


def label_column(ds: Data, name: str) -> Array:
    """Values of the label column `name` along `entity`.

    Raises:
        InputError: no such column (the message names similar ones), or a column along other dims.
    """
    check_data(ds)
    if name not in ds.coords:
        if name in getattr(ds, "data_vars", ()):
            raise InputError(
                f"{name!r} is a variable of the data, not a label: open a store with stratalens.open_store(path) or "
                f"xarray.open_dataset(path, engine='stratalens'); for other data, ds.set_coords({name!r})"
            )
        raise InputError(f"no label column {name!r}: {suggest(str(name), label_columns(ds))}")
    if ds.coords[name].dims != ("entity",):
        dims = ", ".join(map(str, ds.coords[name].dims)) or "none"
        raise InputError(
            f"{name!r} is no label column: its dims are ({dims}), not (entity). {suggest(name, label_columns(ds))}"
        )
    return np.asarray(ds.coords[name].values)


def label_columns(ds: Data) -> list[str]:
    """Names of the coordinates along `entity`."""
    return [str(name) for name, coord in ds.coords.items() if coord.dims == ("entity",) and name != "entity"]


def factorize_labels(values: Array, by: str, continuous: bool = False) -> tuple[Codes, Array]:
    """Codes of the labels (-1 = missing) and their names, in order of appearance."""
    if values.dtype.kind in "UTSO":
        values = np.array([None if _is_missing(v) else v for v in values.astype(object)], dtype=object)
        kinds = {_kind(v) for v in values if v is not None}
        if len(kinds) > 1:
            raise InputError(f"labels in {by!r} are of mixed type ({', '.join(sorted(kinds))}); give them one type")
        if kinds == {"number"}:
            numbers = np.array([np.nan if v is None else float(v) for v in values])
            all_integers = not np.isnan(numbers).any() and (numbers % 1 == 0).all()
            values = numbers.astype(np.int64) if all_integers else numbers
    codes, names = pd.factorize(values, use_na_sentinel=True)
    names = np.asarray(names)
    if not continuous and names.dtype.kind == "f":
        fractional = np.unique(names[names % 1 != 0])
        if len(fractional) > MOST_FRACTIONAL_GROUPS:
            raise InputError(
                f"{by!r} is continuous ({len(names)} different values from {names.min():g} to {names.max():g}) where "
                f"groups are needed; cut it into classes first (e.g. with pandas.qcut)"
            )
    return codes.astype(np.int64), names


def _is_missing(value: Hashable) -> bool:
    return value is None or value is pd.NA or value == "" or (isinstance(value, float) and np.isnan(value))


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "boolean"
    return "number" if isinstance(value, int | float | np.number) else type(value).__name__


def _requested_order(names: Array, order: list[object], by: str) -> Codes:
    position = {str(name): i for i, name in enumerate(names)}
    unknown = [o for o in order if str(o) not in position]
    if unknown:
        raise InputError(
            f"order names {unknown[0]!r}, which no row of {by!r} has: {suggest(str(unknown[0]), position)}"
        )
    if len({str(o) for o in order}) != len(order) or not order:
        raise InputError(f"order={order!r} must name each group of {by!r} once: {join_names(position)}")
    return np.array([position[str(o)] for o in order], dtype=np.int64)
