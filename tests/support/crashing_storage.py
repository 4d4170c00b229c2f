"""A disk that kills its own process at a chosen change, and one that counts the changes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from stratalens.store.storage.disk import DiskOperations


class WatchedDisk(DiskOperations):
    """Calls `tick` before every change of the disk."""

    def tick(self) -> None:
        raise NotImplementedError

    def open(self, path: Path) -> int:
        self.tick()
        return super().open(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self.tick()
        return super().write(descriptor, data)

    def fsync(self, descriptor: int, path: Path) -> None:
        self.tick()
        super().fsync(descriptor, path)

    def rename(self, source: Path, target: Path) -> None:
        self.tick()
        super().rename(source, target)

    def fsync_folder(self, path: Path) -> None:
        self.tick()
        super().fsync_folder(path)

    def mkdir(self, path: Path) -> None:
        self.tick()
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        self.tick()
        super().unlink(path)


class DyingDisk(WatchedDisk):
    """Kills its process at the n-th change, before it or in the middle of it."""

    def __init__(self, moment: int, half: bool) -> None:
        self.left, self.half, self.gate = moment, half, threading.Lock()

    def tick(self) -> None:
        with self.gate:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.half and self.left == 1 and data.nbytes > 1:
            os.write(descriptor, data[: data.nbytes // 2])
        return super().write(descriptor, data)


class CountingDisk(WatchedDisk):
    """Counts the changes."""

    def __init__(self) -> None:
        self.changes, self.gate = 0, threading.Lock()

    def tick(self) -> None:
        with self.gate:
            self.changes += 1


def forked(work: Callable[[], object]) -> bool:
    """Run a function in a forked process that may kill itself; return whether it did. The function must not fail."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "the process failed instead of being killed"
    return status != 0
