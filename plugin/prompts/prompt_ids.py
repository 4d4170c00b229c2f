"""Default prompt ids: hashes of the rows, which differ between tables of different prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
