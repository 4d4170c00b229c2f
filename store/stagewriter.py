"""StageWriter: the blocks of one stage, from an empty buffer to a durable commit record.

A block becomes visible in three steps: its files are made durable under
temporary names and renamed (`storage`), then one small commit record is made
durable (`commits`). Killed at any moment, a block is either committed or it is
not there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store import commits
from stratalens.store.ahead import ahead
from stratalens.store.buffers import Block, BlockBuffer, Memory
from stratalens.store.errors import InputError
from stratalens.store.history import log
from stratalens.store.manifest import StageEntry, Store, load
from stratalens.store.measured import record_errors
from stratalens.store.seam import Pending, Storage
from stratalens.store.shards import FileImage
from stratalens.store.threads import cores

if TYPE_CHECKING:
    from stratalens.store.writer import ActivationWriter

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

    def _write(self, block: Block, memory: Memory) -> Pending:
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
                    log(self._store.storage, "stage complete", stage=self.name, group=group)
            record_errors(load(self._store.storage))

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

    files: Pending
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
        """Give the block up; nothing of it is written."""
        if self.memory is not None:
            memory, self.memory = self.memory, None
            self.owner.release(self.block, memory)


def _sealed(image: FileImage) -> Generator[NDArray[np.uint8]]:
    """The bytes of a file; those of a large one are summed a step ahead of writing, where there is a core for it."""
    return ahead(image.seal()) if image.layout.file_nbytes >= LARGE and cores() > 1 else image.seal()


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
