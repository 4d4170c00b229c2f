"""A local storage that kills its own process at a chosen change of the disk, and one that counts the changes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stratalens.store.storage.local import LocalStorage


class Dying(LocalStorage):
    """Kills its process at the n-th change of the disk, before or in the middle of it."""

    def __init__(self, root: Any, moment: int, half: bool) -> None:
        super().__init__(root)
        self.left, self.half, self.gate = moment, half, threading.Lock()

    def tick(self) -> None:
        with self.gate:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, descriptor: int, data: memoryview) -> int:
        if self.half and self.left == 1 and data.nbytes > 1:
            os.write(descriptor, data[: data.nbytes // 2])
        self.tick()
        return super()._write(descriptor, data)

    def _open(self, path: Path) -> int:
        self.tick()
        return super()._open(path)

    def _fsync(self, descriptor: int, path: Path) -> None:
        self.tick()
        super()._fsync(descriptor, path)

    def _rename(self, source: Path, target: Path) -> None:
        self.tick()
        super()._rename(source, target)

    def _fsync_folder(self, path: Path) -> None:
        self.tick()
        super()._fsync_folder(path)

    def _mkdir(self, path: Path) -> None:
        self.tick()
        super()._mkdir(path)

    def _unlink(self, path: Path) -> None:
        self.tick()
        super()._unlink(path)


class Counting(Dying):
    """Counts the changes of the disk."""

    def __init__(self, root: Any) -> None:
        super().__init__(root, 0, False)

    def tick(self) -> None:
        with self.gate:
            self.left += 1


def forked(work: Callable[[], object]) -> bool:
    """Run something in a forked process that may kill itself; whether it did. It must not fail."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "the process failed instead of being killed"
    return status != 0
