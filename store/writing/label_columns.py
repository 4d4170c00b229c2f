"""The label columns of a store that is there: read whole, written, and held against those of a table.

How one chunk file is made is in `labels`; changing the labels of a store is in `relabelling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratalens.store.errors import DamagedError, InputError, MismatchError, suggest
from stratalens.store.format import label_codec as labels
from stratalens.store.format.schema import AXES, RESERVED_LABELS, check_name
from stratalens.store.state.manifest import Store
from stratalens.store.state.provenance import mismatch


def checked_columns(entities: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """Label columns as they are written; raises `InputError` for those that no store can have."""
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
    seen: dict[str, int] = {}
    for row, text in enumerate(columns["entity"]):
        if text in seen:
            raise InputError(f"prompt id {text!r} stands in rows {seen[text]} and {row}: prompt ids must be unique")
        seen[text] = row
    return columns


def check_case_collisions(names: Sequence[str]) -> None:
    """Names become folders, and some file systems take 'Split' and 'split', or two spellings of 'é', for one."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normalize("NFC", name).casefold(), name)
        if other != name:
            raise InputError(
                f"{other!r} and {name!r} ({other!a} and {name!a}) would be one folder on a file system that "
                "ignores case or spelling, as those of macOS and Windows do: rename one of them"
            )


Columns = Mapping[str, NDArray[Any]]


#: Columns of what was run: with another value there the activations would be others.
RUN = ("prompt", "entity_text", "answer")


_WIDTH = 100


def write_labels(store: Store, columns: Columns, *, only_damaged: bool = False) -> None:
    """Write the chunk files of the label columns; with `only_damaged`, those that fail their checksum."""
    files = []
    store.storage.make_folders(columns)
    for name, column in columns.items():
        for number, data in enumerate(labels.encode_chunks(column, store.label_chunk)):
            key = store.label_key(name, number)
            if only_damaged:
                try:
                    labels.decode_chunk(store.storage.get(key), labels.data_type(column), key)
                except DamagedError:
                    files.append((key, (data,)))
            else:
                files.append((key, (data,)))
    if files:
        store.storage.put_many(files)


def read_labels(store: Store, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Label columns as they were written, each of shape (entity,); raises `DamagedError` where one is damaged."""
    found = {}
    for name in store.label_types if names is None else names:
        parts = []
        for number in range(-(-store.entities // store.label_chunk)):
            key = store.label_key(name, number)
            where = f"label column {name!r} ({store.storage.path(key)})"
            parts.append(labels.decode_chunk(store.storage.get(key), store.label_types[name], where))
        found[name] = np.concatenate(parts)[: store.entities]
    return found


def differing(held: NDArray[Any], given: NDArray[Any]) -> NDArray[np.intp]:
    """Rows in which two columns of one length hold different values; NaN is like NaN."""
    if held.dtype != given.dtype:
        held, given = (np.array([str(v) for v in column.tolist()], dtype=object) for column in (held, given))
    unlike = held != given
    if held.dtype.kind == "f":
        unlike &= ~(np.isnan(held) & np.isnan(given))
    return np.flatnonzero(unlike)


def other_labels(store: Store, columns: Columns) -> MismatchError:
    """The error for a table whose rows or labels are not those of the store: the first difference, and its mend."""
    held = read_labels(store, [name for name in columns if name in store.label_types])
    if error := other_prompts(store, held, columns):
        return error
    there, here = held["entity"], columns["entity"]
    if rows := differing(there, here).tolist():
        row = rows[0]
        return MismatchError(
            f"the rows are in another order: row {row} is {there[row]!r} in {store.path} and {here[row]!r} in the "
            "table given. To mend it: sort the table as the store has it (`open_store(...).entity`)."
        )
    said = []
    if lacking := [name for name in store.label_types if name not in columns]:
        said.append(f"the table given lacks {_names(lacking)}, which the store has")
    if new := [name for name in columns if name not in store.label_types]:
        said.append(f"the table given has {_names(new)}, which the store has not")
    said += [_difference(name, held[name], columns[name], here) for name in held if _unlike(held[name], columns[name])]
    drop = f", drop={lacking!r}" if lacking else ""
    flags = "".join(f" --drop {name}" for name in lacking)
    return MismatchError(
        f"label columns differ from those of {store.path}: {'; '.join(said) or 'their bytes do'}. To mend it: give the "
        "labels as they were recorded; or, if those of the table are right, write them into the store first, which "
        f"leaves every activation as it is: stratalens.relabel({store.path!r}, table{drop}), or on the command line "
        f"`stratalens label {store.path} TABLE{flags}`."
    )


def other_prompts(store: Store, held: Columns, columns: Columns) -> MismatchError | None:
    """The error for a table of other prompts than those that were run; None where they are the same, in any order."""
    there, here = held["entity"], columns["entity"]
    place = {name: row for row, name in enumerate(here.tolist())}
    known = set(there.tolist())
    lacking = [name for name in there.tolist() if name not in place]
    new = [name for name in place if name not in known]
    if lacking or new:
        said = [f"the table lacks {_names(lacking)}"] if lacking else []
        said += [f"{_names(new)} {'is' if len(new) == 1 else 'are'} new"] if new else []
        what, first, second = "number of prompts", len(there), len(here)
        if first == second:
            what, first, second = "prompt ids", lacking[0], new[0]
        mend = "give the same prompts; more prompts make another store, and open_store([a, b]) joins the two"
        return mismatch(store, what, first, second, mend, f" ({'; '.join(said)})")
    order = np.array([place[name] for name in there.tolist()], dtype=np.intp)
    for name in (n for n in RUN if n in held and n in columns):
        given = columns[name][order]
        if _unlike(held[name], given):
            return MismatchError(
                f"the prompts are not those that were run: {_difference(name, held[name], given, there)}. To mend it: "
                f"give the same prompts, or record these to another store ({store.path} holds the activations of the "
                "others)."
            )
    return None


def _unlike(held: NDArray[Any], given: NDArray[Any]) -> bool:
    return labels.data_type(held) != labels.data_type(given) or differing(held, given).size > 0


def _difference(name: str, held: NDArray[Any], given: NDArray[Any], ids: Sequence[Any] | NDArray[Any]) -> str:
    rows = differing(held, given)
    if not rows.size:
        return f"{name!r} is of type {labels.data_type(held)} in the store, {labels.data_type(given)} in the table"
    row = int(rows[0])
    there, here = _excerpts(held[[row]].tolist()[0], given[[row]].tolist()[0])
    more = f" (and {rows.size - 1} more rows)" if rows.size > 2 else " (and one more row)" if rows.size == 2 else ""
    return f"{name!r} of {str(ids[row])!r} (row {row}) is {there} in the store, {here} in the table{more}"


def _excerpts(held: Any, given: Any) -> tuple[str, str]:
    """Both values, cut to where they begin to differ."""
    if not (isinstance(held, str) and isinstance(given, str)) or max(len(held), len(given)) <= _WIDTH:
        return repr(held), repr(given)
    first = next((i for i, (a, b) in enumerate(zip(held, given, strict=False)) if a != b), min(len(held), len(given)))
    start = max(0, first - _WIDTH // 2)
    cut = [f"{'...' if start else ''}{v[start : start + _WIDTH]}{'...' if start + _WIDTH < len(v) else ''}"
           for v in (held, given)]  # fmt: skip
    return repr(cut[0]), repr(cut[1])


def _names(names: Sequence[Any], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(str(name)) for name in names[:limit]) + more
