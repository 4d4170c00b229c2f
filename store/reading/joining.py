"""Stores joined along entity: which belong together, and the prompt ids of the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import InputError, MismatchError, join_names, suggest
from stratalens.store.reading.indexing import Selection
from stratalens.store.reading.lazy_arrays import LazyArray
from stratalens.store.state.manifest import StageEntry, Store
from stratalens.store.state.provenance import check_provenance, mismatch

Ids = Literal["keep", "prefix"]

_SEPARATE = "open the stores separately; they do not belong together"


class PrefixedLabels(LazyArray):
    """A label column with a prefix before every value."""

    def __init__(self, labels: LazyArray, prefix: str) -> None:
        self.labels, self.prefix = labels, prefix
        self.shape, self.dtype = labels.shape, np.dtype(object)

    def select(self, selections: Sequence[Selection]) -> NDArray[Any]:
        """Return the labels of some rows."""
        values = self.labels.select(selections)
        return np.array([f"{self.prefix}{value}" for value in values.tolist()], dtype=object).reshape(values.shape)


def check_ids(ids: str) -> None:
    """Raise InputError unless `ids` is a valid argument of `open_store`."""
    if ids not in ("keep", "prefix"):
        raise InputError(f"ids is {ids!r}: {suggest(str(ids), ('keep', 'prefix'))}")


def store_prefixes(paths: Sequence[str]) -> list[str]:
    """Return a different prefix for each store: the name of its folder, with a number where two are equal.

    Example:
        >>> store_prefixes(["runs/a.zarr", "s3://bucket/b.zarr/", "old/a.zarr"])
        ['a/', 'b/', 'a-2/']
    """
    names = [PurePosixPath(path.rstrip("/") or path).name.removesuffix(".zarr") or "store" for path in paths]
    prefixes: list[str] = []
    for name in names:
        numbered, number = name, 1
        while f"{numbered}/" in prefixes or (number > 1 and numbered in names):
            number += 1
            numbered = f"{name}-{number}"
        prefixes.append(f"{numbered}/")
    return prefixes


def prefixed_columns(columns: Mapping[str, LazyArray], prefix: str) -> dict[str, LazyArray]:
    """Put a prefix before the prompt ids of one store.

    `entity_id` stays, so that rows about the same entity in two stores stay one entity. It gets the prefix too if it
    only repeats row numbers (r000000, r000001, ...), which mean other prompts in another store.

    Args:
        columns: label columns of the store.
        prefix: text before the ids, from `store_prefixes`.
    """
    changed = dict(columns)
    changed["entity"] = PrefixedLabels(columns["entity"], prefix)
    if "entity_id" in columns and columns["entity_id"].dtype == object and _numbers_rows(columns):
        changed["entity_id"] = PrefixedLabels(columns["entity_id"], prefix)
    return changed


def _numbers_rows(columns: Mapping[str, LazyArray]) -> bool:
    first = slice(0, 1)
    ids, entities = (columns[name].select([first]).tolist() for name in ("entity", "entity_id"))
    if ids != entities or ids != ["r000000"]:
        return False
    rows = columns["entity"].shape[0]
    numbers = [f"r{row:06d}" for row in range(rows)]
    return bool(columns["entity_id"].select([slice(None)]).tolist() == numbers)


def check_joinable(stores: Sequence[Store]) -> None:
    """Raise unless the stores belong together.

    They need equal layers, positions, label columns, variables, stages and provenance.

    Raises:
        MismatchError: names the first difference, with the values of both stores.
    """
    first = stores[0]
    for other in stores[1:]:
        where = f" in {other.path}"
        compared = {
            "layers": (list(first.layers), list(other.layers)),
            "positions": (list(first.tokens), list(other.tokens)),
        }
        for field, (expected, actual) in compared.items():
            if expected != actual:
                raise mismatch(first, field, expected, actual, _SEPARATE, where)
        for field, difference, remedy in (
            ("label columns", _differing_labels(first, other), "give both tables the same columns; " + _RELABEL),
            ("variables", _differing_variables(first, other), f"record the same sites; or {_SEPARATE}"),
            ("stages", _differing_stages(first, other), f"record the same stages in both; or {_SEPARATE}"),
        ):
            if difference:
                raise MismatchError(f"{field} differs{where}: {difference}. To fix it: {remedy}.")
        check_provenance(first, _without_prompts(first.provenance), _without_prompts(other.provenance), where)


_RELABEL = "stratalens.relabel adds and drops columns of a recorded store"


def _differing_labels(first: Store, other: Store) -> str:
    return _differing_keys(first, other, first.label_types, other.label_types) or "; ".join(
        f"{name} is {data_type} in {first.path}, {other.label_types[name]} in {other.path}"
        for name, data_type in first.label_types.items()
        if other.label_types[name] != data_type
    )


def _differing_variables(first: Store, other: Store) -> str:
    ours, theirs = _variables(first), _variables(other)
    if names := _differing_keys(first, other, ours, theirs):
        return names
    for name, variable in ours.items():
        for field, value in variable.items():
            if theirs[name].get(field) != value:
                return f"{field} of {name} is {value} in {first.path}, {theirs[name].get(field)} in {other.path}"
    return "" if ours == theirs else "their descriptions"


def _differing_stages(first: Store, other: Store) -> str:
    ours, theirs = ({stage.name: stage for stage in store.stages} for store in (first, other))
    if names := _differing_keys(first, other, ours, theirs):
        return names
    for name, stage in ours.items():
        if stage != theirs[name]:
            return _differing_stage(stage, theirs[name], first.path, other.path)
    return ""


def _differing_stage(stage: StageEntry, other: StageEntry, path: str, other_path: str) -> str:
    name = f"stage {stage.name!r}"
    if stage.fingerprint != other.fingerprint:
        return (
            f"{name} has other weights (fingerprint {stage.fingerprint} in {path}, {other.fingerprint} in {other_path})"
        )
    if stage.order != other.order:
        return f"{name} has order {stage.order} in {path}, {other.order} in {other_path}"
    return f"{name} has provenance {dict(stage.provenance)} in {path}, {dict(other.provenance)} in {other_path}"


def _differing_keys(first: Store, other: Store, ours: Iterable[str], theirs: Iterable[str]) -> str:
    """Name what only one of two stores has; "" where both have the same names."""
    our_names, their_names = list(ours), list(theirs)
    absent = [name for name in our_names if name not in their_names]
    new = [name for name in their_names if name not in our_names]
    parts = [f"only {first.path} has {join_names(absent)}"] if absent else []
    parts += [f"only {other.path} has {join_names(new)}"] if new else []
    return "; ".join(parts)


def _variables(store: Store) -> dict[str, dict[str, Any]]:
    return {name: store.layouts[name].variable.to_json() for name in sorted(store.layouts)}


def _without_prompts(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance without the digest of the prompts."""
    return {k: v for k, v in provenance.items() if k != "token_ids_digest"}


def check_unique_ids(columns: Sequence[LazyArray], paths: Sequence[str]) -> None:
    """Raise if two stores have the same prompt id.

    Args:
        columns: the column `entity` of each store.
        paths: path of each store.

    Raises:
        MismatchError: names the first repeated id and both stores.
    """
    if len(columns) < 2:
        return
    seen: dict[str, int] = {}
    for number, column in enumerate(columns):
        for name in column.select([slice(None)]).tolist():
            if name in seen:
                raise MismatchError(
                    f"prompt id {name!r} is in more than one of the stores ({paths[seen[name]]} and {paths[number]}). "
                    "To fix it: pass ids='prefix', which puts the name of its store before every id; or join stores of "
                    "different prompts."
                )
            seen[name] = number
