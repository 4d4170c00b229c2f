"""Who may write: the store's lock, claims on single blocks, the short lock around structural changes.

All are `flock`s, which the kernel drops when their holder dies, however it
dies; a lock file that is lying around means nothing. A writer holds the
store's lock exclusively, or shared with other writers that agreed to write
together (ranks of one job); those claim each block before they write it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stratalens.store.errors import StoreBusyError, StratalensError
from stratalens.store.storage.base import Lock

PATIENCE = 60.0


_STEP = 0.02


class FileLock:
    """One flock on one file, taken without waiting."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if nobody stands against it."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                # Another holder may have unlinked the file between our open and our lock.
                same = os.fstat(descriptor).st_ino == self.path.stat().st_ino
            except FileNotFoundError:
                same = False
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
                raise StratalensError(
                    f"{self.path} cannot be locked ({error.strerror}): put the store on a file system with flock, "
                    "or copy it there when it is finished"
                ) from error
            except BaseException:
                os.close(descriptor)
                raise
            if same:
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def note(self) -> None:
        """Write who holds the lock, for the other's error message only."""
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def holder(self) -> str:
        """Who holds the lock, as far as its file tells."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.path.read_text())
            return f"process {note['pid']} on {note['host']}"
        return "another process"

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self, *, unlink: bool = False) -> None:
        """Let go; the file stays, empty, unless `unlink`."""
        if self._descriptor < 0:
            return
        if unlink:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def clear_note(self) -> None:
        """Empty the lock file, so that a finished store holds no trace of its writers."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor >= 0


def busy_error(path: object, holder: str) -> StoreBusyError:
    """The error for a store that somebody else is writing."""
    return StoreBusyError(
        f"{path} is being written by {holder}: wait until it has finished. Processes that belong to one job and "
        "write different blocks open the writer with shared=True."
    )


@contextmanager
def wait_for_lock(lock: Lock, where: object) -> Iterator[None]:
    """Hold the lock around a change of the root metadata; waits for others, who hold it for moments."""
    deadline = time.monotonic() + PATIENCE
    while not lock.try_acquire():
        if time.monotonic() > deadline:
            raise StoreBusyError(
                f"{where}: another process has been changing stages or variables for {PATIENCE:.0f} s; "
                "end it if it hangs, then run the same call again"
            )
        time.sleep(_STEP)
    try:
        yield
    finally:
        lock.release()
