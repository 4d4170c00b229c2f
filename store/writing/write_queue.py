"""Background threads: one seals and writes blocks, one makes them durable and commits them.

At most two blocks exist in memory at a time: those being filled and those being
written together; asking for a third waits. A block that is written needs its memory no
more, only waits for the disk; those waits go on while the next block is written. At
most two blocks wait so. An error in a thread is raised at the next call from the thread
that fills, and again at close.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from stratalens.store.errors import InputError
from stratalens.store.storage.base import StagedWrite
from stratalens.store.writing.buffers import Memory

Job = Callable[[], StagedWrite]


BUFFERS = 2


class WriteQueue:
    """Worker threads with a pool of `BUFFERS` block memories."""

    def __init__(self, make_memory: Callable[[], Memory]) -> None:
        self._make_memory = make_memory
        self._free: list[Memory] = []
        self._made = 0
        self._queued = 0  # blocks that are not committed
        self._writing = 0  # those of them that still need their memory
        self._open = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[tuple[Job, Memory] | None] = queue.SimpleQueue()
        self._written: queue.Queue[StagedWrite | None] = queue.Queue(maxsize=1)
        self._threads: list[threading.Thread] = []

    def _write(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, memory = item
            written: StagedWrite | None = None
            error: BaseException | None = None
            if self._error is None:
                try:
                    written = job()
                except BaseException as caught:  # handed to the caller, who raises it
                    error = caught
            with self._changed:
                self._error = self._error or error
                self._writing -= 1
                if written is None:
                    self._queued -= 1
                self._free.append(memory)
                self._changed.notify_all()
            if written is not None:
                self._written.put(written)
        self._written.put(None)

    def _commit(self) -> None:
        while (written := self._written.get()) is not None:
            error: BaseException | None = None
            try:
                if self._error is None:
                    written.publish()
                else:
                    written.discard()
            except BaseException as caught:  # handed to the caller, who raises it
                error = caught
            with self._changed:
                self._error = self._error or error
                self._queued -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Raise what went wrong in a thread."""
        if self._error is not None:
            raise self._error

    def acquire(self) -> Memory:
        """Memory for one more block; waits for the disk, not for the caller's own open buffers."""
        with self._changed:
            while True:
                self.check()
                if self._free:
                    self._open += 1
                    return self._free.pop()
                if self._made < BUFFERS:
                    self._made += 1
                    self._open += 1
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
                self._made -= 1
                self._open -= 1
            raise

    def give_back(self, memory: Memory) -> None:
        """Return memory that is not going to be written."""
        with self._changed:
            self._open -= 1
            self._free.append(memory)
            self._changed.notify_all()

    def submit(self, job: Job, memory: Memory) -> None:
        """Queue a block for writing."""
        with self._changed:
            self._open -= 1
            self._queued += 1
            self._writing += 1
            if not self._threads:
                for name, work in (("writer", self._write), ("committer", self._commit)):
                    self._threads.append(threading.Thread(target=work, name=f"stratalens-{name}", daemon=True))
                    self._threads[-1].start()
        self._jobs.put((job, memory))

    def drain(self) -> None:
        """Wait until everything queued is written (or has failed)."""
        with self._changed:
            while self._queued:
                self._changed.wait()

    def close(self) -> None:
        """Finish what is queued and end the threads; errors stay for `check`."""
        if self._threads:
            self._jobs.put(None)
        while self._threads:
            self._threads.pop().join()
        self._free.clear()

    def __enter__(self) -> WriteQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


T = TypeVar("T")


def prefetch(items: Iterator[T]) -> Generator[T]:
    """The same items in the same order, the next one made meanwhile. Once it is closed, nothing is made any more.

    >>> list(prefetch(iter([1, 2, 3])))
    [1, 2, 3]
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="stratalens-ahead") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc] # whatever is not the end is an item
