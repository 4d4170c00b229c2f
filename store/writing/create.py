"""Making a store, or finding that it is there and fits; adding sites to one that is."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata as packages
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratalens.store.errors import DamagedError, InputError, StoreExistsError
from stratalens.store.format import label_codec as labels
from stratalens.store.format import metadata
from stratalens.store.format.int8 import with_scale_arrays
from stratalens.store.format.layout import MEMORY_LIMIT, choose_geometry
from stratalens.store.format.schema import AXES, RESERVED_LABELS, Variable, recorded_variable, with_recorded_flag
from stratalens.store.state import provenance
from stratalens.store.state.history import append_history
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.publish import add_group, commit_root
from stratalens.store.storage.base import PRIVATE, TEMPORARY, Storage
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.label_columns import (
    check_case_collisions,
    checked_columns,
    other_labels,
    write_labels,
)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("stratalens", "numpy", "zarr", "transformer-lens", "torch", "transformers"):
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return found


def _tokens(tokens: Sequence[str] | Sequence[int]) -> tuple[str, ...] | tuple[int, ...]:
    found: list[Any] = list(tokens)
    if not found or len(set(found)) != len(found):
        raise InputError(f"positions must be one or more different ones, got {found}")
    if all(isinstance(t, str) for t in found):
        return tuple(str(t) for t in found)
    if all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in found):
        return tuple(int(t) for t in found)
    raise InputError(f"positions must be all names or all offsets, got {found}")


def _grouped(variables: Sequence[Variable], group: int, label_names: Sequence[str]) -> list[Variable]:
    names: set[str] = {*label_names, *RESERVED_LABELS, *AXES}
    flag = recorded_variable(group)
    check_case_collisions([*label_names, *RESERVED_LABELS, *(v.name for v in variables), flag.name])
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
            other, held = sizes.setdefault(dim, (variable.name, size))
            if held != size:
                raise InputError(
                    f"{variable.name} has {size} along {dim!r}, {other} has {held}: give one of them another dim name"
                )
    return [*(with_recorded_flag(v, group) for v in variables), flag]


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
    recorded_with: Mapping[str, str] | None = None,
    compression: str = "none",
    storage: Storage | None = None,
) -> Store:
    """Make a store at `path`, or open the one that is there if it fits what is asked.

    Parameters
    ----------
    path
        Folder of the store; its parent is created.
    entities
        Label columns, one value for each row: ``entity`` (unique prompt ids),
        ``entity_id``, and any others.
    layers
        Block indices that are recorded (may be empty).
    tokens
        Names of the recorded positions, or right-aligned offsets ``-n .. -1``.
    variables
        What is recorded, without the `recorded` flags.
    provenance
        Store-level facts that refuse on mismatch, JSON.
    memory_limit
        Bytes that the two block buffers of a writer may take together.
    block_size
        Rows of a block, if the automatic choice is not wanted.
    exist_ok
        False refuses a store that is there already.
    recorded_with
        Library versions beyond the automatic ones; recorded, never compared.
    compression
        "none", or "zstd" (level 1): how the sites are packed. Statistics stay as they are.

    Returns
    -------
    Store
        Variables that an existing store does not have yet are added to it.

    Raises
    ------
    InputError, MismatchError, StoreExistsError
        Nothing was written.
    """
    storage = storage or storage_at(path)
    columns = checked_columns(entities)
    types = {name: labels.data_type(column) for name, column in columns.items()}
    digest = labels.digest(columns)
    given = metadata.plain(provenance or {}, "provenance")
    axes = ([int(n) for n in layers], _tokens(tokens))
    if len(set(axes[0])) != len(axes[0]):
        raise InputError(f"layers must be different ones, got {axes[0]}")
    if not variables:
        raise InputError("nothing to record: give at least one variable")
    if compression != "none":
        sites = [v.attrs.get("kind") == "site" for v in variables]
        variables = [replace(v, compression=compression) if s else v for v, s in zip(variables, sites, strict=True)]
    variables = with_scale_arrays(variables)
    for variable in variables:
        if variable.has("layer") and not axes[0]:
            raise InputError(f"{variable.name} has a layer dim but no layers are given: name the layers to record")
    grouped = _grouped(variables, 0, list(columns))
    rows = len(columns["entity"])
    full = isinstance(axes[1][0], int)
    geometry = choose_geometry(
        grouped,
        entities=rows,
        layers=len(axes[0]),
        tokens=len(axes[1]),
        full_sequence=full,
        memory_limit=memory_limit,
        block_size=block_size,
    )
    if storage.kind() == "file":
        raise StoreExistsError(f"{storage.root} is a file, a store is a folder: choose another path")
    _refuse_foreign(storage)
    try:
        storage.make_folders([TEMPORARY, f"{PRIVATE}/commits", f"{PRIVATE}/claims"])
    except OSError as error:
        raise InputError(f"{storage.root} cannot be written ({error.strerror}): choose another path") from error
    with storage.structure_lock():
        if storage.get(metadata.ROOT) is not None:
            if not exist_ok:
                raise StoreExistsError(f"{storage.root} holds a store already: choose another path, or resume it")
            return _join(load(storage), columns, types, digest, axes, variables, given)
        if storage.list(f"{PRIVATE}/commits"):
            raise DamagedError(
                f"{storage.root} holds recorded data but its zarr.json is gone: `stratalens verify --repair` puts back "
                "the copy that the store keeps"
            )
        _clear_interrupted(storage)
        store = Store(
            storage=storage,
            block_size=geometry.block_size,
            entities=rows,
            layers=tuple(axes[0]),
            tokens=axes[1],
            groups=(tuple(grouped),),
            label_types=types,
            label_digest=digest,
            provenance=given,
            recorded_with={**_versions(), **(recorded_with or {})},
        )
        write_labels(store, columns)
        store = commit_root(store)
        append_history(storage, "created")
        return store


def _join(
    store: Store,
    columns: Mapping[str, NDArray[Any]],
    types: Mapping[str, str],
    digest: str,
    axes: tuple[list[int], tuple[str, ...] | tuple[int, ...]],
    variables: Sequence[Variable],
    given: Mapping[str, Any],
) -> Store:
    if dict(types) != dict(store.label_types) or digest != store.label_digest:
        raise other_labels(store, columns)
    provenance.check_axes(store, layers=axes[0], tokens=axes[1])
    fresh = provenance.new_variables(store, variables)
    provenance.check_provenance(store, store.provenance, given)
    write_labels(store, columns, only_damaged=True)
    if not fresh:
        return store
    held = [name for name in store.layouts if name not in {v.name for v in fresh}]
    grouped = _grouped(fresh, len(store.groups), [*columns, *held])
    store = add_group(store, grouped)
    append_history(store.storage, "variables added", names=[v.name for v in fresh])
    return store


def _refuse_foreign(storage: Storage) -> None:
    names = storage.list("")
    if PRIVATE in names or not names:
        return
    if metadata.ROOT in names:
        raise StoreExistsError(
            f"{storage.root} holds a zarr hierarchy that stratalens did not write: choose another path"
        )
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise StoreExistsError(f"{storage.root} is not empty and holds no store ({shown}): choose another path")


def _clear_interrupted(storage: Storage) -> None:
    """Remove what a creation that never reached its root zarr.json has left."""
    for name in storage.list(""):
        if name == PRIVATE:
            continue
        files = [f"{name}/{n}" for n in storage.list(name)]
        if storage.is_folder(name) and all(f.split("/")[1][:2] in ("c.", "za") for f in files):
            storage.delete(files)
            storage.remove_folder(name)
    storage.delete([metadata.ROOT_COPY])
