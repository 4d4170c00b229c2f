"""Repair: what `stratalens verify --repair` puts right, under the store's exclusive lock.

Nothing that is whole is thrown away: the root zarr.json comes back from its
copy, coordinates and metadata from the root, commit records from the files they
speak of. A damaged block loses its commit record and its damaged files, so that
it reads as missing and a resume records it again.
"""

from __future__ import annotations

from stratalens.store.format import metadata
from stratalens.store.format.schema import recorded_variable
from stratalens.store.integrity.data_checks import check_file
from stratalens.store.integrity.metadata_checks import read_roots
from stratalens.store.integrity.report import VerifyReport
from stratalens.store.state import commit_log as commits
from stratalens.store.state.history import drop_torn_lines
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.publish import commit_root
from stratalens.store.storage.base import TEMPORARY, Storage
from stratalens.store.storage.local_locks import busy_error
from stratalens.store.writing.quantization_error import update_quantization_errors


def repair_store(storage: Storage, report: VerifyReport) -> list[str]:
    """Put right what the report names; returns what was done, in words."""
    storage.make_folders([TEMPORARY])
    lock = storage.writer_lock()
    if not lock.try_acquire():
        raise busy_error(storage.root, lock.holder())
    try:
        done: list[str] = []
        store = _mend_root(storage, done)
        kinds = {d.kind for d in report.damaged}
        if kinds & {"metadata", "coordinate"} or report.unfinished:
            store = commit_root(store)
            done.append("metadata and coordinates were written anew from the root metadata")
        if drop_torn_lines(storage):
            done.append("damaged lines of the history were dropped")
        _mend_records(store, report, done)
        _drop_blocks(store, report, done)
        update_quantization_errors(store)
        return done
    finally:
        lock.release()


def _mend_root(storage: Storage, done: list[str]) -> Store:
    """The root, from its copy where it is damaged, or older than what was committed since."""
    roots, damaged = read_roots(storage)
    if roots is None:
        return load(storage)  # neither can be read, and this says why
    store, lost = roots.store, any(d.path == str(storage.path(metadata.ROOT)) for d in damaged)
    if roots.ahead is not None and any(roots.is_behind(name) for name in storage.list(commits.FOLDER)):
        store, lost = roots.ahead, True
    if lost:
        storage.put(metadata.ROOT, storage.get(metadata.ROOT_COPY) or b"")
        done.append("the root metadata was put back from its copy")
    return store


def _mend_records(store: Store, report: VerifyReport, done: list[str]) -> None:
    storage = store.storage
    for damage in report.damaged:
        if damage.kind != "commit":
            continue
        name = damage.path.rsplit("/", 1)[1]
        key = f"{commits.FOLDER}/{name}"
        parts = name.split(".")
        known = all(p.isdigit() for p in parts) and len(parts) in (2, 3)
        if not known or int(parts[0]) >= len(store.stages) or int(parts[1]) >= len(store.groups):
            storage.delete([key])
            done.append(f"{name}, which belongs to nothing in this store, was removed")
            continue
        stage, group = int(parts[0]), int(parts[1])
        blocks = [int(parts[2])] if len(parts) == 3 else list(range(store.geometry.blocks))
        digests: dict[str, dict[int, int]] = {v.name: {} for v in store.groups[group]}
        for block in blocks:
            found = {v: check_file(storage, store.layouts[v], store.layouts[v].key(stage, block)) for v in digests}
            if any(check.faults for check in found.values()):
                continue
            for variable, check in found.items():
                digests[variable][block] = check.digest
        _put(store, stage, group, key, digests, single=blocks[0] if len(parts) == 3 else None)
        whole = len(next(iter(digests.values())))
        done.append(f"commit record {name} was rebuilt from {whole} whole of {len(blocks)} blocks")


def _put(
    store: Store, stage: int, group: int, key: str, digests: dict[str, dict[int, int]], single: int | None
) -> None:
    name = store.stages[stage].name
    if not any(digests.values()):
        store.storage.delete([key])
    elif single is not None:
        files = {variable: found[single] for variable, found in digests.items()}
        store.storage.put(key, commits.block_record(stage, name, single, group, files))
    else:
        store.storage.put(key, commits.stage_record(stage, name, group, digests, store.geometry.blocks))


def _drop_blocks(store: Store, report: VerifyReport, done: list[str]) -> None:
    storage = store.storage
    dropped: dict[tuple[int, int, int], set[str]] = {}
    for damage in report.damaged:
        if damage.kind == "data" and damage.rows is not None:
            stage = store.stage_index(damage.stage)
            assert stage is not None
            place = (stage, store.group_of[damage.site], damage.rows[0] // store.block_size)
            dropped.setdefault(place, set()).add(damage.site)
    for (stage, group, block), sites in sorted(dropped.items()):
        single = commits.block_key(stage, block, group)
        whole = commits.stage_key(stage, group)
        if storage.get(whole) is not None:
            digests = commits.read_stage(storage, stage, group, store.geometry.blocks)
            for found in digests.values():
                found.pop(block, None)
            _put(store, stage, group, whole, digests, single=None)
        storage.delete([single])
        flag = recorded_variable(group).name
        storage.delete(store.layouts[name].key(stage, block) for name in sorted({*sites, flag}))
        low, high = store.geometry.rows(block)
        where = f"stage {store.stages[stage].name!r}, {', '.join(sorted(sites))}, entity rows {low} to {high - 1}"
        done.append(f"{where}: marked as missing; run the capture again to record it")
