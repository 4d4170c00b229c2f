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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stratalens.store.errors import MismatchError, StoreBusyError, StratalensError
from stratalens.store.storage.base import Lock
from stratalens.store.storage.disk import convert_write_errors, write_error

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
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(self.path, flags, 0o666)
            except OSError as error:
                raise write_error(self.path.parent, error) from error
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

    def check(self) -> None:
        """Raise if the lock file is not that at its path any more: the folder was moved, removed or replaced.

        Raises:
            MismatchError: the lock was lost.
        """
        try:
            here = self.path.stat()
            own = os.fstat(self._descriptor)
            same = (here.st_dev, here.st_ino) == (own.st_dev, own.st_ino)
        except OSError:
            same = False
        if not same:
            raise MismatchError(
                f"the folder of {self.path} was moved, removed or replaced while this process wrote to it: nothing "
                "more was written. Committed data is safe where the folder is now; run the same call again with "
                "that path to resume"
            )

    def note(self) -> None:
        """Write who holds the lock, for error messages of other processes."""
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        with convert_write_errors(self.path.parent):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)

    def holder(self) -> str:
        """Describe the holder of the lock from its file."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            with self.path.open("rb") as file:
                note = json.loads(file.read(4096))
            pid, host = int(note["pid"]), str(note["host"])
            if host == socket.gethostname() and not _is_alive(pid):
                return f"a process that process {pid} on {host} started (process {pid} itself has ended)"
            return f"process {pid} on {host}"
        return "another process"

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""
        with convert_write_errors(self.path.parent):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self, *, unlink: bool = False) -> None:
        """Release the lock; its empty file remains unless `unlink` is set."""
        if self._descriptor < 0:
            return
        if unlink:
            with suppress(OSError):  # a lock file that stays means nothing
                self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def clear_note(self) -> None:
        """Empty the lock file, so that a finished store contains no trace of its writers."""
        if self._descriptor >= 0:
            with suppress(OSError):  # the note means nothing without the lock
                os.ftruncate(self._descriptor, 0)

    @property
    def acquired(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0


def try_flock(descriptor: int) -> bool:
    """Lock an open file or folder exclusively without waiting; return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def busy_error(path: object, holder: str) -> StoreBusyError:
    """Return the error for a store that another process writes to."""
    return StoreBusyError(
        f"{path} is being written by {holder}: wait until it has finished. Processes of one job that write "
        "different blocks open the writer with shared=True."
    )


@contextmanager
def wait_for_lock(lock: Lock, where: object, guards: list[Callable[[], None]]) -> Iterator[None]:
    """Wait for the lock and hold it for a change of the root document.

    Args:
        lock: lock of the root document; other processes hold it for moments.
        where: path of the store, for the error message.
        guards: of the storage; they have the check of this lock while it is held.

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
        guards.append(lock.check)
        try:
            yield
        finally:
            guards.remove(lock.check)
    finally:
        lock.release()
