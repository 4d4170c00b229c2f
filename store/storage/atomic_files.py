"""Atomic, durable replacement of files and folders next to a store."""

from __future__ import annotations

import os
import shutil
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


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Make a folder that appears complete and durable: yield its temporary name, rename it if the block succeeds.

    The target is absent or an empty folder. `.<name>.lock` is locked meanwhile, so that two processes cannot mix their
    files. A killed process leaves `.<name>.part` behind, and the next one removes it.

    Raises:
        StoreBusyError: another process is making the same folder.
        StratalensError: as in `replaced_file`.
    """
    temporary = target.with_name(f".{target.name}.part")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    if not lock.try_acquire():
        raise StoreBusyError(f"{target} is being written by another process: wait until it has finished")
    try:
        with convert_write_errors(target):
            remove_tree(temporary)
            try:
                temporary.mkdir()
                yield temporary
                fsync_tree(temporary)
                if target.is_dir():
                    target.rmdir()  # it is empty
                temporary.replace(target)
                fsync_folder(target.absolute().parent)
            finally:
                remove_tree(temporary)
    finally:
        lock.release(unlink=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder with its files; do nothing if it does not exist."""
    if folder.is_dir():
        shutil.rmtree(folder)


def fsync_tree(folder: Path, since: int = 0) -> None:
    """Make the files and folders below a folder durable.

    Args:
        folder: the folder; it is fsynced as well.
        since: skip files and folders that have not changed since this time, in nanoseconds.
    """
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.stat().st_ctime_ns >= since:
            fsync_folder(path)  # the call is the same for a file


def remove_file(path: Path) -> None:
    """Remove a file durably; do nothing if it does not exist."""
    with convert_write_errors(path):
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)
