"""Atomic, durable replacement of single files next to a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stratalens.store.errors import StoreBusyError
from stratalens.store.files import fsync_folder
from stratalens.store.storage.disk import convert_write_errors
from stratalens.store.storage.local_locks import FileLock


@contextmanager
def replaced_file(target: Path) -> Iterator[BinaryIO]:
    """Replace a file atomically and durably by what the block writes.

    Readers see the old content until the block ends; they keep it if the block fails or the machine stops. The
    temporary file `<target>.part` is locked, so that two processes cannot mix their bytes. A killed process leaves it
    behind, and the next one reuses it.

    Raises:
        StoreBusyError: another process is writing the same file.
        InputError: the folder cannot be written.
        NoSpaceError: the disk is full.
        StratalensError: another operation of the disk failed.
    """
    temporary = target.with_name(target.name + ".part")
    lock = FileLock(temporary)
    if not lock.try_acquire():
        raise StoreBusyError(f"{target} is being written by another process: wait until it has finished")
    published = False
    try:
        with convert_write_errors(target), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
            published = True
            fsync_folder(target.parent)
    finally:
        lock.release(unlink=not published)


def remove_file(path: Path) -> None:
    """Remove a file durably; do nothing if it does not exist."""
    with convert_write_errors(path):
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)
