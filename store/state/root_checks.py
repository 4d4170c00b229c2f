"""Checks of the content of a root document, which may come from a stranger: types, names and limits.

A correct checksum proves only that nothing was damaged. Names become folders, and counts become memory, so both are
checked before anything uses them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stratalens.store.errors import quote
from stratalens.store.format.schema import AXES, RESERVED_LABELS, Variable, is_folder_name

MAX_ROWS = 1 << 40
MAX_FILE = 1 << 46  # bytes of one data file before compression
_DIGEST = re.compile(r"[0-9a-f]{1,128}")


def check_root_state(state: Mapping[str, Any]) -> None:
    """Check the attribute `stratalens` of a root document.

    Args:
        state: the attribute.

    Raises:
        ValueError: a field has another type, a name leaves the folder of the store, or a count is beyond all limits.
    """
    entities, block_size = _count(state["entities"], "entities"), _count(state["block_size"], "block_size")
    _require(1 <= block_size <= entities <= MAX_ROWS, "entities", entities)
    layers = _sequence(state["layers"], "layers")
    _require(all(_is_int(n) and abs(n) < MAX_ROWS for n in layers), "layers", layers)
    _require(len(set(layers)) == len(layers), "layers", layers)
    tokens = _sequence(state["tokens"], "tokens")
    names = all(isinstance(t, str) for t in tokens)
    _require(bool(tokens) and (names or all(_is_int(t) and abs(t) < MAX_ROWS for t in tokens)), "tokens", tokens)
    _require(len(set(tokens)) == len(tokens), "tokens", tokens)
    arrays = _check_groups(state["groups"], block_size * max(1, len(layers)) * len(tokens))
    _check_labels(state["labels"], arrays)
    _require(isinstance(state["label_digest"], str) and bool(_DIGEST.fullmatch(state["label_digest"])), "label_digest")
    for field in ("provenance", "recorded_with", "measured", "label_orders"):
        _require(isinstance(state.get(field, {}), dict), field, state.get(field))
    for name, order in state.get("label_orders", {}).items():
        _require(name in state["labels"] and _are_texts(_sequence(order, "label_orders")), "label_orders", name)
    alternate = _sequence(state.get("second_place", []), "second_place")
    _require(all(isinstance(name, str) and name in state["labels"] for name in alternate), "second_place", alternate)
    _check_stages(state["stages"])
    _check_measured(state.get("measured", {}), len(state["stages"]))


def _check_groups(groups: Any, rows: int) -> set[str]:
    """Check the variables; return the names of all arrays that are no label columns."""
    _require(bool(_sequence(groups, "groups")), "groups", groups)
    dims: dict[str, int] = {}
    arrays: set[str] = {"stage", "stage_order", "weights_fingerprint", "layer", "token"}
    for group in groups:
        for document in _sequence(group, "groups"):
            _require(isinstance(document, dict), "groups", document)
            _require(isinstance(document.get("attrs", {}), dict), "attrs", document.get("attrs"))
            shape = _sequence(document["shape"], "shape")
            _require(all(_is_int(n) and 1 <= n <= MAX_FILE for n in shape), "shape", shape)
            for dim, values in document["coords"].items():
                _require(all(_is_int(n) and abs(n) < MAX_ROWS for n in _sequence(values, "coords")), "coords", dim)
            variable = Variable.from_json(document)
            nbytes = math.prod(shape) * rows * variable.storage_dtype.itemsize
            _require(nbytes <= MAX_FILE, f"shape of {variable.name}", shape)
            _require(variable.name not in arrays, "groups", variable.name)
            arrays.add(variable.name)
            sizes = dict(zip(variable.feature_dims, variable.shape, strict=True))
            for dim, values in variable.coords.items():
                _require(sizes.get(dim) == len(values), "coords", dim)
            for dim, size in sizes.items():
                _require(dims.setdefault(dim, size) == size, f"size of {quote(dim)}", size)
    _require(arrays.isdisjoint(dims), "groups", sorted(arrays.intersection(dims)))
    return arrays | set(dims)


def _check_labels(columns: Any, arrays: set[str]) -> None:
    _require(isinstance(columns, dict) and "entity" in columns, "labels", columns)
    for name, dtype in columns.items():
        free = name not in arrays and name not in RESERVED_LABELS and (name not in AXES or name == "entity")
        _require(is_folder_name(name) and free, "labels", name)
        _require(isinstance(dtype, str), f"dtype of {quote(name)}", dtype)
        known = dtype == "string" or (np.dtype(dtype).kind in "biuf" and np.dtype(dtype).name == dtype)
        _require(known, f"dtype of {quote(name)}", dtype)


def _check_stages(stages: Any) -> None:
    names = []
    for stage in _sequence(stages, "stages"):
        _require(isinstance(stage, dict), "stages", stage)
        _require(isinstance(stage["name"], str) and isinstance(stage["fingerprint"], str), "stages", stage)
        _require(_is_int(stage["order"]) and abs(stage["order"]) < 1 << 63, "stage_order", stage["order"])
        _require(isinstance(stage["provenance"], dict), "provenance of a stage", stage["provenance"])
        names.append(stage["name"])
    _require(len(set(names)) == len(names), "stages", names)


def _check_measured(measured: Mapping[str, Any], stages: int) -> None:
    for name, entries in measured.items():
        _require(len(_sequence(entries, "measured")) <= stages, "measured", name)
        for entry in entries:
            numbers = [] if entry is None else _sequence(entry, "measured")
            _require(all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers), "measured", name)
            _require(len(numbers) in (0, 3), "measured", name)


def _count(value: Any, field: str) -> int:
    _require(_is_int(value), field, value)
    return int(value)


def _sequence(value: Any, field: str) -> list[Any]:
    _require(isinstance(value, list), field, value)
    return list(value)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, field: str, value: Any = "") -> None:
    if not condition:
        raise ValueError(f"{field} is {quote(value)}")
