"""Label columns of a table compared with those of an existing store: data types, and orders of categories."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import InputError, LabelWarning
from stratalens.store.format import label_codec as labels
from stratalens.store.state.manifest import Store
from stratalens.store.writing.label_columns import Columns, differing_rows, read_labels

Orders = Mapping[str, Sequence[str]]

_BOOLEANS = {"true": True, "false": False}


def check_orders(orders: Orders, columns: Columns) -> dict[str, tuple[str, ...]]:
    """Check the orders of categories of label columns.

    Args:
        orders: for each ordered label column its categories in order, as text.
        columns: label columns by name.

    Raises:
        InputError: an unknown column, a category that is listed twice, or a label that is no category.
    """
    checked = {}
    for name, categories in orders.items():
        if name not in columns:
            raise InputError(f"the order of {name!r} refers to no label column: there are {', '.join(columns)}")
        order = tuple(str(category) for category in categories)
        if len(set(order)) != len(order):
            raise InputError(f"the order of {name!r} lists a category twice: {', '.join(order)}")
        if missing := _labels_outside(columns[name], order):
            raise InputError(f"label {missing[0]!r} of {name!r} is not among its ordered categories {', '.join(order)}")
        checked[name] = order
    return checked


def _labels_outside(column: NDArray[Any], order: Sequence[str]) -> list[str]:
    """List the labels that are no category; missing labels ('' and NaN) need none."""
    values = {str(value) for value in column.tolist() if value == value}
    return sorted(values - {*order, ""})


def with_stored_types(store: Store, columns: Columns) -> dict[str, NDArray[Any]]:
    """Return the columns of a table, with the store's numbers where the table has the same numbers as text.

    Older versions read labels of csv files such as 007 and 1.0 as numbers, so that the store has 7 and 1.0.

    Warns:
        LabelWarning: names the columns, and how to replace them by the text.
    """
    names = [
        name
        for name, column in columns.items()
        if column.dtype == object and store.label_types.get(name, "string") != "string"
    ]
    stored = read_labels(store, names)
    equal = [name for name in names if _same_numbers(stored[name], columns[name])]
    if equal:
        warnings.warn(
            f"label column{'s' * (len(equal) > 1)} {', '.join(map(repr, equal))}: {store.path} has the text of the "
            "table as numbers, as an older version read it; the store's numbers stay. To replace them by the text: "
            f"stratalens.relabel({store.path!r}, table)",
            LabelWarning,
            stacklevel=2,
        )
    return {**columns, **{name: stored[name] for name in equal}}


def _same_numbers(stored: NDArray[Any], texts: NDArray[Any]) -> bool:
    """Return whether texts are the numbers of a stored column."""
    if len(stored) != len(texts):
        return False
    try:
        if stored.dtype.kind == "b":
            values = np.array([_BOOLEANS[text.lower()] for text in texts])
        elif stored.dtype.kind == "f":
            values = np.array([float(text) if text else np.nan for text in texts])
        else:
            values = np.array([int(text) for text in texts])
    except (KeyError, ValueError):
        return False
    return not differing_rows(stored.astype(values.dtype), values).size


def orders_after(store: Store, new: Orders, columns: Columns) -> dict[str, tuple[str, ...]]:
    """Return the orders of a store's label columns after they were replaced.

    A column that a table without an order replaces keeps the order of the store, if all new labels are categories.

    Args:
        store: the store.
        new: orders that the table gives.
        columns: label columns after the change.
    """
    stays = {
        name: tuple(order)
        for name, order in store.label_orders.items()
        if name in columns and not _labels_outside(columns[name], order)
    }
    return {**stays, **check_orders(new, columns)}


def warn_about_orders(store: Store, new: Orders) -> None:
    """Warn where a table gives a label column another order than an existing store has.

    Warns:
        LabelWarning: names the columns, and how to write their order into the store.
    """
    differing = [name for name, order in new.items() if tuple(order) != tuple(store.label_orders.get(name, ()))]
    if differing:
        warnings.warn(
            f"label column{'s' * (len(differing) > 1)} {', '.join(map(repr, differing))}: the table orders the "
            f"categories in another way than {store.path}, whose labels stay. To write the order of the table: "
            f"stratalens.relabel({store.path!r}, table)",
            LabelWarning,
            stacklevel=2,
        )


def changed_columns(
    store: Store, stored: Columns, columns: Columns, orders: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    """Return the number of rows with another value for each column that differs in its values, type or order."""
    changed = {}
    for name, column in columns.items():
        if name not in stored:
            changed[name] = store.entities
        elif labels.digest({"": stored[name]}) != labels.digest({"": column}):
            changed[name] = len(differing_rows(stored[name], column))
        elif orders.get(name) != store.label_orders.get(name):
            changed[name] = 0
    return changed
