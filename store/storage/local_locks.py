"""Locks on a folder: the lock of the writers, claims of single blocks, the lock for changes of the root document.

All locks are `flock`s, which the kernel releases when their holder dies; an existing lock file means nothing.
A writer holds the writers' lock exclusively, or shares it with other ranks of its job. Ranks claim each block before
they write it. `flock` exists on POSIX systems only, so stratalens needs Linux or macOS.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stratalens.store.errors import StoreBusyError, StratalensError
from stratalens.store.storage.base import Lock

try:
    import fcntl
except ImportError as missing:
    raise ImportError("stratalens needs Linux or macOS: this system has no POSIX file locks (fcntl)") from missing

PATIENCE = 60.0  # seconds to wait for another process that changes the root document


_STEP = 0.02  # seconds between two attempts


class FileLock:
    """One flock on one file; nothing here waits for another holder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock without waiting; return whether that succeeded.

        Raises:
            StratalensError: the file system has no flock.
        """
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                # Another holder may have removed the file between open and flock.
                same = os.fstat(descriptor).st_ino == self.path.stat().st_ino
            except FileNotFoundError:
                same = False
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
                raise StratalensError(
                    f"{self.path} cannot be locked ({error.strerror}). Write the store on a file system with flock, "
                    "and copy it when it is complete"
                ) from error
            except BaseException:
                os.close(descriptor)
                raise
            if same:
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def note(self) -> None:
        """Write who holds the lock, for error messages of other processes."""
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def holder(self) -> str:
        """Describe the holder of the lock from its file."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.path.read_text())
            return f"process {note['pid']} on {note['host']}"
        return "another process"

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self, *, unlink: bool = False) -> None:
        """Release the lock; its empty file remains unless `unlink` is set."""
        if self._descriptor < 0:
            return
        if unlink:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def clear_note(self) -> None:
        """Empty the lock file, so that a finished store contains no trace of its writers."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)

    @property
    def acquired(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0


def busy_error(path: object, holder: str) -> StoreBusyError:
    """Return the error for a store that another process writes to."""
    return StoreBusyError(
        f"{path} is being written by {holder}: wait until it has finished. Processes of one job that write "
        "different blocks open the writer with shared=True."
    )


@contextmanager
def wait_for_lock(lock: Lock, where: object) -> Iterator[None]:
    """Wait for the lock and hold it for a change of the root document.

    Args:
        lock: lock of the root document; other processes hold it for moments.
        where: path of the store, for the error message.

    Raises:
        StoreBusyError: the lock was not free for `PATIENCE` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while not lock.try_acquire():
        if time.monotonic() > deadline:
            raise StoreBusyError(
                f"{where}: another process has been changing stages or variables for {PATIENCE:.0f} s. "
                "End it if it hangs, then run the same call again"
            )
        time.sleep(_STEP)
    try:
        yield
    finally:
        lock.release()
