"""repair_store: the repairs of `stratalens verify --repair`.

They need the exclusive lock of the store.
Intact data is never removed. The root zarr.json is restored from its copy, coordinates and metadata from the root, and
commit records from the data files. A damaged block loses its commit record and its damaged files: it reads as missing,
and a resumed capture records it again.
"""

from __future__ import annotations

from stratalens.store.errors import DamagedError
from stratalens.store.format import metadata
from stratalens.store.format.schema import recorded_variable
from stratalens.store.integrity.data_checks import check_file
from stratalens.store.integrity.metadata_checks import read_roots
from stratalens.store.integrity.report import VerifyReport
from stratalens.store.state import commit_log as commits
from stratalens.store.state.history import HISTORY, append_history, drop_torn_lines
from stratalens.store.state.index import remove_index
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.missing_rows import lost_records
from stratalens.store.state.publish import commit_root, sync_names
from stratalens.store.state.store_files import check_row_count, has_private_folder
from stratalens.store.storage.base import PRIVATE, TEMPORARY, Storage
from stratalens.store.storage.local_locks import busy_error
from stratalens.store.storage.resolve import check_writable
from stratalens.store.writing.quantization_error import update_quantization_errors


def repair_store(storage: Storage, report: VerifyReport) -> list[str]:
    """Repair the damage in a report.

    Returns:
        The repairs, in words.

    Raises:
        StoreBusyError: another process writes the store.
    """
    check_writable(storage)
    rebuild = not has_private_folder(storage)
    storage.make_folders([TEMPORARY, commits.FOLDER, f"{PRIVATE}/claims"])
    lock = storage.writer_lock()
    if not lock.try_acquire():
        raise busy_error(storage.root, lock.holder())
    storage.guards.append(lock.check)
    try:
        sync_names(storage)
        remove_index(storage)
        repairs: list[str] = []
        store = _restore_root(storage, repairs)
        check_row_count(store)
        kinds = {d.kind for d in report.damaged}
        if kinds & {"metadata", "coordinate"} or report.unfinished:
            store = commit_root(store)
            repairs.append("metadata and coordinates were written again from the root metadata")
        if rebuild:
            storage.put(metadata.ROOT_COPY, storage.get(metadata.ROOT) or b"")
            repairs.append("the copy of the root metadata was written again; the history and the capture plan are lost")
        if drop_torn_lines(storage):
            repairs.append("damaged lines of the history were removed")
        if storage.get(HISTORY) is None:
            append_history(storage, "history lost")
            repairs.append("a new history was started")
        if rebuild:
            records = [(stage, group) for stage in range(len(store.stages)) for group in range(len(store.groups))]
        else:
            records = sorted({(stage, group) for stage, group, _ in _lost_records(store)})
        for stage, group in records:
            _rebuild_record(store, stage, group, None, repairs)
        _rebuild_records(store, report, repairs)
        _remove_blocks(store, report, repairs)
        update_quantization_errors(store)
        return repairs
    finally:
        storage.guards.remove(lock.check)
        lock.release()


def _restore_root(storage: Storage, repairs: list[str]) -> Store:
    """Restore the root from its copy if it is damaged, or older than a commit record."""
    roots, damaged = read_roots(storage)
    if roots is None:
        return load(storage)  # neither can be read; this raises the reason
    store = roots.store
    use_copy = any(d.path == str(storage.path(metadata.ROOT)) for d in damaged)
    if roots.ahead is not None and any(roots.is_behind(name) for name in storage.list(commits.FOLDER)):
        store, use_copy = roots.ahead, True
    if use_copy:
        storage.put(metadata.ROOT, storage.get(metadata.ROOT_COPY) or b"")
        repairs.append("the root metadata was restored from its copy")
    return store


def _rebuild_records(store: Store, report: VerifyReport, repairs: list[str]) -> None:
    """Rebuild damaged commit records from the data files.

    Remove records that belong to no stage or group.
    """
    storage = store.storage
    for damage in report.damaged:
        if damage.kind != "commit":
            continue
        name = damage.path.rsplit("/", 1)[1]
        key = f"{commits.FOLDER}/{name}"
        if damage.stage or name == PRIVATE:
            continue  # a record that is missing, which is rebuilt already
        numbers = name.split(".")
        known = all(n.isdecimal() for n in numbers) and len(numbers) in (2, 3)
        if not known or int(numbers[0]) >= len(store.stages) or int(numbers[1]) >= len(store.groups):
            storage.delete([key])
            repairs.append(f"{name}, which belongs to nothing in this store, was removed")
            continue
        single = int(numbers[2]) if len(numbers) == 3 else None
        _rebuild_record(store, int(numbers[0]), int(numbers[1]), single, repairs)


def _lost_records(store: Store) -> list[tuple[int, int, int]]:
    try:
        return lost_records(store)
    except DamagedError:  # `_rebuild_records` rebuilds the damaged one, which also covers its stage
        return []


def _rebuild_record(store: Store, stage: int, group: int, single: int | None, repairs: list[str]) -> None:
    """Rebuild the commit record of a stage, or of the block `single`, from the checksums of the data files."""
    storage = store.storage
    key = commits.stage_key(stage, group) if single is None else commits.block_key(stage, single, group)
    blocks = list(range(store.geometry.blocks)) if single is None else [single]
    digests: dict[str, dict[int, int]] = {v.name: {} for v in store.groups[group]}
    for block in blocks:
        checks = {v: check_file(storage, store.layouts[v], store.layouts[v].key(stage, block)) for v in digests}
        if not any(check.faults for check in checks.values()):
            for variable, check in checks.items():
                digests[variable][block] = check.digest
        elif any(check.nbytes for check in checks.values()):
            append_history(storage, "block removed", stage=store.stages[stage].name, group=group, block=block)
    _put_record(store, stage, group, key, digests, single)
    intact = len(next(iter(digests.values())))
    name = key.rpartition("/")[2]
    repairs.append(f"commit record {name} was rebuilt from {intact} intact of {len(blocks)} blocks")


def _remove_blocks(store: Store, report: VerifyReport, repairs: list[str]) -> None:
    """Remove the commit records and the damaged files of damaged blocks."""
    storage = store.storage
    damaged: dict[tuple[int, int, int], set[str]] = {}
    for damage in report.damaged:
        if damage.kind == "data" and damage.rows is not None:
            stage = store.stage_index(damage.stage)
            assert stage is not None
            place = (stage, store.group_of[damage.site], damage.rows[0] // store.block_size)
            damaged.setdefault(place, set()).add(damage.site)
    for (stage, group, block), sites in sorted(damaged.items()):
        stage_key = commits.stage_key(stage, group)
        if storage.get(stage_key) is not None:
            name = store.stages[stage].name
            digests = commits.read_stage(storage, stage, group, store.geometry.blocks, name=name)
            for blocks in digests.values():
                blocks.pop(block, None)
            _put_record(store, stage, group, stage_key, digests, None)
        storage.delete([commits.block_key(stage, block, group)])
        flag = recorded_variable(group).name
        storage.delete(store.layouts[name].key(stage, block) for name in sorted({*sites, flag}))
        append_history(storage, "block removed", stage=store.stages[stage].name, group=group, block=block)
        low, high = store.geometry.rows(block)
        where = f"stage {store.stages[stage].name!r}, {', '.join(sorted(sites))}, entity rows {low} to {high - 1}"
        repairs.append(f"{where}: marked as missing; run the capture again to record it")


def _put_record(
    store: Store, stage: int, group: int, key: str, digests: dict[str, dict[int, int]], single: int | None
) -> None:
    """Write the commit record of a stage, or of the block `single`.

    Delete the record if no block is intact.
    """
    name = store.stages[stage].name
    if not any(digests.values()):
        store.storage.delete([key])
    elif single is not None:
        block_digests = {variable: blocks[single] for variable, blocks in digests.items()}
        store.storage.put(key, commits.block_record(stage, name, single, group, block_digests))
    else:
        store.storage.put(key, commits.stage_record(stage, name, group, digests, store.geometry.blocks))
