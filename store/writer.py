"""ActivationWriter: bounded background writing of whole blocks, commit, resume.

A block becomes visible in three steps: its files are made durable under
temporary names and renamed (`storage`), then one small commit record is made
durable (`commits`). Killed at any moment, a block is either committed or it is
not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from stratalens.store import commits, metadata
from stratalens.store.background import Background
from stratalens.store.buffers import Allocate, Block, BlockBuffer, Memory
from stratalens.store.errors import InputError, StoreBusyError
from stratalens.store.locks import FileLock, busy, structure_lock
from stratalens.store.manifest import StageEntry, Store, add_stage, load, log
from stratalens.store.provenance import check_stage
from stratalens.store.storage import PRIVATE, LocalStorage

__all__ = ["ActivationWriter", "StageWriter"]


class ActivationWriter:
    """Writes blocks of activations into a store; holds the store's lock until it is closed.

    Parameters
    ----------
    store
        Path of a store, or what `create` returned.
    allocate
        Function from a number of bytes to a uint8 array of that size, for
        instance pinned memory; called a few times, the memory is reused.
    shared
        True lets other writers with shared=True write other blocks of the
        store at the same time (the ranks of one job). A block that two of them
        want goes to one; the other gets `StoreBusyError`.

    Raises
    ------
    StoreBusyError
        Another living process writes the store. Locks of killed writers do not count.
    """

    def __init__(
        self, store: Store | str | os.PathLike[str], *, allocate: Allocate | None = None, shared: bool = False
    ) -> None:
        self.store = store if isinstance(store, Store) else load(LocalStorage(store))
        self.shared = shared
        self._storage = self.store.storage
        self._lock = self._take_lock()
        self._claims: dict[tuple[int, int], FileLock] = {}
        try:
            self.store = load(self._storage)
            self._background = Background(lambda: Memory(self.store.layouts, allocate))
        except BaseException:
            self._lock.release()
            raise

    def _take_lock(self) -> FileLock:
        folder = self._storage.path(PRIVATE)
        lock = FileLock(folder / "lock")
        try:
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
        raise busy(self._storage.root, lock.holder())

    def _recover(self) -> None:
        """Put right what a killed writer has left; only under the exclusive lock."""
        storage = self._storage
        storage.remove_temporaries(own_only=False)
        for name in storage.list(f"{PRIVATE}/claims"):
            storage.path(f"{PRIVATE}/claims/{name}").unlink(missing_ok=True)
        with structure_lock(storage.path(PRIVATE)):
            store = load(storage)
            documents = store.arrays()
            stages = len(store.stages)
            for name in ("stage", "stage_order", "weights_fingerprint"):
                extra = [n for n in storage.list(name) if n.startswith("c.") and int(n[2:]) >= stages]
                storage.delete(f"{name}/{n}" for n in extra)
            for name in storage.list(""):
                folder = storage.path(name)
                if (
                    name not in documents
                    and name != PRIVATE
                    and folder.is_dir()
                    and storage.list(name) == ["zarr.json"]
                ):
                    storage.delete([f"{name}/zarr.json"])
                    folder.rmdir()
            store.publish()
            self._finish_compactions(store)

    def _finish_compactions(self, store: Store) -> None:
        names = set(self._storage.list(commits.FOLDER))
        for stage in range(len(store.stages)):
            for group in range(len(store.groups)):
                if f"{stage:04d}.{group}" in names or any(n.startswith(f"{stage:04d}.{group}.") for n in names):
                    compact(store, stage, group)

    @property
    def block_size(self) -> int:
        """Entity rows in a block."""
        return self.store.block_size

    def blocks(self) -> list[Block]:
        """All blocks of the store."""
        geometry = self.store.geometry
        names = tuple(self.store.layouts)
        return [Block(b, *geometry.rows(b), names) for b in range(geometry.blocks)]

    def stage(
        self,
        name: str,
        *,
        order: int,
        fingerprint: str,
        provenance: Mapping[str, Any] | None = None,
        allow_same_weights: bool = False,
    ) -> StageWriter:
        """Add a stage, or resume it; a context manager.

        Parameters
        ----------
        name
            Name of the training checkpoint; never becomes a path.
        order
            Its place in training; 0 is the untrained one where there is one.
        fingerprint
            Hash of the weights.
        provenance
            Further facts about the stage that refuse on mismatch, JSON.
        allow_same_weights
            Accept two stages with the same fingerprint.

        Raises
        ------
        MismatchError
            The store holds the stage with other weights, order or provenance.
        """
        self._background.check()
        facts = metadata.plain(provenance or {}, "provenance")
        entry = StageEntry(str(name), int(order), str(fingerprint), facts)
        with structure_lock(self._storage.path(PRIVATE)):
            self.store = load(self._storage)
            index = check_stage(self.store, entry, allow_same_weights=allow_same_weights)
            if index is None:
                index = len(self.store.stages)
                self.store = add_stage(self.store, entry)
                log(self._storage, "stage added", stage=entry.name)
        return StageWriter(self, index, entry)

    def claim(self, stage: int, block: int) -> None:
        """Make sure that no other living process writes this block."""
        if not self.shared or (stage, block) in self._claims:
            return
        path = self._storage.path(f"{PRIVATE}/claims/{stage:04d}.{block:07d}")
        lock = FileLock(path)
        if not lock.try_acquire():
            raise StoreBusyError(
                f"block {block} of stage {self.store.stages[stage].name!r} in {self._storage.root} is being written by "
                f"{lock.holder()}: give each process its own blocks, stage.pending(rank, size) does"
            )
        lock.note()
        self._claims[stage, block] = lock

    def unclaim(self, stage: int, block: int) -> None:
        """Let others have the block."""
        if lock := self._claims.pop((stage, block), None):
            lock.release(unlink=True)

    def close(self) -> None:
        """Write what is queued, let go of the lock, and raise what went wrong in the background."""
        if not self._lock.held:
            return
        self._background.close()
        for key in list(self._claims):
            self.unclaim(*key)
        self._storage.remove_temporaries(own_only=True)
        if not self.shared:
            self._lock.clear_note()
        self._lock.release()
        self._background.check()

    def __enter__(self) -> ActivationWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None or late is error:
                raise
            error.add_note(f"and writing in the background failed: {late}")


class StageWriter:
    """Writes the blocks of one stage; made by `ActivationWriter.stage`."""

    def __init__(self, writer: ActivationWriter, index: int, entry: StageEntry) -> None:
        self.writer = writer
        self.index = index
        self.name = entry.name
        self._store = writer.store
        self._present = self._committed()

    def _committed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return self._store.commits().present[:, self.index]

    @property
    def complete(self) -> bool:
        """Whether every block of the stage is committed."""
        self.writer._background.drain()
        return bool(self._committed().all())

    def pending(self, rank: int = 0, size: int = 1) -> Iterator[Block]:
        """Blocks that are not committed yet; with `size` > 1 those of one of several processes.

        >>> list(range(7))[1::3]   # what rank 1 of 3 gets of seven blocks
        [1, 4]
        """
        if not 0 <= rank < size:
            raise InputError(f"rank {rank} of {size}: rank goes from 0 to size - 1")
        groups = self._store.groups
        for block in self.writer.blocks()[rank::size]:
            lacking = [v.name for g, group in enumerate(groups) if not self._present[g, block.index] for v in group]
            if lacking:
                yield Block(block.index, block.start, block.stop, tuple(lacking))

    def buffer(self, block: Block) -> BlockBuffer:
        """Room for one block; waits while two blocks are being filled or written."""
        self.writer._background.check()
        if block.index >= self._store.geometry.blocks or self._present[:, block.index].all():
            raise InputError(
                f"block {block.index} of stage {self.name!r} is recorded already, or does not exist: take blocks from "
                "stage.pending()"
            )
        self.writer.claim(self.index, block.index)
        try:
            memory = self.writer._background.acquire()
        except BaseException:
            self.writer.unclaim(self.index, block.index)
            raise
        groups = self._store.groups
        needed = tuple(v.name for g, group in enumerate(groups) if not self._present[g, block.index] for v in group)
        flags = [v.name for group in groups for v in group if v.attrs.get("kind") == "flag"]
        exact = Block(block.index, *self._store.geometry.rows(block.index), needed)
        return StageBuffer(self, exact, memory, flags)

    def submit(self, buffer: BlockBuffer) -> None:
        """Hand a filled buffer over; it is checksummed, written, made durable and committed in the background.

        Raises
        ------
        InputError
            Rows were neither written nor skipped.
        """
        self.writer._background.check()
        if not isinstance(buffer, StageBuffer) or buffer.owner is not self:
            raise InputError("this buffer belongs to another stage: submit it where it was made")
        memory = buffer.finish()
        self._present[:, buffer.block.index] = True
        self.writer._background.submit(lambda: self._commit(buffer.block, memory), memory)

    def _commit(self, block: Block, memory: Memory) -> None:
        storage, store = self._store.storage, self._store
        images = {name: memory.images[name] for name in block.variables}
        storage.put_many((image.layout.key(self.index, block.index), image.seal()) for image in images.values())
        records = []
        for group in sorted({store.group_of[name] for name in images}):
            files = {name: image.digest for name, image in images.items() if store.group_of[name] == group}
            record = commits.block_record(self.index, self.name, block.index, group, files)
            records.append((commits.block_key(self.index, block.index, group), (record,)))
        storage.put_many(records)
        self.writer.unclaim(self.index, block.index)

    def release(self, block: Block, memory: Memory) -> None:
        """Take back the memory of a buffer that is not going to be written."""
        self.writer._background.give_back(memory)
        self.writer.unclaim(self.index, block.index)

    def close(self) -> None:
        """Wait for the disk; when the stage is complete, pack its commit records into one."""
        background = self.writer._background
        background.drain()
        background.check()
        with structure_lock(self._store.storage.path(PRIVATE)):
            present = self._committed()
            names = set(self._store.storage.list(commits.FOLDER))
            for group in range(len(self._store.groups)):
                if present[group].all() and any(n.startswith(f"{self.index:04d}.{group}.") for n in names):
                    compact(self._store, self.index, group)
                    log(self._store.storage, "stage complete", stage=self.name, group=group)

    def __enter__(self) -> StageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.writer._background.drain()


class StageBuffer(BlockBuffer):
    """A block buffer that knows the stage it belongs to."""

    def __init__(self, owner: StageWriter, block: Block, memory: Memory, flags: list[str]) -> None:
        super().__init__(owner.name, block, memory, flags)
        self.owner = owner

    def discard(self) -> None:
        """Give the block up; nothing of it is written."""
        if self.memory is not None:
            memory, self.memory = self.memory, None
            self.owner.release(self.block, memory)


def compact(store: Store, stage: int, group: int) -> None:
    """Pack the commit records of a stage into one, if all its blocks are there; under the structure lock."""
    storage, blocks = store.storage, store.geometry.blocks
    prefix = f"{stage:04d}.{group}"
    singles = [n for n in storage.list(commits.FOLDER) if n.startswith(prefix + ".")]
    if not singles:
        return
    digests = commits.read_stage(storage, stage, group, blocks)
    names = [v.name for v in store.groups[group]]
    if all(len(digests.get(name, {})) == blocks for name in names):
        record = commits.stage_record(stage, store.stages[stage].name, group, digests, blocks)
        storage.put(commits.stage_key(stage, group), record)
        storage.delete(f"{commits.FOLDER}/{n}" for n in singles)
