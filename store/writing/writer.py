"""ActivationWriter: who may write a store, what a killed writer left, and the stages.

Writing the blocks of one stage is in `stagewriter`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import InputError, StoreBusyError
from stratalens.store.format import metadata
from stratalens.store.format.shards import FileImage
from stratalens.store.state import commit_log as commits
from stratalens.store.state.history import append_history, drop_torn_lines
from stratalens.store.state.manifest import StageEntry, Store, load
from stratalens.store.state.provenance import check_stage
from stratalens.store.state.publish import add_stage, commit_root, compact
from stratalens.store.storage.base import PRIVATE, Lock, StagedWrite, Storage
from stratalens.store.storage.local_locks import busy_error
from stratalens.store.storage.resolve import storage_at
from stratalens.store.threads import cores
from stratalens.store.writing.buffers import Allocate, Block, BlockBuffer, Memory
from stratalens.store.writing.quantization_error import update_quantization_errors
from stratalens.store.writing.write_queue import WriteQueue, prefetch

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
        self.store = store if isinstance(store, Store) else load(storage_at(store))
        self.shared = shared
        self._storage = self.store.storage
        self._lock = self._take_lock()
        self._claims: dict[tuple[int, int], Lock] = {}
        try:
            self.store = load(self._storage)
            self.background = WriteQueue(lambda: Memory(self.store.layouts, allocate))
        except BaseException:
            self._lock.release()
            raise

    def _take_lock(self) -> Lock:
        lock = self._storage.writer_lock()
        try:
            # The processes of one job begin at the same moment: while the first one recovers, the others wait here.
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
        """Put right what a killed writer has left; only under the exclusive lock, and that of the structure."""
        storage = self._storage
        storage.remove_temporaries(own_only=False)
        drop_torn_lines(storage)
        storage.clear_claims()
        store = load(storage)
        documents = store.arrays()
        stages = len(store.stages)
        for name in ("stage", "stage_order", "weights_fingerprint"):
            extra = [n for n in storage.list(name) if n.startswith("c.") and int(n[2:]) >= stages]
            storage.delete(f"{name}/{n}" for n in extra)
        for name in storage.list(""):
            known = name in documents or name == PRIVATE
            if not known and storage.is_folder(name) and storage.list(name) == ["zarr.json"]:
                storage.delete([f"{name}/zarr.json"])
                storage.remove_folder(name)
        commit_root(store, first=stages)
        self._finish_compactions(store)
        update_quantization_errors(store)

    def _finish_compactions(self, store: Store) -> None:
        for name in commits.block_records(self._storage):
            stage, group = map(int, name.split("."))
            if stage < len(store.stages) and group < len(store.groups):
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
        self.background.check()
        facts = metadata.plain(provenance or {}, "provenance")
        entry = StageEntry(str(name), int(order), str(fingerprint), facts)
        with self._storage.structure_lock():
            fresh = load(self._storage)
            if fresh.groups != self.store.groups:
                raise StoreBusyError(
                    f"variables were added to {self._storage.root} since this writer was opened: open it again"
                )
            self.store = fresh
            index = check_stage(self.store, entry, allow_same_weights=allow_same_weights)
            if index is None:
                index = len(self.store.stages)
                self.store = add_stage(self.store, entry)
                append_history(self._storage, "stage added", stage=entry.name)
        return StageWriter(self, index, entry)

    def claim(self, stage: int, block: int) -> None:
        """Make sure that no other living process writes this block."""
        if not self.shared or (stage, block) in self._claims:
            return
        lock = self._storage.claim_lock(f"{stage:04d}.{block:07d}")
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
        try:
            self.background.close()
            for key in list(self._claims):
                self.unclaim(*key)
            self._storage.remove_temporaries(own_only=True)
            if not self.shared:
                self._lock.clear_note()
        finally:
            self._lock.release()
            self.background.check()  # what went wrong first says more than what follows from it

    def _repr_html_(self) -> str:
        from stratalens.store.display import store_html
        from stratalens.store.state.info import info

        return store_html(info(self.store.storage.root))

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


LARGE = 8 << 20  # of less, starting a thread takes longer than what it saves


class StageWriter:
    """Writes the blocks of one stage; made by `ActivationWriter.stage`."""

    def __init__(self, writer: ActivationWriter, index: int, entry: StageEntry) -> None:
        self.writer = writer
        self.index = index
        self.name = entry.name
        self._store = writer.store
        self._present = self._committed()

    def _committed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        store = self._store
        return commits.present_at(store.storage, self.index, self.name, len(store.groups), store.geometry.blocks)

    @property
    def complete(self) -> bool:
        """Whether every block of the stage is committed."""
        self.writer.background.drain()
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
        self.writer.background.check()
        if not isinstance(buffer, StageBuffer) or buffer.owner is not self:
            raise InputError("this buffer belongs to another stage: submit it where it was made")
        memory = buffer.finish()
        self._present[:, buffer.block.index] = True
        self.writer.background.submit(lambda: self._write(buffer.block, memory), memory)

    def _write(self, block: Block, memory: Memory) -> StagedWrite:
        """Write a block's files; what is returned makes them durable and puts the commit record."""
        storage, store = self._store.storage, self._store
        images = {name: memory.images[name] for name in block.variables}
        with ExitStack() as sealing:
            files = storage.write_many(
                (image.layout.key(self.index, block.index), sealing.enter_context(closing(_sealed(image))))
                for image in images.values()
            )
        records = []
        for group in sorted({store.group_of[name] for name in images}):
            digests = {name: image.digest for name, image in images.items() if store.group_of[name] == group}
            record = commits.block_record(self.index, self.name, block.index, group, digests)
            records.append((commits.block_key(self.index, block.index, group), (record,)))
        return Commit(files, storage, records, lambda: self.writer.unclaim(self.index, block.index))

    def release(self, block: Block, memory: Memory) -> None:
        """Take back the memory of a buffer that is not going to be written."""
        self.writer.background.give_back(memory)
        self.writer.unclaim(self.index, block.index)

    def close(self) -> None:
        """Wait for the disk; when the stage is complete, pack its commit records into one."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.writer.background.drain()


@dataclass
class Commit:
    """A written block: its files are made durable and visible, then its records, then others may have it."""

    files: StagedWrite
    storage: Storage
    records: list[tuple[str, tuple[bytes]]]
    done: Callable[[], None]

    def publish(self) -> None:
        """Commit the block."""
        self.files.publish()
        self.storage.put_many(self.records)
        self.done()

    def discard(self) -> None:
        """Give it up."""
        self.files.discard()


class StageBuffer(BlockBuffer):
    """A block buffer that knows the stage it belongs to."""

    def __init__(self, owner: StageWriter, block: Block, memory: Memory, flags: list[str]) -> None:
        super().__init__(owner.name, block, memory, flags)
        self.owner = owner

    def discard(self) -> None:
        """Give the block up, and let the stage use its memory for another one."""
        memory = self.memory
        super().discard()
        if memory is not None:
            self.owner.release(self.block, memory)


def _sealed(image: FileImage) -> Generator[NDArray[np.uint8]]:
    """The bytes of a file; those of a large one are summed a step ahead of writing, where there is a core for it."""
    return prefetch(image.seal()) if image.layout.file_nbytes >= LARGE and cores() > 1 else image.seal()
