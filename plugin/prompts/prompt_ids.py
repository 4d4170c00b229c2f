"""Default prompt ids: hashes of the rows, which differ between tables of different prompts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import LabelWarning

if TYPE_CHECKING:
    from stratalens.plugin.prompts.table import PromptTable
    from stratalens.store.state.manifest import Store

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
        number = counts.get(content, 0)
        name = _hash(content, number)
        while name in used:
            number += 1
            name = _hash(content, number)
        counts[content] = number + 1
        used.add(name)
        ids[row] = name
    return ids


def _hash(content: bytes, number: int) -> str:
    return "p" + hashlib.blake2b(b"%d\x1f%b" % (number, content), digest_size=_HASH_BYTES).hexdigest()


def numbered_ids(rows: int) -> NDArray[Any]:
    """Name rows by their numbers, as older versions of the package did: r000000, r000001, ..."""
    return np.array([f"r{row:06d}" for row in range(rows)], dtype=object)


def with_ids_of_store(table: PromptTable, store: Store | None, *, stacklevel: int = 2) -> PromptTable:
    """Return the table with the default ids of a store that exists.

    An older version of the package named the rows of a table without `prompt_id` by their numbers. A store of that
    version keeps its ids, so the table gets them too, with one warning for each table.

    Args:
        table: the prompts.
        store: the store; None where there is none yet.
        stacklevel: frames between this function and the caller that the warning names.
    """
    from stratalens.store.writing.label_columns import read_labels

    if store is None or not table.has_default_ids:
        return table
    recorded = read_labels(store, ["entity"])["entity"]
    if not np.array_equal(recorded, numbered_ids(len(recorded))):
        return table
    if not table.warned_about_ids:
        table.warned_about_ids = True
        warnings.warn(
            f"{store.path} names its rows r000000, r000001, ..., as an older version of stratalens did for tables "
            "without prompt_id. The rows of this table get the same names, by their order. A column prompt_id with "
            "these names avoids this warning.",
            LabelWarning,
            stacklevel=stacklevel,
        )
    return table.with_numbered_ids()
