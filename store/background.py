"""The one background thread that seals, writes and commits blocks.

At most two blocks exist at a time: those being filled and those being written
together; asking for a third waits. An error in the thread is raised at the
next call from the thread that fills, and again at close.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

from stratalens.store.buffers import Memory
from stratalens.store.errors import InputError

Job = Callable[[], None]
BUFFERS = 2


class Background:
    """A worker thread with a pool of `BUFFERS` block memories."""

    def __init__(self, make_memory: Callable[[], Memory]) -> None:
        self._make_memory = make_memory
        self._free: list[Memory] = []
        self._made = 0
        self._queued = 0
        self._open = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[tuple[Job, Memory] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, memory = item
            error: BaseException | None = None
            if self._error is None:
                try:
                    job()
                except BaseException as caught:  # handed to the caller, who raises it
                    error = caught
            with self._changed:
                self._error = self._error or error
                self._queued -= 1
                self._free.append(memory)
                self._changed.notify_all()

    def check(self) -> None:
        """Raise what went wrong in the thread."""
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
                if self._queued == 0:
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
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stratalens-writer", daemon=True)
                self._thread.start()
        self._jobs.put((job, memory))

    def drain(self) -> None:
        """Wait until everything queued is written (or has failed)."""
        with self._changed:
            while self._queued:
                self._changed.wait()

    def close(self) -> None:
        """Finish what is queued and end the thread; errors stay for `check`."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._free.clear()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
