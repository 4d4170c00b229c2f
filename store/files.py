"""Paths of users, and atomic, durable replacement of files next to a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stratalens.store.errors import StoreBusyError


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a local path as the user means it: a leading ~ is the home folder.

    >>> str(user_path("runs/~.zarr")), user_path("~/run.zarr").is_absolute()
    ('runs/~.zarr', True)
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no home folder


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Replace a file by UTF-8 text, durably; return the path."""
    target = user_path(path)
    with replaced_file(target) as file:
        file.write(text.encode())
    return target


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
    # Imported here because `store.storage` imports this module.
    from stratalens.store.storage.disk import convert_write_errors
    from stratalens.store.storage.local_locks import FileLock

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
    from stratalens.store.storage.disk import convert_write_errors

    with convert_write_errors(path):
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
