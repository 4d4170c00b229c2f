"""Names of rows, by default hashes of their prompts, and the entities that group them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import name_rows, text_values
from stratalens.store.errors import InputError
from stratalens.store.names import check_distinct

_HASH_BYTES = 6  # 12 hexadecimal digits; among a million rows two are equal with probability 0.002, and then renamed
_HASHED = ("prompt", "entity", "entity_id")


def hashed_ids(texts: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Name every row by a hash of its prompt, entity and entity_id, and of its number among equal rows.

    Labels and the order of different rows do not change an id.

    Args:
        texts: object arrays of shape (rows,) by column; `prompt`, and if the table has them `entity` and `entity_id`.

    Returns:
        Object array of shape (rows,): "p" and twelve hexadecimal digits, all different.

    Example:
        >>> hashed_ids({"prompt": np.array(["Who is Ann?", "Who is Bo?", "Who is Ann?"], object)}).tolist()
        ['pd20c59f89b9c', 'p1125e59316c9', 'pe4bb9e25e904']
    """
    rows = len(texts["prompt"])
    columns = [texts[name].tolist() if name in texts else [""] * rows for name in _HASHED]
    counts: dict[bytes, int] = {}
    used: set[str] = set()
    ids = np.empty(rows, dtype=object)
    for row, values in enumerate(zip(*columns, strict=True)):
        content = "".join(f"{len(text)}:{text}" for text in values).encode()
        key = hashlib.blake2b(content, digest_size=16).digest()  # the contents of long prompts would take their memory
        number = counts.get(key, 0)
        name = _hash(content, number)
        while name in used:
            number += 1
            name = _hash(content, number)
        counts[key] = number + 1
        used.add(name)
        ids[row] = name
    return ids


def _hash(content: bytes, number: int) -> str:
    return "p" + hashlib.blake2b(b"%d\x1f%b" % (number, content), digest_size=_HASH_BYTES).hexdigest()


def numbered_ids(rows: int) -> NDArray[Any]:
    """Name rows by their numbers, as older versions of the package did: r000000, r000001, ..."""
    return np.array([f"r{row:06d}" for row in range(rows)], dtype=object)


def prompt_ids(columns: Mapping[str, pd.Series[Any]], texts: Mapping[str, NDArray[Any]], source: str) -> NDArray[Any]:
    """Return the names of the rows: the column prompt_id, else hashes.

    Args:
        columns: every column of the table by name.
        texts: object arrays of shape (rows,) of the text columns.
        source: name of the table, for messages.

    Returns:
        Object array of shape (rows,).

    Raises:
        InputError: a name is missing, empty or there twice.
    """
    if "prompt_id" not in columns:
        return hashed_ids(texts)
    ids = text_values(columns["prompt_id"], source, required=True)
    blank = np.flatnonzero(ids == "")
    if len(blank):
        raise InputError(f"{source}: prompt_id is empty in {name_rows(blank)}; name them, or drop the column")
    remedy = (
        "prompt ids must be unique: rename them, or drop the column for default names (rows about the same entity "
        "share an entity_id, not a prompt_id)"
    )
    check_distinct(ids.tolist(), "prompt_id", source, place="row", remedy=remedy)
    return ids


def entity_ids(
    columns: Mapping[str, pd.Series[Any]], entities: NDArray[Any] | None, ids: NDArray[Any], source: str
) -> NDArray[Any]:
    """Return the groups of the rows: the column entity_id, else the entity, else the row itself.

    Args:
        columns: every column of the table by name.
        entities: object array of shape (rows,), text of the entities, '' for none; None without the column.
        ids: object array of shape (rows,), names of the rows.
        source: name of the table, for messages.

    Returns:
        Object array of shape (rows,).

    Raises:
        InputError: some rows have a group and others do not.
    """
    if "entity_id" in columns:
        entity_ids = text_values(columns["entity_id"], source, required=True)
        blank = np.flatnonzero(entity_ids == "")
        if len(blank):
            raise InputError(
                f"{source}: entity_id is empty in {name_rows(blank)}; all rows without an entity_id would count as "
                "one entity. Name each, or drop the column"
            )
        return entity_ids
    if entities is None:
        return ids.copy()
    blank = np.flatnonzero(entities == "")
    if len(blank) == len(ids):
        return ids.copy()
    if len(blank):
        raise InputError(
            f"{source}: {name_rows(blank)} {'has' if len(blank) == 1 else 'have'} no entity and others do: without a "
            "name, rows about the same entity would count as different entities and could be on both sides of a split. "
            "Give every row its entity, or add a column entity_id that says which rows belong together (the entity "
            "may then be missing)"
        )
    return entities.copy()
