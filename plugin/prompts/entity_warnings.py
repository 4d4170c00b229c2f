"""Warnings about prompt tables whose rows may be about the same entity without saying so."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import name_rows
from stratalens.plugin.prompts.table import PromptTable

_REMEDY = "stratalens.relabel(store, table) adds it to a recorded store."
_LIKE_ENTITY = ("entity", "entity_id", "entities", "entity_name", "subject", "subject_id")


def entity_warning(table: PromptTable) -> str | None:
    """Return a warning where prompts about one entity may count as several entities; None without one.

    Splits of the analyses keep the rows of an entity on one side. So rows with the same prompt or the same entity
    that have different entity ids let the analyses see their test rows in training.
    """
    labels = table.labels()
    if not table.names_entities:
        return (
            f"{table.source} has neither a column entity nor entity_id, so every prompt counts as its own entity and "
            f"prompts about the same entity can be on both sides of a split.{_repeated_prompts(labels)}"
            f"{_similar_column(table.label_names)} If some prompts share an entity, add a column entity_id; {_REMEDY}"
        )
    ids = labels["entity_id"]
    for name, what in (("entity_text", "entity"), ("prompt", "prompt")):
        rows = _rows_with_several_ids(labels[name], ids) if name in labels else np.empty(0, dtype=np.int64)
        if name == "entity_text" and len(set(ids.tolist())) < len(ids):
            continue  # the table groups rows, so equal names may be of different entities
        if len(rows):
            first, second = ids[rows[:2]]
            return (
                f"{table.source}: {name_rows(rows)} have the same {what} {_shorten(labels[name][rows[0]])} and "
                f"different values of entity_id ({first!r}, {second!r}), so they can be on both sides of a split. "
                f"Give rows about the same entity one entity_id; {_REMEDY}"
            )
    return None


def _rows_with_several_ids(texts: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows of the first text that has more than one entity id, one row for each id; '' is no text."""
    first_rows: dict[str, dict[str, int]] = {}
    for row, (text, entity_id) in enumerate(zip(texts.tolist(), ids.tolist(), strict=True)):
        if text:
            first_rows.setdefault(text, {}).setdefault(entity_id, row)
    several = next((rows for rows in first_rows.values() if len(rows) > 1), {})
    return np.array(list(several.values()), dtype=np.int64)


def _repeated_prompts(labels: dict[str, NDArray[Any]]) -> str:
    rows = _rows_with_several_ids(labels["prompt"], labels["entity_id"])
    return f" {name_rows(rows).capitalize()} have the same prompt." if len(rows) else ""


def _similar_column(names: Sequence[str]) -> str:
    similar = [name for name in names if get_close_matches(name.casefold(), _LIKE_ENTITY, n=1, cutoff=0.85)]
    return f" Does the label column {similar[0]!r} name the entities? Then call it entity_id." if similar else ""


def _shorten(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
