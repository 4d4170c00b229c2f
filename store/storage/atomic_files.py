"""Atomic, durable replacement of files and folders next to a store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from stratalens.store.errors import StoreBusyError
from stratalens.store.files import fsync_folder
from stratalens.store.storage.disk import convert_write_errors
from stratalens.store.storage.local_locks import FileLock, try_flock


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

    The target is absent or an empty folder. The temporary folder `.<name>.part` is locked, so that two processes cannot
    mix their files. A killed process leaves it behind, and the next one replaces it.

    Raises:
        StoreBusyError: another process is making the same folder.
        StratalensError: as in `replaced_file`.
    """
    temporary = target.with_name(f".{target.name}.part")
    with convert_write_errors(target):
        lock = _locked_folder(temporary, target)
        try:
            _empty(temporary)
            try:
                yield temporary
                fsync_tree(temporary)
                if target.is_dir():
                    target.rmdir()  # it is empty
                temporary.replace(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            fsync_folder(target.absolute().parent)
        finally:
            os.close(lock)


def _locked_folder(folder: Path, target: Path) -> int:
    """Make a folder unless it exists, lock it and return its descriptor."""
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its owner has just renamed it
        if not try_flock(descriptor):
            os.close(descriptor)
            raise StoreBusyError(f"{target} is being written by another process: wait until it has finished")
        with suppress(FileNotFoundError):
            if folder.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


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
