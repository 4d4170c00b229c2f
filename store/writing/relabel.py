"""relabel: replace, add or drop label columns of a store.

Every label column has two alternative names for its files. New values go to the name that is not in use; then one
replacement of the root zarr.json selects them. Every reader sees the old labels before that moment and the new labels
after it. The old files stay until the next change, for readers that have the old root.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stratalens.store.errors import InputError, MismatchError, suggest
from stratalens.store.format import label_codec as labels
from stratalens.store.format.schema import RESERVED_LABELS
from stratalens.store.state.history import append_history
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.publish import commit_root
from stratalens.store.storage.base import PRIVATE
from stratalens.store.writing.label_columns import (
    PROMPT_COLUMNS,
    Columns,
    check_case_collisions,
    check_columns,
    check_prompt_ids,
    prompts_mismatch,
    read_labels,
    write_labels,
)
from stratalens.store.writing.label_reconciliation import changed_columns, orders_after
from stratalens.store.writing.writer import ActivationWriter

_LABEL_FILE = re.compile(r"zarr\.json|c\.\d+|\d+")


def relabel(
    store: Store | str | os.PathLike[str],
    columns: Mapping[str, ArrayLike],
    *,
    drop: Sequence[str] = (),
    label_orders: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, int]:
    """Replace or add label columns of a store; rows are matched by prompt id.

    Args:
        store: folder or URL of a store, or the result of `create`.
        columns: `entity` (exactly the prompt ids of the store, in any order) and the columns to write, one value for
            each row. `prompt`, `entity_text` and `answer` describe what was run: if given, they must equal the store's.
            Other columns of the store stay.
        drop: columns to remove from the store.
        label_orders: categories of each ordered label column, in order. A column that is not in it keeps the order
            of the store, if all of its labels are among the categories.

    Returns:
        The number of rows with another value for each changed column; all rows for a new or dropped column. Empty if
        nothing changed.

    Raises:
        MismatchError: the prompts differ from the store's; nothing was written.
        InputError: a column cannot be a label, or cannot be dropped; nothing was written.
        StoreBusyError: another process writes the store.
    """
    with ActivationWriter(store) as writer:
        storage = writer.store.storage
        with storage.structure_lock():
            current = load(storage)
            _remove_unused_columns(current)
            stored = read_labels(current)
            new = _in_store_order(current, stored, columns)
            merged = {**stored, **new}
            for name in drop:
                _check_drop(name, stored, new)
                del merged[name]
            merged = check_columns(merged)
            _check_names(current, list(merged))
            orders = orders_after(current, label_orders or {}, merged)
            changed = changed_columns(current, stored, merged, orders)
            if not changed and not drop:
                return {}
            alternate = frozenset(current.alternate_label_files)
            moved = {name for name in current.label_types if (name in alternate) != (name in changed)}
            relabelled = replace(
                current,
                label_types={name: labels.data_type(column) for name, column in merged.items()},
                label_digest=labels.digest(merged),
                alternate_label_files=tuple(sorted(moved & set(merged))),
                label_orders=orders,
            )
            write_labels(relabelled, {name: merged[name] for name in changed})
            # The first event tells an interrupted change from a root that an older copy has replaced.
            append_history(storage, "labels change", digest=relabelled.label_digest)
            commit_root(relabelled, first=len(relabelled.stages))
            facts = {"columns": sorted(changed), "dropped": sorted(drop), "digest": relabelled.label_digest}
            append_history(storage, "labels changed", **facts)
    return {**changed, **dict.fromkeys(drop, current.entities)}


def _remove_unused_columns(store: Store) -> None:
    """Remove label columns that the root does not name.

    The last change dropped them, or was interrupted.
    """
    storage, documents = store.storage, store.arrays()
    for name in storage.list(""):
        if name in documents or name == PRIVATE or not storage.is_folder(name):
            continue
        files = storage.list(name)
        raw = storage.get(f"{name}/zarr.json")
        try:
            document = json.loads(raw) if raw is not None else {"dimension_names": ["entity"]}
        except ValueError:
            continue
        is_label = isinstance(document, dict) and document.get("dimension_names") == ["entity"]
        if files and is_label and all(_LABEL_FILE.fullmatch(file) for file in files):
            storage.delete(f"{name}/{file}" for file in files)
            storage.remove_folder(name)


def _in_store_order(store: Store, stored: Columns, columns: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Return the new columns in the row order of the store, without `entity`."""
    if "entity" not in columns:
        raise InputError("columns has no 'entity': give the prompt ids, by which rows are matched")
    new = {name: labels.normalise(name, values) for name, values in columns.items()}
    ids = np.array([str(v) for v in new["entity"].tolist()], dtype=object)
    for name, column in new.items():
        if len(column) != len(ids):
            raise InputError(f"label column {name!r} has {len(column)} values, 'entity' has {len(ids)}")
    check_prompt_ids(ids)
    new["entity"] = ids
    if error := prompts_mismatch(store, stored, new):
        raise error
    if "answer" in new and "answer" not in stored:
        raise MismatchError(
            f"{store.path} was recorded without answers: leave the column 'answer' out of the table, or record the "
            "prompts with their answers to another store"
        )
    row_of = {name: row for row, name in enumerate(ids.tolist())}
    order = np.array([row_of[name] for name in stored["entity"].tolist()], dtype=np.intp)
    return {name: column[order] for name, column in new.items() if name != "entity"}


def _check_drop(name: str, stored: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if name in ("entity", "entity_id", *PROMPT_COLUMNS):
        raise InputError(f"column {name!r} describes what was run and cannot be dropped")
    if name not in stored:
        raise InputError(f"there is no label column {name!r} to drop; {suggest(name, stored)}")
    if name in new:
        raise InputError(f"column {name!r} is in the table and in drop: remove it from one of them")


def _check_names(store: Store, names: list[str]) -> None:
    check_case_collisions([*names, *RESERVED_LABELS, *store.layouts])
    dims = {dim for layout in store.layouts.values() for dim in layout.variable.dims if dim != "entity"}
    for name in names:
        if name in store.layouts or name in dims:
            raise InputError(f"label column {name!r} has the name of an array or dim of {store.path}: rename it")
