"""A store as an icechunk repository, with one commit for each stage.

Icechunk keeps versions of zarr hierarchies; every commit is a state that can be opened again. A capture records into a
folder or an object store as always, and its complete stages are then committed one by one. Files are checked and copied
unchanged through the store interface of zarr, so a plain zarr reader sees the same. A stage is committed only once.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import re
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import xarray as xr
from zarr.abc.store import Store as ZarrStore
from zarr.buffer import default_buffer_prototype

from stratalens.store.errors import DamagedError, InputError, quote, suggest
from stratalens.store.format import metadata
from stratalens.store.integrity.data_checks import check_file, chunk_damage
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.provenance import mismatch
from stratalens.store.storage.atomic_files import fsync_tree, new_folder
from stratalens.store.storage.disk import convert_write_errors
from stratalens.store.storage.resolve import is_url, storage_at

if TYPE_CHECKING:
    import icechunk

Path = str | os.PathLike[str]

T = TypeVar("T")

_EQUAL_FIELDS = ("block_size", "entities", "layers", "tokens", "groups", "labels", "label_digest", "provenance")


def commit_stages(store: Path, repository: Path | icechunk.Storage) -> list[str]:
    """Commit every complete stage that the repository does not have.

    Stages are committed in the order in which the store added them. Icechunk does not fsync. In a local folder this
    function does, at its end: a commit is durable once this returns. A loss of power during a commit may leave a
    repository that does not open; remove it and commit again from the store.

    Args:
        store: folder or URL of a store.
        repository: folder of the repository, `s3://bucket/prefix` (credentials from the environment), or an
            `icechunk.Storage`. A new repository is created if there is none.

    Returns:
        Names of the newly committed stages.

    Raises:
        InputError: icechunk is not installed, or the repository holds something else.
        MismatchError: the repository was made from another store.
        DamagedError: a file of the store differs from its checksum; its stage was not committed.
    """
    source = load(storage_at(store))
    started = time.time_ns() - 10**9  # times of files are coarser than the clock
    repo = _repository(repository, create=True)
    committed = _committed_stages(repo, source)
    new = []
    present = source.commits().present
    for index, entry in enumerate(source.stages):
        if entry.name in committed or not present[:, index].all():
            continue
        committed.append(entry.name)
        _commit(repo, _with_stages(source, committed), index)
        new.append(entry.name)
    if new and isinstance(repository, str | os.PathLike) and not is_url(os.fspath(repository)):
        with convert_write_errors(pathlib.Path(repository)):
            fsync_tree(pathlib.Path(repository), since=started)
    return new


def open_commits(repository: Path | icechunk.Storage, stage: str | None = None) -> xr.Dataset:
    """Open a commit of the repository as plain zarr readers see it.

    bfloat16 is shown as uint16 bits and scaled int8 as int8; docs/format.md explains both.

    Args:
        repository: as for `commit_stages`.
        stage: name of a committed stage; None opens the latest commit.

    Raises:
        InputError: there is no repository, or no commit of that stage.
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
    if isinstance(place, str | os.PathLike):
        _check_place(place)
    try:
        return _open_repository(icechunk, storage, place, create=create)
    except InputError:
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise InputError(
            f"{place} cannot be opened as an icechunk repository ({type(error).__name__}: {error}): give a folder that "
            "does not exist or is empty, an existing repository, or s3://bucket/prefix"
        ) from error


def _check_place(place: str | os.PathLike[str]) -> None:
    """Raise unless a place is a URL, or a folder that is absent, empty or a repository."""
    text = os.fspath(place)
    if is_url(text):
        bucket = text.removeprefix("s3://").partition("/")[0]
        if text.startswith("s3://") and not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
            raise InputError(f"{quote(text)} names no bucket: give s3://bucket/prefix")
        return
    path = pathlib.Path(text)
    if not text or "\0" in text:
        raise InputError(f"{quote(text)} is no path of a repository: give a folder, or s3://bucket/prefix")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, but a repository is a folder: choose another path")
    if path.is_dir() and any(path.iterdir()) and not (path / "refs").is_dir() and not (path / "repo").exists():
        raise InputError(f"{path} holds other files and no icechunk repository: choose another path")


def _open_repository(icechunk: Any, storage: Any, place: Any, *, create: bool) -> Any:
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
    if not isinstance(place, str | os.PathLike) or is_url(os.fspath(place)):
        return icechunk.Repository.create(storage)
    # A killed creation would leave a folder in which no repository can be created.
    with new_folder(pathlib.Path(place)) as temporary:
        icechunk.Repository.create(icechunk.local_filesystem_storage(os.fspath(temporary)))
    return icechunk.Repository.open(storage)


def _committed_stages(repo: Any, source: Store) -> list[str]:
    """Return the names of the committed stages.

    Raise unless the repository belongs to the store.
    """
    raw = _wait(repo.readonly_session("main").store.get(metadata.ROOT, default_buffer_prototype()))
    if raw is None:
        return []
    state: Mapping[str, Any] | None = json.loads(raw.to_bytes()).get("attributes", {}).get("stratalens")
    if state is None:
        if len(list(repo.ancestry(branch="main"))) == 1:  # icechunk starts with an empty commit
            return []
        raise InputError("the repository holds something that stratalens did not commit: give another place")
    expected = source.attributes()["stratalens"]
    for field in _EQUAL_FIELDS:
        if state[field] != metadata.plain(expected[field], field):
            remedy = "commit to the repository of this store"
            if field.startswith("label"):
                remedy += "; if its labels were changed since, commit to a new repository"
            raise mismatch(source, field, expected[field], state[field], remedy)
    known = {s.name: s.to_json() for s in source.stages}
    for stage in state["stages"]:
        entry = known.get(stage["name"])
        if entry != stage:
            raise mismatch(source, "stage", entry, stage, "commit to the repository of this store")
    return [stage["name"] for stage in state["stages"]]


def _with_stages(source: Store, names: list[str]) -> Store:
    """Return the store with only these stages, in this order."""
    positions = [p for p in (source.stage_index(name) for name in names) if p is not None]
    measured = {name: [stages[p] for p in positions] for name, stages in source.measured.items()}
    return replace(source, stages=tuple(source.stages[p] for p in positions), measured=measured)


def _commit(repo: Any, selected: Store, index: int) -> None:
    """Commit the last stage of `selected`, which is stage `index` on disk."""
    session = repo.writable_session("main")
    _wait(_copy_stage(session.store, selected, index))
    entry = selected.stages[-1]
    facts = {"stage": entry.name, "stage_order": entry.order, "weights_fingerprint": entry.fingerprint}
    session.commit(f"stage {entry.name}", metadata=facts)


async def _copy_stage(target: ZarrStore, selected: Store, index: int) -> None:
    """Copy the metadata of `selected` and the files of its last stage."""
    position = len(selected.stages) - 1
    attributes = replace(selected, alternate_label_files=()).attributes()
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    await _put(target, metadata.ROOT, metadata.canonical(root))
    for name, document in selected.arrays().items():
        document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}  # icechunk's own
        await _put(target, f"{name}/zarr.json", metadata.canonical(document))
    for name, coordinate in selected.coordinates().items():
        for number, data in coordinate.files(position):  # the first stage wrote those of the other coordinates
            await _put(target, f"{name}/c/{number}", data)
    if position == 0:
        for name in selected.label_types:
            for number in range(-(-selected.entities // selected.label_chunk)):
                await _put(target, f"{name}/c/{number}", selected.storage.get(selected.label_key(name, number)) or b"")
    for layout in selected.layouts.values():
        for block in range(selected.geometry.blocks):
            key = layout.key(index, block)
            if faults := check_file(selected.storage, layout, key).faults:
                chunk, what = faults[0]
                damage = chunk_damage(selected, position, block, layout, chunk, what)
                raise DamagedError(
                    f"{damage}; stage {selected.stages[-1].name!r} was not committed. Mark it as missing with "
                    "`stratalens verify --repair`, then run the capture again to record it again."
                )
            target_key = layout.key(position, block).replace("/c.", "/c/").replace(".", "/")
            await _put(target, target_key, selected.storage.get(key) or b"")


async def _put(target: ZarrStore, key: str, data: bytes) -> None:
    await target.set(key, default_buffer_prototype().buffer.from_bytes(data))


def _wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new thread.

    The calling thread may run an event loop, as in a notebook.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
