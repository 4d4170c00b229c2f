"""create: make a store, open one that fits, or add variables to it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata as packages
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stratalens.store.errors import DamagedError, InputError, StoreExistsError, join_names
from stratalens.store.format import label_codec as labels
from stratalens.store.format import metadata
from stratalens.store.format.int8 import with_scale_arrays
from stratalens.store.format.layout import MEMORY_LIMIT, choose_geometry
from stratalens.store.format.schema import (
    AXES,
    RESERVED_LABELS,
    Variable,
    check_name,
    recorded_variable,
    with_recorded_flag,
)
from stratalens.store.state.history import append_history
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.provenance import check_axes, check_provenance, new_variables
from stratalens.store.state.publish import add_group, commit_root, sync_names
from stratalens.store.state.store_files import no_private_folder_error
from stratalens.store.storage.base import PRIVATE, TEMPORARY, Storage
from stratalens.store.storage.resolve import check_writable, storage_at
from stratalens.store.writing.label_columns import (
    Columns,
    check_case_collisions,
    check_columns,
    labels_mismatch,
    write_labels,
)
from stratalens.store.writing.label_reconciliation import check_orders, warn_about_orders, with_stored_types


def create(
    path: str | os.PathLike[str],
    *,
    entities: Mapping[str, ArrayLike],
    layers: Sequence[int],
    tokens: Sequence[str] | Sequence[int],
    variables: Sequence[Variable],
    provenance: Mapping[str, Any] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
    exist_ok: bool = True,
    recorded_with: Mapping[str, Any] | None = None,
    compression: str = "none",
    label_orders: Mapping[str, Sequence[str]] | None = None,
    storage: Storage | None = None,
) -> Store:
    """Make a store at `path`, or open the store there if it fits the arguments.

    Args:
        path: folder of the store; missing parents are created.
        entities: label columns, one value for each row: `entity` (unique prompt ids), `entity_id`, and any others.
        layers: recorded block indices; may be empty.
        tokens: names of the recorded positions, or right-aligned offsets `-n .. -1`.
        variables: recorded variables, without the `recorded` flags.
        provenance: facts about the store, as JSON; a store with other facts raises MismatchError.
        memory_limit: bytes that the two block buffers of a writer may use together.
        block_size: rows of a block; None chooses it.
        exist_ok: False raises if there is a store already.
        recorded_with: facts in addition to the library versions; recorded, never compared.
        compression: "none", or "zstd" (level 1) for the sites. Statistics are never compressed.
        label_orders: categories of each ordered label column, in order. An existing store keeps its own.
        storage: backend to use instead of the one for `path`.

    Returns:
        The store. Variables that an existing store does not have are added to it.

    Raises:
        InputError: an argument is wrong; nothing was written.
        MismatchError: the store at `path` has other rows, labels, variables or provenance; nothing was written.
        StoreExistsError: `path` is something else, or a store and `exist_ok` is False; nothing was written.
    """
    storage = storage or storage_at(path)
    check_writable(storage)
    columns = check_columns(entities)
    facts = metadata.plain(provenance or {}, "provenance")
    positions = _check_tokens(tokens)
    layer_list = [int(n) for n in layers]
    if len(set(layer_list)) != len(layer_list):
        raise InputError(f"layers must be different ones, got {layer_list}")
    grouped = _group_variables(_with_storage(variables, compression, layer_list), 0, list(columns))
    geometry = choose_geometry(
        grouped,
        entities=len(columns["entity"]),
        layers=len(layer_list),
        tokens=len(positions),
        full_sequence=isinstance(positions[0], int),
        memory_limit=memory_limit,
        block_size=block_size,
    )
    store = Store(
        storage=storage,
        block_size=geometry.block_size,
        entities=geometry.entities,
        layers=tuple(layer_list),
        tokens=positions,
        groups=(tuple(grouped),),
        label_types={name: labels.data_type(column) for name, column in columns.items()},
        label_digest=labels.digest(columns),
        provenance=facts,
        recorded_with={**_library_versions(), **(recorded_with or {})},
        label_orders=check_orders(label_orders or {}, columns),
    )
    if storage.kind() == "file":
        raise StoreExistsError(f"{storage.root} is a file, a store is a folder: choose another path")
    _refuse_foreign(storage)
    storage.make_folders([TEMPORARY, f"{PRIVATE}/commits", f"{PRIVATE}/claims"])
    with storage.structure_lock():
        if storage.get(metadata.ROOT) is not None:
            if not exist_ok:
                raise StoreExistsError(f"{storage.root} holds a store already: choose another path, or resume it")
            sync_names(storage)
            return _extend(load(storage), store, columns)
        if storage.list(f"{PRIVATE}/commits"):
            raise DamagedError(
                f"{storage.root} holds recorded data but its zarr.json is gone: `stratalens verify --repair` puts back "
                "the copy that the store keeps"
            )
        _clear_interrupted(storage)
        sync_names(storage)
        write_labels(store, columns)
        append_history(storage, "created")  # before the root, so that a store without a history has lost it
        store = commit_root(store)
        return store


def _check_tokens(tokens: Sequence[str] | Sequence[int]) -> tuple[str, ...] | tuple[int, ...]:
    positions: list[Any] = list(tokens)
    if not positions or len(set(positions)) != len(positions):
        raise InputError(f"positions must be one or more different ones, got {positions}")
    if all(isinstance(t, str) for t in positions):
        return tuple(str(t) for t in positions)
    if all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in positions):
        return tuple(int(t) for t in positions)
    raise InputError(f"positions must be all names or all offsets, got {positions}")


def _with_storage(variables: Sequence[Variable], compression: str, layers: Sequence[int]) -> list[Variable]:
    """Return variables with compression, and the arrays of scales and errors."""
    if not variables:
        raise InputError("nothing to record: give at least one variable")
    if compression != "none":
        variables = [replace(v, compression=compression) if v.attrs.get("kind") == "site" else v for v in variables]
    for variable in variables:
        if variable.has("layer") and not layers:
            raise InputError(f"{variable.name} has a layer dim but no layers are given: name the layers to record")
    return with_scale_arrays(variables)


def _group_variables(variables: Sequence[Variable], group: int, array_names: Sequence[str]) -> list[Variable]:
    """Return the variables of a new group with its flag.

    Raise if names or dims collide.

    Args:
        variables: variables of the group.
        group: number of the group.
        array_names: names of label columns and of variables of other groups.
    """
    for variable in variables:
        for name in (variable.name, *variable.dims):
            check_name(name, "variable")
    names: set[str] = {*array_names, *RESERVED_LABELS, *AXES}
    flag = recorded_variable(group)
    check_case_collisions([*array_names, *RESERVED_LABELS, *(v.name for v in variables), flag.name])
    coords: dict[str, tuple[int, ...]] = {}
    for variable in [*variables, flag]:
        if variable.name in names:
            raise InputError(f"{variable.name!r} is the name of two arrays of the store: rename one of them")
        names.add(variable.name)
        for dim, values in variable.coords.items():
            if coords.setdefault(dim, tuple(values)) != tuple(values):
                raise InputError(f"{variable.name!r} gives dim {dim!r} other coordinate values than another variable")
    if taken := names & set(coords):
        raise InputError(f"{sorted(taken)[0]!r} is both a feature dim and an array of the store: rename one of them")
    sizes: dict[str, tuple[str, int]] = {}
    for variable in variables:
        for dim, size in zip(variable.feature_dims, variable.shape, strict=True):
            other, other_size = sizes.setdefault(dim, (variable.name, size))
            if other_size != size:
                raise InputError(
                    f"{variable.name} has {size} along {dim!r}, {other} has {other_size}: give one of them another dim "
                    "name"
                )
    return [*(with_recorded_flag(v, group) for v in variables), flag]


def _refuse_foreign(storage: Storage) -> None:
    """Raise if the folder has files that stratalens did not write."""
    names = storage.list("")
    if PRIVATE in names or not names:
        return
    if metadata.ROOT in names:
        with suppress(InputError):
            load(storage)
            raise no_private_folder_error(storage)
        raise StoreExistsError(
            f"{storage.root} holds a zarr hierarchy that stratalens did not write: choose another path"
        )
    raise StoreExistsError(
        f"{storage.root} is not empty and holds no store ({join_names(names, 5)}): choose another path"
    )


def _extend(store: Store, expected: Store, columns: Columns) -> Store:
    """Check that a store is as expected, and add the variables it does not have.

    Damaged label files are written again.
    """
    if expected.label_types != dict(store.label_types):
        columns = with_stored_types(store, columns)
    if labels.digest(columns) != store.label_digest:
        raise labels_mismatch(store, columns)
    check_axes(store, layers=expected.layers, tokens=expected.tokens)
    variables = [v for v in expected.groups[0] if v.attrs.get("kind") != "flag"]
    added = new_variables(store, variables)
    check_provenance(store, store.provenance, expected.provenance)
    warn_about_orders(store, expected.label_orders)
    write_labels(store, columns, only_damaged=True)
    if not added:
        return store
    names = [v.name for v in added]
    others = [name for name in store.layouts if name not in names]
    store = add_group(store, _group_variables(added, len(store.groups), [*columns, *others]))
    append_history(store.storage, "variables added", names=names)
    return store


def _clear_interrupted(storage: Storage) -> None:
    """Remove the files of an earlier call that was interrupted before its root."""
    for name in storage.list(""):
        if name == PRIVATE:
            continue
        files = [f"{name}/{n}" for n in storage.list(name)]
        if storage.is_folder(name) and all(f.split("/")[1][:2] in ("c.", "za") for f in files):
            storage.delete(files)
            storage.remove_folder(name)
    storage.delete([metadata.ROOT_COPY])


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("stratalens", "numpy", "zarr", "transformer-lens", "torch", "transformers"):
        try:
            versions[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return versions
