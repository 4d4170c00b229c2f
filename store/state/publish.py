"""Replacing the root zarr.json: the one moment at which stages, variables or other labels begin to exist.

Three steps, under the structure lock: the copy of the root becomes what the root is going
to be, then the metadata of arrays and the coordinates follow, then the root itself is
replaced. So every document on disk is at every moment what the root or its copy says, and a
change that was interrupted can be told from damage: readers see the root, and the next writer
puts back what is ahead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stratalens.store.format import metadata
from stratalens.store.format.schema import Variable
from stratalens.store.state import commit_log as commits
from stratalens.store.state.manifest import StageEntry, Store, load


def commit_root(store: Store, *, first: int = 0) -> Store:
    """Make a store as this object says, the root last; return it as published.

    Coordinate files of the stages before `first` are not looked at: a root that is there
    speaks of none that is not durable. So what one more stage costs does not grow with those
    that are there, but for the root itself.
    """
    storage = store.storage
    held, wanted, copy = storage.get(metadata.ROOT), store.root(), storage.get(metadata.ROOT_COPY)
    if held is not None and held != wanted:
        if copy not in (held, wanted):
            commit_root(load(storage), first=first)  # another change was interrupted: back to the root first
        _put(store, metadata.ROOT_COPY, wanted)
    _put_arrays(store, first)
    _put(store, metadata.ROOT_COPY, wanted)
    _put(store, metadata.ROOT, wanted)
    return load(storage)


def add_stage(store: Store, entry: StageEntry) -> Store:
    """The store with one more stage, published."""
    return commit_root(replace(store, stages=(*store.stages, entry)), first=len(store.stages))


def add_group(store: Store, variables: Sequence[Variable]) -> Store:
    """The store with one more group of variables, published; what is there is left as it is."""
    return commit_root(replace(store, groups=(*store.groups, tuple(variables))), first=len(store.stages))


def _put_arrays(store: Store, first: int) -> None:
    """Write coordinate files and metadata of arrays that are not yet as the store says."""
    documents, wanted = store.arrays(), []
    for name, coordinate in store.coordinates().items():
        start = first if coordinate.dim == "stage" else 0
        wanted += [(f"{name}/c.{number}", data) for number, data in coordinate.files(start)]
    wanted += [(f"{name}/zarr.json", metadata.canonical(document)) for name, document in documents.items()]
    store.storage.make_folders(documents)
    changed = [(key, (data,)) for key, data in wanted if store.storage.get(key) != data]
    if changed:
        store.storage.put_many(changed)


def _put(store: Store, key: str, wanted: bytes) -> None:
    if store.storage.get(key) != wanted:
        store.storage.put(key, wanted)


def compact(store: Store, stage: int, group: int) -> bool:
    """Pack the commit records of a stage into one, if all its blocks are there; under the structure lock.

    Returns whether there was anything to pack.
    """
    storage, blocks = store.storage, store.geometry.blocks
    listed = commits.block_records(storage)
    singles = listed.get(f"{stage:04d}.{group}", [])
    if not singles:
        return False
    digests = commits.read_stage(storage, stage, group, blocks, singles=listed)
    names = [v.name for v in store.groups[group]]
    if all(len(digests.get(name, {})) == blocks for name in names):
        record = commits.stage_record(stage, store.stages[stage].name, group, digests, blocks)
        storage.put(commits.stage_key(stage, group), record)
        storage.delete(f"{commits.FOLDER}/{n}" for n in singles)
    return True
