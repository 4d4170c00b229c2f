"""Other labels for a store that is there: columns replaced, added or dropped at once, activations left as they are.

A label column has two places for its files (`Store.label_key`). New values go to
the place that is not in use; then the root zarr.json, which says which one is, is
replaced. Before that moment every reader finds the old labels, afterwards the new
ones. The old files stay until the next change, for readers that have the old root.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratalens.store.errors import InputError, MismatchError, suggest
from stratalens.store.format import label_codec as labels
from stratalens.store.format.schema import RESERVED_LABELS
from stratalens.store.state.history import append_history
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.publish import commit_root
from stratalens.store.storage.base import PRIVATE
from stratalens.store.writing.label_columns import (
    RUN,
    check_case_collisions,
    checked_columns,
    differing,
    other_prompts,
    read_labels,
    write_labels,
)
from stratalens.store.writing.writer import ActivationWriter

_LABEL_FILE = re.compile(r"zarr\.json|c\.\d+|\d+")


def relabel(
    store: Store | str | os.PathLike[str], columns: Mapping[str, ArrayLike], *, drop: Sequence[str] = ()
) -> dict[str, int]:
    """Replace or add label columns of a store; rows are matched by prompt id.

    Parameters
    ----------
    store
        Folder or URL of a store, or what `create` returned.
    columns
        ``entity`` (the prompt ids, all of the store's and no others, in any
        order) and the columns to be written, one value for each row. ``prompt``,
        ``entity_text`` and ``answer`` say what was run: where they are given they
        must be the store's. Columns of the store that are not given stay.
    drop
        Columns to be taken out of the store.

    Returns
    -------
    dict
        For each column that was changed, how many rows have another value now
        (all of them for a new or a dropped one). Empty where nothing was to do.

    Raises
    ------
    MismatchError
        Other prompts than the store's; nothing was written.
    InputError
        A column cannot be a label, or cannot be dropped; nothing was written.
    StoreBusyError
        Another process writes the store.
    """
    with ActivationWriter(store) as writer:
        storage = writer.store.storage
        with storage.structure_lock():
            current = load(storage)
            _sweep(current)
            held = read_labels(current)
            given = _matched(current, held, columns)
            merged = {**held, **given}
            for name in drop:
                _check_drop(name, held, given)
                del merged[name]
            merged = checked_columns(merged)
            _check_names(current, list(merged))
            changed = {
                name: len(differing(held[name], column)) if name in held else current.entities
                for name, column in merged.items()
                if name not in held or labels.digest({"": held[name]}) != labels.digest({"": column})
            }
            if not changed and not drop:
                return {}
            moved = {
                name for name in current.label_types if (name in current.alternate_label_files) != (name in changed)
            }
            fresh = replace(
                current,
                label_types={name: labels.data_type(column) for name, column in merged.items()},
                label_digest=labels.digest(merged),
                alternate_label_files=tuple(sorted(moved & set(merged))),
            )
            write_labels(fresh, {name: merged[name] for name in changed})
            commit_root(fresh, first=len(fresh.stages))
            append_history(storage, "labels changed", columns=sorted(changed), dropped=sorted(drop))
    return {**changed, **dict.fromkeys(drop, current.entities)}


def _matched(store: Store, held: Mapping[str, NDArray[Any]], columns: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """The columns given, in the order of the store's rows; `entity` itself is left out."""
    if "entity" not in columns:
        raise InputError("columns has no 'entity': give the prompt ids, by which rows are matched")
    given = {name: labels.normalise(name, values) for name, values in columns.items()}
    ids = np.array([str(v) for v in given["entity"].tolist()], dtype=object)
    for name, column in given.items():
        if len(column) != len(ids):
            raise InputError(f"label column {name!r} has {len(column)} values, 'entity' has {len(ids)}")
    if len(set(ids.tolist())) != len(ids):
        raise InputError("prompt ids must be unique: one row of the table for each prompt of the store")
    given["entity"] = ids
    if error := other_prompts(store, held, given):
        raise error
    if "answer" in given and "answer" not in held:
        raise MismatchError(
            f"{store.path} was recorded without answers: leave the column 'answer' out of the table, or record the "
            "prompts with their answers to another store"
        )
    place = {name: row for row, name in enumerate(ids.tolist())}
    order = np.array([place[name] for name in held["entity"].tolist()], dtype=np.intp)
    return {name: column[order] for name, column in given.items() if name != "entity"}


def _check_drop(name: str, held: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if name in ("entity", "entity_id", *RUN):
        raise InputError(f"column {name!r} says what was run and cannot be dropped")
    if name not in held:
        raise InputError(f"there is no label column {name!r} to drop; {suggest(name, held)}")
    if name in given:
        raise InputError(f"column {name!r} is given and to be dropped: leave it out of the table, or keep it")


def _check_names(store: Store, names: list[str]) -> None:
    check_case_collisions([*names, *RESERVED_LABELS, *store.layouts])
    dims = {dim for layout in store.layouts.values() for dim in layout.variable.dims if dim != "entity"}
    for name in names:
        if name in store.layouts or name in dims:
            raise InputError(f"label column {name!r} has the name of an array or dim of {store.path}: rename it")


def _sweep(store: Store) -> None:
    """Remove columns that are none: of a change that was interrupted before it counted, or dropped by the last one."""
    storage, documents = store.storage, store.arrays()
    for name in storage.list(""):
        if name in documents or name == PRIVATE or not storage.is_folder(name):
            continue
        files = storage.list(name)
        raw = storage.get(f"{name}/zarr.json")
        try:
            document = json.loads(raw) if raw is not None else {"dimension_names": ["entity"]}
            ours = isinstance(document, dict) and document.get("dimension_names") == ["entity"]
        except ValueError:
            ours = False
        if files and ours and all(_LABEL_FILE.fullmatch(file) for file in files):
            storage.delete(f"{name}/{file}" for file in files)
            storage.remove_folder(name)
