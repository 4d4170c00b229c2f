"""A store copied to a folder, a bucket or another file system of fsspec; an interrupted copy resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from stratalens.store.errors import StoreExistsError, join_names
from stratalens.store.format import metadata
from stratalens.store.interop.push_plan import DataFile, PushPlan, check_data_file, check_same_store
from stratalens.store.state import commit_log as commits
from stratalens.store.state.index import remove_index
from stratalens.store.state.manifest import Store, load
from stratalens.store.storage.base import PRIVATE, TEMPORARY, Storage
from stratalens.store.storage.local_locks import busy_error
from stratalens.store.storage.resolve import check_writable

Progress = Callable[[int, int], None]

MARK = f"{PRIVATE}/pushing.json"  # names the source while a copy is under way
BATCH_BYTES = 64 << 20


def push_to_storage(
    plan: PushPlan, target: Storage, extra: Mapping[str, bytes], progress: Progress | None = None
) -> dict[str, int]:
    """Copy a store; files that an earlier copy of the same content has written are kept.

    Args:
        plan: the source.
        target: where to write.
        extra: further files, such as the card, by key.
        progress: function called with (bytes done, bytes in total).

    Returns:
        Number of files that were written, and their bytes.

    Raises:
        StoreExistsError: the target holds something else.
        MismatchError: it holds another store.
        StoreBusyError: another process writes to it.
        DamagedError: a file of the source is damaged.
    """
    check_writable(target)
    existing = _existing_store(plan, target)
    target.make_folders([TEMPORARY, commits.FOLDER, f"{PRIVATE}/claims", *plan.store.arrays()])
    lock = target.writer_lock()
    if not lock.try_acquire():
        raise busy_error(target.root, lock.holder())
    target.guards.append(lock.check)
    try:
        mark = json.dumps({"source": plan.identity}).encode()
        resumed = target.get(MARK) == mark
        remove_index(target)
        if not resumed:
            target.put(MARK, mark)
        absent = _files_to_write(plan, target, existing, resumed)
        nbytes = _put_data(plan, target, absent, progress)
        _put_all(target, plan.documents)
        _put_all(target, {**plan.texts, **plan.records})
        stale = [name for name in target.list(commits.FOLDER) if f"{commits.FOLDER}/{name}" not in plan.records]
        target.delete(f"{commits.FOLDER}/{name}" for name in stale)
        _put_all(target, {metadata.ROOT_COPY: plan.root, **extra, **plan.index})
        target.put(metadata.ROOT, plan.root)
        target.delete([MARK])
        return {"files": len(absent), "bytes": nbytes}
    finally:
        target.guards.remove(lock.check)
        lock.release()


def _existing_store(plan: PushPlan, target: Storage) -> Store | None:
    """Return the store at the target, None without one; raise if the target holds something else."""
    if target.kind() == "file":
        raise StoreExistsError(f"{target.root} is a file, a store is a folder: choose another address")
    if target.get(metadata.ROOT) is not None:
        existing = load(target)
        check_same_store(plan, existing)
        return existing
    known = {PRIVATE, "README.md", "figure.png", ".gitattributes", *plan.store.arrays()}
    if foreign := [name for name in target.list("") if name not in known]:
        raise StoreExistsError(
            f"{target.root} holds other files and no store ({join_names(foreign, 3)}): choose another address"
        )
    return None


def _files_to_write(plan: PushPlan, target: Storage, existing: Store | None, resumed: bool) -> list[DataFile]:
    """Return the data files that the target does not have.

    A file of the right size is the right one if an interrupted copy of the same content wrote it, or if the commit
    record of the target has the same digest.
    """
    committed: dict[str, int] = {}
    if existing is not None:
        singles = commits.block_records(target)
        for stage, entry in enumerate(existing.stages):
            for group in range(len(existing.groups)):
                blocks = existing.geometry.blocks
                digests = commits.read_stage(target, stage, group, blocks, name=entry.name, singles=singles)
                for variable, by_block in digests.items():
                    layout = existing.layouts.get(variable)
                    if layout is not None:
                        committed |= {layout.key(stage, block): digest for block, digest in by_block.items()}
    sizes = {name: target.sizes(name) for name in plan.store.layouts}
    absent = []
    for file in plan.data:
        folder, _, name = file.key.partition("/")
        same_size = sizes[folder].get(name) == file.nbytes
        if not same_size or not (resumed or committed.get(file.key) == file.digest):
            absent.append(file)
    return absent


def _put_data(plan: PushPlan, target: Storage, files: list[DataFile], progress: Progress | None) -> int:
    total = plan.nbytes
    done = start = total - sum(file.nbytes for file in files)
    batch: list[tuple[str, tuple[bytes]]] = []
    size = 0
    for number, file in enumerate(files, 1):
        check_data_file(plan, file)
        content = plan.store.storage.get(file.key) or b""
        batch.append((file.key, (content,)))
        size += len(content)
        if size >= BATCH_BYTES or number == len(files):
            target.put_many(batch)
            done, batch, size = done + size, [], 0
            if progress is not None:
                progress(done, total)
    return done - start


def _put_all(target: Storage, files: Mapping[str, bytes]) -> None:
    changed = [(key, (content,)) for key, content in files.items() if target.get(key) != content]
    if changed:
        target.put_many(changed)
