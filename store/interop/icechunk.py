"""A finished store as an icechunk repository: one commit for each stage (extra `icechunk`).

Icechunk keeps versions of zarr hierarchies: every commit is a state that can be opened
again. Its commits take the place of our commit records, so recording itself goes to a
folder or an object store as always; complete stages are then committed here one by one.
Files are copied as they are, checked on the way, through zarr's store interface; what a
plain zarr reader sees is the same. A stage that the repository has is never written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import xarray as xr
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from stratalens.store.errors import DamagedError, InputError, suggest
from stratalens.store.format import metadata
from stratalens.store.integrity.data_checks import check_file, damage
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.provenance import mismatch
from stratalens.store.storage.resolve import is_url, storage_at

if TYPE_CHECKING:
    import icechunk


Path = str | os.PathLike[str]


_SAME = ("block_size", "entities", "layers", "tokens", "groups", "labels", "label_digest", "provenance")


def commit_stages(store: Path, repository: Path | icechunk.Storage) -> list[str]:
    """Commit every complete stage that the repository does not have yet, in the order in which they were added.

    Parameters
    ----------
    store
        Folder or URL of a store.
    repository
        Folder of the repository, ``s3://bucket/prefix`` (credentials from the
        environment), or an ``icechunk.Storage``. Made where there is none.

    Returns
    -------
    list of str
        Names of the stages that were committed now.

    Raises
    ------
    InputError
        icechunk is not installed, or the repository holds something else.
    MismatchError
        The repository was made from another store.
    DamagedError
        A file of the store differs from its checksum; its stage was not committed.
    """
    source = load(storage_at(store))
    repo = _repository(repository, create=True)
    held = _held(repo, source)
    done = []
    present = source.commits().present
    for index, entry in enumerate(source.stages):
        if entry.name in held or not present[:, index].all():
            continue
        held.append(entry.name)
        _commit(repo, _part(source, held), index)
        done.append(entry.name)
    return done


def open_commits(repository: Path | icechunk.Storage, stage: str | None = None) -> xr.Dataset:
    """The repository as plain zarr readers see it, now or as it was when a stage had just been committed.

    bfloat16 comes as its bits and int8 as whole numbers (docs/format.md says what they mean).

    Raises
    ------
    InputError
        There is no repository, or no commit of that stage.
    """
    repo = _repository(repository, create=False)
    if stage is None:
        session = repo.readonly_session("main")
    else:
        commits = {str(c.metadata["stage"]): c.id for c in repo.ancestry(branch="main") if "stage" in c.metadata}
        if stage not in commits:
            raise InputError(f"no commit of stage {stage!r} in {repository}: {suggest(stage, sorted(commits))}")
        session = repo.readonly_session(snapshot_id=commits[stage])
    opened: xr.Dataset = xr.open_zarr(session.store, consolidated=False)
    return opened


def _repository(place: Path | icechunk.Storage, *, create: bool) -> Any:
    try:
        import icechunk
    except ImportError as error:
        raise InputError('icechunk is not installed: pip install "stratalens[icechunk]"') from error
    storage: Any = place
    if isinstance(place, str) and is_url(place):
        if not place.startswith("s3://"):
            raise InputError(f"{place} is no place for a repository: give a folder, s3://bucket/prefix or a Storage")
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        storage = icechunk.s3_storage(bucket=bucket, prefix=prefix, from_env=True)
    elif isinstance(place, str | os.PathLike):
        storage = icechunk.local_filesystem_storage(os.fspath(place))
    if icechunk.Repository.exists(storage):
        return icechunk.Repository.open(storage)
    if not create:
        raise InputError(f"there is no icechunk repository at {place}: commit_stages(store, {str(place)!r}) makes one")
    return icechunk.Repository.create(storage)


def _held(repo: Any, source: Store) -> list[str]:
    """Names of the stages that the repository has, after holding it against the store."""
    raw = sync(repo.readonly_session("main").store.get(metadata.ROOT, default_buffer_prototype()))
    if raw is None:
        return []
    state: Mapping[str, Any] | None = json.loads(raw.to_bytes()).get("attributes", {}).get("stratalens")
    if state is None:
        if len(list(repo.ancestry(branch="main"))) == 1:  # icechunk begins with an empty commit
            return []
        raise InputError("the repository holds something that stratalens did not commit: give another place")
    ours = source.attributes()["stratalens"]
    for field in _SAME:
        if state[field] != metadata.plain(ours[field], field):
            mend = "commit to the repository of this store"
            if field.startswith("label"):
                mend += "; if its labels were changed since, commit to a new repository"
            raise mismatch(source, field, ours[field], state[field], mend)
    known = {s.name: s.to_json() for s in source.stages}
    for stage in state["stages"]:
        if known.get(stage["name"]) != stage:
            held = known.get(stage["name"])
            raise mismatch(source, "stage", held, stage, "commit to the repository of this store")
    return [stage["name"] for stage in state["stages"]]


def _part(source: Store, names: list[str]) -> Store:
    """The store with these stages alone, in this order."""
    places = [source.stage_index(name) for name in names]
    measured = {name: [stages[p] for p in places if p is not None] for name, stages in source.measured.items()}
    return replace(source, stages=tuple(source.stages[p] for p in places if p is not None), measured=measured)


def _commit(repo: Any, part: Store, index: int) -> None:
    """Copy the last stage of `part`, which is stage `index` of the store on disk, and commit it."""
    session = repo.writable_session("main")
    target, position, entry = session.store, len(part.stages) - 1, part.stages[-1]
    documents = part.arrays()
    root = {"zarr_format": 3, "node_type": "group", "attributes": replace(part, alternate_label_files=()).attributes()}
    _put(target, metadata.ROOT, metadata.canonical(root))
    for name, document in documents.items():
        document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}  # icechunk's own
        _put(target, f"{name}/zarr.json", metadata.canonical(document))
    for name, coordinate in part.coordinates().items():
        for number, data in coordinate.files(position):  # of all others, the first stage brought everything
            _put(target, f"{name}/c/{number}", data)
    if position == 0:
        for name in part.label_types:
            for number in range(-(-part.entities // part.label_chunk)):
                _put(target, f"{name}/c/{number}", part.storage.get(part.label_key(name, number)) or b"")
    for layout in part.layouts.values():
        for block in range(part.geometry.blocks):
            key = layout.key(index, block)
            if faults := check_file(part.storage, layout, key).faults:
                chunk, what = faults[0]
                raise DamagedError(
                    f"{damage(part, position, block, layout, chunk, what)}; stage {entry.name!r} was not committed. "
                    "`stratalens verify --repair` marks it as missing, then the capture, run again, records it anew."
                )
            place = layout.key(position, block).replace("/c.", "/c/").replace(".", "/")
            _put(target, place, part.storage.get(key) or b"")
    facts = {"stage": entry.name, "stage_order": entry.order, "weights_fingerprint": entry.fingerprint}
    session.commit(f"stage {entry.name}", metadata=facts)


def _put(target: ZarrStore, key: str, data: bytes) -> None:
    sync(target.set(key, default_buffer_prototype().buffer.from_bytes(data)))
