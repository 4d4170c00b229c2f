"""Label columns with their numbers of groups, and the column that is compared by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stratalens.analyses.data.array_types import Codes, Data
from stratalens.analyses.data.groups import (
    MOST_FRACTIONAL_GROUPS,
    TRAINED_STAGE,
    clusters,
    factorize_labels,
    label_column,
    label_columns,
)
from stratalens.store.errors import InputError, suggest

MAX_GROUPS = 60  # groups that a figure can distinguish
IDENTIFIERS = ("entity_id", "entity_text", "entity", "prompt", "prompt_id", "answer")


@dataclass(frozen=True)
class LabelColumn:
    """A label column.

    Attributes:
        name: name of the column.
        groups: number of different labels, missing ones not counted.
        within_entities: all rows of an entity have the same label.
        problem: reason why its groups cannot be compared; empty if they can.
    """

    name: str
    groups: int
    within_entities: bool
    problem: str = ""

    @property
    def candidate(self) -> bool:
        """Whether the column can be the default: its groups divide the entities and are not the entities themselves."""
        return not self.problem and self.within_entities and self.name not in IDENTIFIERS

    def __str__(self) -> str:
        return f"{self.name} ({self.groups:,})"


def describe_label_columns(ds: Data, preferred: Sequence[str] = (TRAINED_STAGE,)) -> list[LabelColumn]:
    """Describe the label columns, the most useful ones first.

    Args:
        ds: data with label columns along `entity`.
        preferred: columns that come first, where their groups can be compared.

    Returns:
        Columns in this order: the preferred ones, other candidates for the default, columns with different labels
        inside an entity, columns that cannot be compared, identifiers.

    Example:
        >>> import xarray as xr
        >>> ds = xr.Dataset(coords={"id": ("entity", ["a", "b", "c", "d"]), "colour": ("entity", ["x", "y", "x", "y"])})
        >>> [str(column) for column in describe_label_columns(ds)]
        ['colour (2)', 'id (4)']
    """
    try:
        units: Codes | None = clusters(ds)
    except InputError:  # rows without an entity
        units = None
    columns = [_describe(ds, name, units) for name in label_columns(ds)]

    def rank(column: LabelColumn) -> int:
        if column.name in preferred and not column.problem:
            return preferred.index(column.name)
        if column.candidate:
            return len(preferred)
        late = (column.name in IDENTIFIERS) * 2 + bool(column.problem)
        return len(preferred) + 1 + late

    return sorted(columns, key=rank)


def default_label_column(ds: Data, preferred: Sequence[str] = (TRAINED_STAGE,)) -> str:
    """Return the label column that is compared if the user names none.

    Args:
        ds: data with label columns along `entity`.
        preferred: columns that are taken if they exist and have at least two groups.

    Returns:
        The first of `preferred`, else the only column with 2 to 60 groups that divides the entities.

    Raises:
        InputError: there are several such columns, or none; the message lists all with their numbers of groups.
    """
    columns = describe_label_columns(ds, preferred)
    for name in preferred:
        if any(column.name == name and column.groups > 1 for column in columns):
            return name
    candidates = [column for column in columns if column.candidate]
    if len(candidates) == 1:
        return candidates[0].name
    if not candidates:
        raise InputError(
            f"no label column has 2 to {MAX_GROUPS} groups of entities, so there is nothing to compare by default. "
            f"The columns, with their numbers of groups: {list_columns(columns)}"
        )
    others = [column for column in columns if column not in candidates]
    rest = f". Other columns: {list_columns(others)}" if others else ""
    raise InputError(f"name the label column: {list_columns(candidates, of='groups')}{rest}")


def check_label_column(ds: Data, name: str) -> None:
    """Refuse the name of a column that does not exist.

    Raises:
        InputError: lists all columns with their numbers of groups.
    """
    columns = label_columns(ds)
    if name not in columns:
        described = list_columns(describe_label_columns(ds))
        hint = suggest(name, columns) if columns else "this data has no label column"
        raise InputError(f"{name!r} is not a label column; {hint}. Numbers of groups: {described}")


def list_columns(columns: Sequence[LabelColumn], of: str = "") -> str:
    """List columns with their numbers of groups: "habitat (4), template (3)"; with `of`, "habitat (4 groups)"."""
    return ", ".join(f"{c.name} ({c.groups:,}{f' {of}' if of else ''})" for c in columns) or "none"


def _describe(ds: Data, name: str, units: Codes | None) -> LabelColumn:
    try:
        codes, names = factorize_labels(label_column(ds, name), name, continuous=True)
    except InputError as error:  # labels of mixed type
        return LabelColumn(name, 0, False, str(error))
    count, used = len(names), codes >= 0
    within = units is not None
    if units is not None and used.any():
        first = np.full(int(units.max(initial=-1)) + 1, -2, dtype=np.int64)
        first[units[::-1]] = codes[::-1]
        within = bool((codes == first[units]).all())
    problem = ""
    if count < 2:
        problem = "all rows have the same label" if count else "every label is missing"
    elif names.dtype.kind == "f" and int((names % 1 != 0).sum()) > MOST_FRACTIONAL_GROUPS:
        problem = "continuous; cut it into classes first"
    elif count > MAX_GROUPS:
        problem = f"more than {MAX_GROUPS} groups"
    elif units is not None and count == len(np.unique(units[used])) and count > 2:
        problem = "every entity has a label of its own"
    return LabelColumn(name, count, within, problem)
