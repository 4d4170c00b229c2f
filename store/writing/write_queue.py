"""Background threads that write blocks and commit them.

One thread checksums and writes blocks, the other makes them durable and commits them.
At most two blocks are in memory at a time, counting those being filled and those being written; a request for a third
waits. A written block needs no memory, only time on the disk, and the next block is written meanwhile; at most two
written blocks wait for their commit. An error in a thread is raised at the next call of the thread that fills buffers,
and again at close.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stratalens.store.errors import InputError
from stratalens.store.storage.base import StagedWrite
from stratalens.store.writing.buffers import BlockMemory

Job = Callable[[], StagedWrite]

T = TypeVar("T")

BUFFERS = 2


class WriteQueue:
    """Two worker threads and a pool of `BUFFERS` block memories.

    Args:
        make_memory: function that allocates the memory of one block.
    """

    def __init__(self, make_memory: Callable[[], BlockMemory]) -> None:
        self._make_memory = make_memory
        self._free: list[BlockMemory] = []
        self._allocated = 0
        self._uncommitted = 0  # blocks that were submitted and are not committed
        self._writing = 0  # those of them that still need their memory
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[tuple[Job, BlockMemory] | None] = queue.SimpleQueue()
        self._staged: queue.Queue[StagedWrite | None] = queue.Queue(maxsize=1)
        self._threads: list[threading.Thread] = []

    def check(self) -> None:
        """Raise the first error of a thread."""
        if self._error is not None:
            raise self._error

    def acquire(self) -> BlockMemory:
        """Return memory for one more block.

        Wait for the disk, but not for the caller's own open buffers.
        """
        with self._changed:
            while True:
                self.check()
                if self._free:
                    return self._free.pop()
                if self._allocated < BUFFERS:
                    self._allocated += 1
                    break
                if self._writing == 0:
                    raise InputError(
                        f"more than {BUFFERS} blocks are open at once: submit or discard a buffer before asking for "
                        "another (rows may come in any order inside a block, not across the whole table)"
                    )
                self._changed.wait()
        try:
            return self._make_memory()
        except BaseException:
            with self._changed:
                self._allocated -= 1
            raise

    def give_back(self, memory: BlockMemory) -> None:
        """Take back the memory of a block that will not be written."""
        with self._changed:
            self._free.append(memory)
            self._changed.notify_all()

    def submit(self, job: Job, memory: BlockMemory) -> None:
        """Queue the job that writes a block."""
        with self._changed:
            self._uncommitted += 1
            self._writing += 1
            if not self._threads:
                for name, work in (("writer", self._write), ("committer", self._commit)):
                    self._threads.append(threading.Thread(target=work, name=f"stratalens-{name}", daemon=True))
                    self._threads[-1].start()
        self._jobs.put((job, memory))

    def drain(self) -> None:
        """Wait until every queued block is committed or has failed."""
        with self._changed:
            while self._uncommitted:
                self._changed.wait()

    def close(self) -> None:
        """Finish the queued blocks and end the threads; `check` still raises their error."""
        if self._threads:
            self._jobs.put(None)
        while self._threads:
            self._threads.pop().join()
        self._free.clear()

    def _write(self) -> None:
        """Write queued blocks; the first thread runs this."""
        while (item := self._jobs.get()) is not None:
            job, memory = item
            staged: StagedWrite | None = None
            error: BaseException | None = None
            if self._error is None:
                try:
                    staged = job()
                except BaseException as raised:  # `check` raises it in the caller's thread
                    error = raised
            with self._changed:
                self._error = self._error or error
                self._writing -= 1
                if staged is None:
                    self._uncommitted -= 1
                self._free.append(memory)
                self._changed.notify_all()
            if staged is not None:
                self._staged.put(staged)
        self._staged.put(None)

    def _commit(self) -> None:
        """Commit written blocks; the second thread runs this."""
        while (staged := self._staged.get()) is not None:
            error: BaseException | None = None
            try:
                if self._error is None:
                    staged.publish()
                else:
                    staged.discard()
            except BaseException as raised:  # `check` raises it in the caller's thread
                error = raised
            with self._changed:
                self._error = self._error or error
                self._uncommitted -= 1
                self._changed.notify_all()


def prefetch(items: Iterator[T]) -> Generator[T]:
    """Yield the same items in order, while a thread makes the next one.

    Closing the generator stops the thread.

    >>> list(prefetch(iter([1, 2, 3])))
    [1, 2, 3]
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="stratalens-prefetch") as pool:
        upcoming = pool.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, items, end)
            yield item  # type: ignore[misc] # every item but `end` is a T
