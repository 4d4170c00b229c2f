"""The label columns of a store: checks, files, comparison with a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratalens.store.errors import DamagedError, InputError, MismatchError, suggest
from stratalens.store.format import label_codec as labels
from stratalens.store.format.schema import AXES, RESERVED_LABELS, check_name
from stratalens.store.names import check_distinct
from stratalens.store.state.manifest import Store
from stratalens.store.state.provenance import mismatch

Columns = Mapping[str, NDArray[Any]]

PROMPT_COLUMNS = ("prompt", "entity_text", "answer")  # other values in these would give other activations

_EXCERPT = 100  # characters of a text that an error shows


def check_columns(entities: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """Check label columns and return them as they are written.

    Args:
        entities: label columns by name, one value for each row.

    Returns:
        Arrays of shape (rows,) by name: objects of str, numbers or booleans. `entity` is always str.

    Raises:
        InputError: a column is missing, has a reserved name or the wrong length, or prompt ids are not unique.
    """
    for needed in ("entity", "entity_id"):
        if needed not in entities:
            raise InputError(f"entities has no {needed!r}: {suggest(needed, entities)}")
    columns = {}
    for name, values in entities.items():
        check_name(name, "label column")
        if name in RESERVED_LABELS or (name in AXES and name != "entity"):
            raise InputError(
                f"label column {name!r} has the name of a dim or coordinate of the store: rename it "
                f"(reserved: {', '.join(RESERVED_LABELS)})"
            )
        columns[name] = labels.normalise(name, values)
    rows = len(columns["entity"])
    if rows == 0:
        raise InputError("the table has no rows: a store needs at least one prompt")
    for name, column in columns.items():
        if len(column) != rows:
            raise InputError(f"label column {name!r} has {len(column)} values, 'entity' has {rows}: give one for each")
    if columns["entity"].dtype != object:
        columns["entity"] = np.array([str(v) for v in columns["entity"]], dtype=object)
    check_prompt_ids(columns["entity"])
    return columns


def check_prompt_ids(ids: NDArray[Any]) -> None:
    """Raise InputError if a prompt id is in two rows."""
    remedy = "prompt ids must be unique: one row of the table for each prompt"
    check_distinct(ids.tolist(), "prompt id", place="row", remedy=remedy, blanks=False)


def check_case_collisions(names: Sequence[str]) -> None:
    """Raise if two names are one folder on some file systems.

    Such names differ only in case, or in the encoding of letters such as 'é'.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normalize("NFC", name).casefold(), name)
        if other != name:
            raise InputError(
                f"{other!r} and {name!r} ({other!a} and {name!a}) would be one folder on a file system that "
                "ignores case or spelling, as those of macOS and Windows do: rename one of them"
            )


def write_labels(store: Store, columns: Columns, *, only_damaged: bool = False) -> None:
    """Write the chunk files of label columns.

    With `only_damaged`, write only those that differ from their checksum.
    """
    files = []
    store.storage.make_folders(columns)
    for name, column in columns.items():
        for number, data in enumerate(labels.encode_chunks(column, store.label_chunk)):
            key = store.label_key(name, number)
            if not (only_damaged and _is_intact(store, key, labels.data_type(column))):
                files.append((key, (data,)))
    if files:
        store.storage.put_many(files)


def _is_intact(store: Store, key: str, data_type: str) -> bool:
    try:
        labels.decode_chunk(store.storage.get(key), data_type, key, store.label_chunk)
    except DamagedError:
        return False
    return True


def read_labels(store: Store, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read label columns, each of shape (entity,).

    Args:
        store: the store.
        names: columns to read; None for all.

    Raises:
        DamagedError: a label file is missing or differs from its checksum.
    """
    columns = {}
    for name in store.label_types if names is None else names:
        chunks = []
        for number in range(-(-store.entities // store.label_chunk)):
            key = store.label_key(name, number)
            where = f"label column {name!r} ({store.storage.path(key)})"
            raw = store.storage.get(key)
            chunks.append(labels.decode_chunk(raw, store.label_types[name], where, store.label_chunk))
        columns[name] = np.concatenate(chunks)[: store.entities]
    return columns


def differing_rows(stored: NDArray[Any], new: NDArray[Any]) -> NDArray[np.intp]:
    """Return the rows in which two columns differ; NaN equals NaN."""
    if stored.dtype != new.dtype:
        stored, new = (np.array([str(v) for v in column.tolist()], dtype=object) for column in (stored, new))
    differs = stored != new
    if stored.dtype.kind == "f":
        differs &= ~(np.isnan(stored) & np.isnan(new))
    return np.flatnonzero(differs)


def labels_mismatch(store: Store, columns: Columns) -> MismatchError:
    """Return the error for a table with other rows or labels than the store."""
    stored = read_labels(store, [name for name in columns if name in store.label_types])
    if error := prompts_mismatch(store, stored, columns):
        return error
    stored_ids, table_ids = stored["entity"], columns["entity"]
    if (rows := differing_rows(stored_ids, table_ids)).size:
        row = int(rows[0])
        return MismatchError(
            f"the rows are in another order: row {row} is {stored_ids[row]!r} in {store.path} and {table_ids[row]!r} "
            "in the table. To fix it: sort the table by the order of the store (`open_store(...).entity`)."
        )
    differences = []
    if absent := [name for name in store.label_types if name not in columns]:
        differences.append(f"the table has no column {_quote_names(absent)}, the store does")
    if new := [name for name in columns if name not in store.label_types]:
        differences.append(f"the table has a column {_quote_names(new)}, the store does not")
    for name, column in stored.items():
        if _differs(column, columns[name]):
            differences.append(_describe_difference(name, column, columns[name], table_ids))
    drop = f", drop={absent!r}" if absent else ""
    flags = "".join(f" --drop {name}" for name in absent)
    return MismatchError(
        f"label columns differ from those of {store.path}: {'; '.join(differences) or 'in their bytes'}. To fix it: "
        "use the labels that were recorded. If the labels of the table are right, write them into the store first, "
        f"which leaves every activation unchanged: stratalens.relabel({store.path!r}, table{drop}), or on the command "
        f"line `stratalens label {store.path} TABLE{flags}`."
    )


def prompts_mismatch(store: Store, stored: Columns, columns: Columns) -> MismatchError | None:
    """Return the error for a table with other prompts than the store.

    The result is None if the prompts are equal, in any order.
    """
    stored_ids, table_ids = stored["entity"], columns["entity"]
    row_of = {name: row for row, name in enumerate(table_ids.tolist())}
    known = set(stored_ids.tolist())
    absent = [name for name in stored_ids.tolist() if name not in row_of]
    new = [name for name in row_of if name not in known]
    if absent or new:
        details = [f"the table has no {_quote_names(absent)}"] if absent else []
        details += [f"{_quote_names(new)} {'is' if len(new) == 1 else 'are'} new"] if new else []
        remedy = "give the same prompts; more prompts make another store, and open_store([a, b]) joins the two"
        where = f" ({'; '.join(details)})"
        if len(stored_ids) == len(table_ids):
            return mismatch(store, "prompt ids", absent[0], new[0], remedy, where)
        return mismatch(store, "number of prompts", len(stored_ids), len(table_ids), remedy, where)
    order = np.array([row_of[name] for name in stored_ids.tolist()], dtype=np.intp)
    for name in PROMPT_COLUMNS:
        if name in stored and name in columns and _differs(stored[name], columns[name][order]):
            difference = _describe_difference(name, stored[name], columns[name][order], stored_ids)
            return MismatchError(
                f"the prompts are not those that were run: {difference}. To fix it: give the same prompts, or record "
                f"these into another store ({store.path} has the activations of the recorded prompts)."
            )
    return None


def _differs(stored: NDArray[Any], new: NDArray[Any]) -> bool:
    return labels.data_type(stored) != labels.data_type(new) or differing_rows(stored, new).size > 0


def _describe_difference(name: str, stored: NDArray[Any], new: NDArray[Any], ids: NDArray[Any]) -> str:
    """Name the first row in which two versions of a column differ, with both values."""
    rows = differing_rows(stored, new)
    if not rows.size:
        return f"{name!r} is of type {labels.data_type(stored)} in the store, {labels.data_type(new)} in the table"
    row = int(rows[0])
    old_text, new_text = _excerpts(stored[[row]].tolist()[0], new[[row]].tolist()[0])
    more = {1: "", 2: " (and one more row)"}.get(rows.size, f" (and {rows.size - 1} more rows)")
    return f"{name!r} of {str(ids[row])!r} (row {row}) is {old_text} in the store, {new_text} in the table{more}"


def _excerpts(stored: Any, new: Any) -> tuple[str, str]:
    """Return both values for a message; show where long texts differ."""
    if not (isinstance(stored, str) and isinstance(new, str)) or max(len(stored), len(new)) <= _EXCERPT:
        return repr(stored), repr(new)
    pairs = enumerate(zip(stored, new, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(stored), len(new)))
    start = max(0, first - _EXCERPT // 2)
    return _cut(stored, start), _cut(new, start)


def _cut(text: str, start: int) -> str:
    before = "..." if start else ""
    after = "..." if start + _EXCERPT < len(text) else ""
    return repr(f"{before}{text[start : start + _EXCERPT]}{after}")


def _quote_names(names: Sequence[Any], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(str(name)) for name in names[:limit]) + more
