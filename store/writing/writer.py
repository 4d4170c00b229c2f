"""ActivationWriter: the lock of a store, recovery, stages and their blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import InputError, StoreBusyError
from stratalens.store.format import metadata
from stratalens.store.format.shards import FileImage
from stratalens.store.state import commit_log as commits
from stratalens.store.state.history import append_history, drop_torn_lines
from stratalens.store.state.index import remove_index
from stratalens.store.state.manifest import StageEntry, Store, load
from stratalens.store.state.provenance import check_stage
from stratalens.store.state.publish import add_stage, commit_root, compact, sync_names
from stratalens.store.state.store_files import check_store_files, has_private_folder, no_private_folder_error
from stratalens.store.storage.base import PRIVATE, Lock, StagedWrite, Storage
from stratalens.store.storage.local_locks import busy_error
from stratalens.store.storage.resolve import check_writable, storage_at
from stratalens.store.threads import cores
from stratalens.store.writing.buffers import Allocator, BlockBuffer, BlockMemory, RowBlock
from stratalens.store.writing.quantization_error import update_quantization_errors
from stratalens.store.writing.write_queue import WriteQueue, prefetch

__all__ = ["ActivationWriter", "StageWriter"]

PREFETCH_BYTES = 8 << 20  # the checksums of smaller files take less time than starting a thread


class ActivationWriter:
    """A writer of blocks of activations.

    It holds the lock of the store until it is closed.

    Args:
        store: path of a store, or the result of `create`.
        allocate: function from a number of bytes to a uint8 array of that size, for instance of pinned memory. It is
            called a few times; the memory is reused.
        shared: True lets other writers with shared=True write other blocks of the store at the same time (the ranks of
            one job). If two of them want the same block, the second raises StoreBusyError.

    Raises:
        StoreBusyError: another living process writes the store. Locks of killed writers do not count.
    """

    def __init__(
        self, store: Store | str | os.PathLike[str], *, allocate: Allocator | None = None, shared: bool = False
    ) -> None:
        self.store = store if isinstance(store, Store) else load(storage_at(store))
        self.shared = shared
        self._storage = self.store.storage
        check_writable(self._storage)
        if not has_private_folder(self._storage):
            raise no_private_folder_error(self._storage)
        self._lock = self._take_lock()
        self._claims: dict[tuple[int, int], Lock] = {}
        self._claims_lock = threading.Lock()  # the commit thread removes claims while the caller adds others
        self._storage.guards.append(self._lock.check)
        try:
            self.store = load(self._storage)
            self.background = WriteQueue(lambda: BlockMemory(self.store.layouts, allocate))
        except BaseException:
            self._release_lock()
            raise

    @property
    def block_size(self) -> int:
        """Entity rows in a block."""
        return self.store.block_size

    def blocks(self) -> list[RowBlock]:
        """Return all blocks of the store."""
        geometry = self.store.geometry
        names = tuple(self.store.layouts)
        return [RowBlock(number, *geometry.rows(number), names) for number in range(geometry.blocks)]

    def stage(
        self,
        name: str,
        *,
        order: int,
        fingerprint: str,
        provenance: Mapping[str, Any] | None = None,
        allow_same_weights: bool = False,
    ) -> StageWriter:
        """Add a stage, or resume it; the result is a context manager.

        Args:
            name: name of the training checkpoint; it never becomes a path.
            order: position in training; 0 for the untrained model if there is one.
            fingerprint: hash of the weights.
            provenance: further facts about the stage, as JSON; a stage with other facts raises MismatchError.
            allow_same_weights: accept two stages with the same fingerprint.

        Raises:
            MismatchError: the store has the stage with other weights, order or provenance.
        """
        self.background.check()
        facts = metadata.plain(provenance or {}, "provenance")
        entry = StageEntry(str(name), int(order), str(fingerprint), facts)
        with self._storage.structure_lock():
            current = load(self._storage)
            if current.groups != self.store.groups:
                raise StoreBusyError(
                    f"variables were added to {self._storage.root} since this writer was opened: open it again"
                )
            self.store = current
            index = check_stage(self.store, entry, allow_same_weights=allow_same_weights)
            if index is None:
                index = len(self.store.stages)
                self.store = add_stage(self.store, entry)
                append_history(self._storage, "stage added", stage=entry.name)
        return StageWriter(self, index, entry)

    def claim(self, stage: int, block: int) -> None:
        """Reserve a block of a shared store for this process.

        Raises:
            StoreBusyError: another living process has reserved it.
        """
        if not self.shared:
            return
        with self._claims_lock:
            if (stage, block) in self._claims:
                return
        lock = self._storage.claim_lock(f"{stage:04d}.{block:07d}")
        if not lock.try_acquire():
            raise StoreBusyError(
                f"block {block} of stage {self.store.stages[stage].name!r} in {self._storage.root} is being written by "
                f"{lock.holder()}: give each process its own blocks with stage.pending(rank, size)"
            )
        lock.note()
        with self._claims_lock:
            self._claims[stage, block] = lock

    def unclaim(self, stage: int, block: int) -> None:
        """Let other processes write the block."""
        with self._claims_lock:
            lock = self._claims.pop((stage, block), None)
        if lock is not None:
            lock.release(unlink=True)

    def close(self) -> None:
        """Write the queued blocks and release the lock.

        Raise the first error of the background threads.
        """
        if not self._lock.acquired:
            return
        try:
            self.background.close()
            for stage, block in list(self._claims):
                self.unclaim(stage, block)
            self._storage.remove_temporaries(own_only=True)
            if not self.shared:
                self._lock.clear_note()
        finally:
            self._release_lock()
            self.background.check()  # the first error explains more than those that follow from it

    def _repr_html_(self) -> str:
        from stratalens.store.display import store_html
        from stratalens.store.state.info import info

        return store_html(info(self.store.storage.root))

    def __enter__(self) -> ActivationWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None or late is error:
                raise
            error.add_note(f"and writing in the background failed: {late}")

    def _release_lock(self) -> None:
        self._storage.guards.remove(self._lock.check)
        self._lock.release()

    def _take_lock(self) -> Lock:
        lock = self._storage.writer_lock()
        try:
            # The processes of one job start at the same moment: while the first one recovers, the others wait here.
            with self._storage.structure_lock():
                if lock.try_acquire():
                    lock.note()
                    self._recover()
                    if self.shared:
                        lock.clear_note()
                        lock.downgrade()
                    return lock
                if self.shared and lock.try_acquire(shared=True):
                    return lock
        except OSError as error:
            lock.release()
            raise InputError(
                f"{self._storage.root} cannot be written ({error.strerror}): make it writable to record to it"
            ) from error
        except BaseException:
            lock.release()
            raise
        raise busy_error(self._storage.root, lock.holder())

    def _recover(self) -> None:
        """Remove the files of killed writers and finish their changes.

        The caller holds the exclusive and the structure lock.
        """
        storage = self._storage
        check_store_files(load(storage))
        remove_index(storage)
        sync_names(storage)
        storage.remove_temporaries(own_only=False)
        drop_torn_lines(storage)
        storage.clear_claims()
        store = load(storage)
        documents = store.arrays()
        stages = len(store.stages)
        for name in ("stage", "stage_order", "weights_fingerprint"):
            numbers = [n[2:] for n in storage.list(name) if n.startswith("c.") and n[2:].isdecimal()]
            uncommitted = [f"c.{number}" for number in numbers if int(number) >= stages]
            storage.delete(f"{name}/{n}" for n in uncommitted)
        for name in storage.list(""):
            known = name in documents or name == PRIVATE
            if not known and storage.is_folder(name) and storage.list(name) == ["zarr.json"]:
                storage.delete([f"{name}/zarr.json"])
                storage.remove_folder(name)
        commit_root(store, first=stages)
        for name in commits.block_records(storage):
            stage, group = map(int, name.split("."))
            if stage < stages and group < len(store.groups):
                compact(store, stage, group)
        update_quantization_errors(store)


class StageWriter:
    """A writer of the blocks of one stage; `ActivationWriter.stage` makes it."""

    def __init__(self, writer: ActivationWriter, index: int, entry: StageEntry) -> None:
        self.writer = writer
        self.index = index
        self.name = entry.name
        self._store = writer.store
        self._present = self._committed()

    def pending(self, rank: int = 0, size: int = 1) -> Iterator[RowBlock]:
        """Yield the blocks that are not committed yet.

        With `size` > 1, yield those of process `rank` of `size`.

        >>> list(range(7))[1::3]  # the blocks of rank 1 of 3, out of seven
        [1, 4]
        """
        if not 0 <= rank < size:
            raise InputError(f"rank {rank} of {size}: rank goes from 0 to size - 1")
        for block in self.writer.blocks()[rank::size]:
            if variables := self._missing_variables(block.index):
                yield RowBlock(block.index, block.start, block.stop, variables)

    def buffer(self, block: RowBlock) -> BlockBuffer:
        """Return an empty buffer for one block.

        Wait while two blocks are being filled or written.
        """
        self.writer.background.check()
        if block.index >= self._store.geometry.blocks or self._present[:, block.index].all():
            raise InputError(
                f"block {block.index} of stage {self.name!r} is recorded already, or does not exist: take blocks from "
                "stage.pending()"
            )
        self.writer.claim(self.index, block.index)
        try:
            memory = self.writer.background.acquire()
        except BaseException:
            self.writer.unclaim(self.index, block.index)
            raise
        flags = [v.name for group in self._store.groups for v in group if v.attrs.get("kind") == "flag"]
        rows = self._store.geometry.rows(block.index)
        missing = RowBlock(block.index, *rows, self._missing_variables(block.index))
        return BlockBuffer(self.name, missing, memory, flags, self.release)

    def submit(self, buffer: BlockBuffer) -> None:
        """Submit a filled buffer; background threads checksum, write and commit it.

        Raises:
            InputError: rows were neither written nor skipped.
        """
        self.writer.background.check()
        if buffer.release != self.release:
            raise InputError("this buffer belongs to another stage: submit it to the stage that made it")
        memory = buffer.finish()
        self._present[:, buffer.block.index] = True
        self.writer.background.submit(lambda: self._write(buffer.block, memory), memory)

    def release(self, block: RowBlock, memory: BlockMemory) -> None:
        """Take back the memory of a buffer that will not be submitted."""
        self.writer.background.give_back(memory)
        self.writer.unclaim(self.index, block.index)

    def close(self) -> None:
        """Wait for the disk; if the stage is complete, merge its commit records into one."""
        background = self.writer.background
        background.drain()
        background.check()
        with self._store.storage.structure_lock():
            present = self._committed()
            for group in range(len(self._store.groups)):
                if present[group].all() and compact(self._store, self.index, group):
                    append_history(self._store.storage, "stage complete", stage=self.name, group=group)
            update_quantization_errors(load(self._store.storage))

    def __enter__(self) -> StageWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self.writer.background.drain()

    def _committed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return what is committed now, a bool array of shape (groups, blocks)."""
        store = self._store
        return commits.present_at(store.storage, self.index, self.name, len(store.groups), store.geometry.blocks)

    def _missing_variables(self, block: int) -> tuple[str, ...]:
        """Return the variables of the groups that the block does not have yet."""
        groups = enumerate(self._store.groups)
        return tuple(v.name for number, group in groups if not self._present[number, block] for v in group)

    def _write(self, block: RowBlock, memory: BlockMemory) -> StagedWrite:
        """Write the files of a block.

        Publishing the result makes them durable and commits the block.
        """
        storage, store = self._store.storage, self._store
        images = {name: memory.images[name] for name in block.variables}
        with ExitStack() as stack:
            files = storage.write_many(
                (image.layout.key(self.index, block.index), stack.enter_context(closing(_file_bytes(image))))
                for image in images.values()
            )
        records = []
        for group in sorted({store.group_of[name] for name in images}):
            digests = {name: image.digest for name, image in images.items() if store.group_of[name] == group}
            record = commits.block_record(self.index, self.name, block.index, group, digests)
            records.append((commits.block_key(self.index, block.index, group), (record,)))
        return StagedBlock(files, storage, records, lambda: self.writer.unclaim(self.index, block.index))


@dataclass
class StagedBlock:
    """A block whose files are written but not durable.

    Attributes:
        files: the data files.
        storage: backend of the store.
        records: commit records by key.
        on_commit: function to call once the block is committed.
    """

    files: StagedWrite
    storage: Storage
    records: list[tuple[str, tuple[bytes]]]
    on_commit: Callable[[], None]

    def publish(self) -> None:
        """Commit the block: the files first, then the records."""
        self.files.publish()
        self.storage.put_many(self.records)
        self.on_commit()

    def discard(self) -> None:
        """Remove the files."""
        self.files.discard()


def _file_bytes(image: FileImage) -> Generator[NDArray[np.uint8]]:
    """Return the bytes of a file with their checksums.

    A thread checksums a large file ahead of the write if a core is free.
    """
    return prefetch(image.encode()) if image.layout.file_nbytes >= PREFETCH_BYTES and cores() > 1 else image.encode()
