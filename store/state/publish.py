"""Atomic replacement of the root zarr.json, which makes new stages, variables and labels exist.

The caller holds the structure lock. Step one replaces the copy of the root by the new root. Step two writes the
metadata of arrays and the coordinates. Step three replaces the root itself. At any moment, every document on disk
agrees with the root or with its copy, which distinguishes an interrupted change from damage. Readers use the root; the
next writer reverts documents that are newer than the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stratalens.store.errors import StratalensError
from stratalens.store.format import metadata
from stratalens.store.format.schema import Variable
from stratalens.store.state import commit_log as commits
from stratalens.store.state.history import append_history
from stratalens.store.state.manifest import StageEntry, Store, load
from stratalens.store.storage.base import PRIVATE, Storage


def commit_root(store: Store, *, first: int = 0) -> Store:
    """Write all documents of a store, the root last.

    Args:
        store: the new state.
        first: skip the coordinate files of the stages before this one, because the existing root proves that they
            are durable. The cost of one more stage then does not grow with the number of stages, except for the root.

    Returns:
        The published store.
    """
    storage = store.storage
    current, new, copy = storage.get(metadata.ROOT), store.root(), storage.get(metadata.ROOT_COPY)
    if current is not None and copy not in (current, new):  # another change was interrupted: revert to the root first
        if current == new:
            _note_reverted(load(storage))
        else:
            commit_root(load(storage), first=first)
    if current not in (None, new):
        _put_if_changed(store, metadata.ROOT_COPY, new)
    _put_arrays(store, first)
    _put_if_changed(store, metadata.ROOT_COPY, new)
    _put_if_changed(store, metadata.ROOT, new)
    return load(storage)


def _note_reverted(root: Store) -> None:
    """Write to the history which stages and variables of an interrupted change are reverted.

    The history may name them as added. Without this event, their absence would look like an older root.
    """
    try:
        copy = load(root.storage, copy=True)
    except StratalensError:  # it has no copy, or a damaged one
        return
    stages = [entry.name for entry in copy.stages if root.stage_index(entry.name) is None]
    names = [name for name in copy.layouts if name not in root.layouts]
    if stages or names:
        append_history(root.storage, "change reverted", stages=stages, names=names)


def sync_names(storage: Storage) -> None:
    """Make all names in a store durable.

    A killed process may have renamed files without making their names durable. Later calls find the files in place
    and do not write them again.
    """
    arrays = [name for name in storage.list("") if storage.is_folder(name)]
    storage.sync_folders(["", PRIVATE, commits.FOLDER, *arrays])


def add_stage(store: Store, entry: StageEntry) -> Store:
    """Publish the store with one more stage."""
    return commit_root(replace(store, stages=(*store.stages, entry)), first=len(store.stages))


def add_group(store: Store, variables: Sequence[Variable]) -> Store:
    """Publish the store with one more group of variables; existing data stays unchanged."""
    return commit_root(replace(store, groups=(*store.groups, tuple(variables))), first=len(store.stages))


def _put_arrays(store: Store, first: int) -> None:
    """Write the coordinate files and array metadata that differ from the store."""
    documents, files = store.arrays(), []
    for name, coordinate in store.coordinates().items():
        start = first if coordinate.dim == "stage" else 0
        files += [(f"{name}/c.{number}", data) for number, data in coordinate.files(start)]
    files += [(f"{name}/zarr.json", metadata.canonical(document)) for name, document in documents.items()]
    store.storage.make_folders(documents)
    changed = [(key, (data,)) for key, data in files if store.storage.get(key) != data]
    if changed:
        store.storage.put_many(changed)


def _put_if_changed(store: Store, key: str, data: bytes) -> None:
    if store.storage.get(key) != data:
        store.storage.put(key, data)


def compact(store: Store, stage: int, group: int) -> bool:
    """Compact the commit records of a stage into one if all its blocks are committed.

    The caller holds the structure lock.

    Returns:
        Whether there were records of single blocks.
    """
    storage, blocks = store.storage, store.geometry.blocks
    records = commits.block_records(storage)
    singles = records.get(f"{stage:04d}.{group}", [])
    if not singles:
        return False
    name = store.stages[stage].name
    digests = commits.read_stage(storage, stage, group, blocks, name=name, singles=records)
    variables = [v.name for v in store.groups[group]]
    if all(len(digests.get(variable, {})) == blocks for variable in variables):
        record = commits.stage_record(stage, name, group, digests, blocks)
        storage.put(commits.stage_key(stage, group), record)
        storage.delete(f"{commits.FOLDER}/{n}" for n in singles)
    return True
