"""A store in a local or mounted folder: durable writes and positioned reads."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, InputError, StratalensError
from stratalens.store.files import fsync_folder
from stratalens.store.storage.base import OBJECT_LIMIT, PRIVATE, TEMPORARY, Buffer, ByteRange, Kind
from stratalens.store.storage.disk import (
    DiskOperations,
    StagedFiles,
    convert_write_errors,
    fsync_folders,
    write_error,
)
from stratalens.store.storage.local_locks import FileLock, wait_for_lock

T = TypeVar("T")


Default = TypeVar("Default")


def read_error(path: str | Path, error: OSError) -> StratalensError:
    """Return the error for a file or folder that cannot be read."""
    if error.errno == errno.ELOOP:
        return InputError(f"{path} is a link that points to itself (a loop): give the path of a folder")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path} may not be read ({error.strerror}): ask for permission, or run as its owner")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StratalensError(
            f"{path} cannot be opened ({error.strerror}): close some files, or raise the limit (ulimit -n)"
        )
    if error.errno not in (errno.EIO, errno.EISDIR, errno.EINVAL, errno.ENODATA):
        return StratalensError(f"{path} cannot be read ({error.strerror}). This is no sign of damage; try again")
    return DamagedError(
        f"{path} cannot be read ({error.strerror}): run `stratalens verify` to see which data it affects"
    )


_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux: a read fails with EAGAIN instead of waiting for the disk


@dataclass
class NoWaitSupport:
    """Whether the file system of a store supports reads with RWF_NOWAIT; tmpfs, for example, does not."""

    supported: bool = _NOWAIT != 0


class ReadHandle:
    """Positioned reads of one file straight into memory; a context manager."""

    gap = 1 << 12

    def __init__(self, descriptor: int, path: str, nowait: NoWaitSupport) -> None:
        self._descriptor = descriptor
        self._path = path
        self._nowait = nowait

    def __enter__(self) -> ReadHandle:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def size(self) -> int:
        """Return the bytes of the object."""
        return os.fstat(self._descriptor).st_size

    def expect(self, offset: int, nbytes: int) -> None:
        """Ignore the hint that this range will be read: local reads are cheap."""

    def read_into(self, buffers: Sequence[NDArray[np.uint8]], offset: int) -> bool:
        """Fill the buffers in order from `offset` on; return False if the object is too short."""
        unfilled = [b.data.cast("B") for b in buffers if b.nbytes]
        while unfilled:
            try:
                count = os.preadv(self._descriptor, unfilled[:512], offset)
            except OSError as error:
                raise read_error(self._path, error) from error
            if count == 0:
                return False
            offset += count
            while unfilled and count >= unfilled[0].nbytes:
                count -= unfilled.pop(0).nbytes
            if count:
                unfilled[0] = unfilled[0][count:]
        return True

    def read_pieces(self, memory: NDArray[np.uint8], ranges: Sequence[ByteRange]) -> bool:
        """Fill `memory` with ranges of the file, one after the other; return False if the file is too short.

        If the first range is not in the page cache, the kernel gets all ranges at once and loads nothing around
        them. The disk then does not answer one range after the other.
        """
        view, descriptor, preadv, position = memory.data, self._descriptor, os.preadv, 0
        try:
            nowait = self._nowait.supported
            for offset, nbytes in ranges:
                target = (view[position : position + nbytes],)
                count = self._read_first(target, ranges) if nowait else preadv(descriptor, target, offset)
                nowait = False
                end = position + nbytes
                if count < nbytes and not self.read_into((memory[position + count : end],), offset + count):
                    return False
                position = end
        except OSError as error:
            raise read_error(self._path, error) from error
        return True

    def _read_first(self, target: tuple[memoryview], ranges: Sequence[ByteRange]) -> int:
        """Read the first range; if that would wait for the disk, announce all ranges before."""
        offset = ranges[0][0]
        try:
            return os.preadv(self._descriptor, target, offset, _NOWAIT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._nowait.supported = False
            elif error.errno == errno.EAGAIN:
                self._announce(ranges)
            else:
                raise
        return os.preadv(self._descriptor, target, offset)

    def _announce(self, ranges: Sequence[ByteRange]) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for offset, nbytes in ranges:
                os.posix_fadvise(self._descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


def _open_regular(path: str) -> int:
    """Open a regular file for reading; a named pipe or a device raises instead of blocking or never ending.

    Raises:
        DamagedError: the path is something else than a file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path} is no regular file: run `stratalens verify` to see which data it affects")
    return descriptor


def _read_whole(path: str, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes."""
    with open(_open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DamagedError(f"{path} has {size} bytes, more than the {limit} that a file of its kind can have")
        return file.read(size)


def _file_sizes(path: str) -> dict[str, int]:
    with os.scandir(path) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)  # noqa: PTH116 - faster than Path, and called before every read
    return status.st_ino, status.st_mtime_ns, status.st_size


class LocalStorage:
    """A store in a folder of a local or mounted file system.

    Args:
        root: folder of the store.
        disk: performs all changes of the disk; tests pass their own. A pickled storage uses the real disk again.
    """

    high_latency = False
    read_only = ""
    lists_folders = True

    def __init__(self, root: str | os.PathLike[str], disk: DiskOperations | None = None) -> None:
        self.root = Path(root)
        self._disk = disk or DiskOperations()
        self._root = str(self.root)
        self._token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._counter = itertools.count()
        self._nowait = NoWaitSupport()
        self._real_folders: set[Path] = set()  # those in which this object has found no link
        self.guards: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"LocalStorage({str(self.root)!r})"

    def __reduce__(self) -> tuple[type[LocalStorage], tuple[str]]:
        return type(self), (str(self.root),)

    def path(self, key: str) -> Path:
        """Return the path of a key."""
        return self.root / key if key else self.root

    def check_guards(self) -> None:
        """Raise if a lock that this object holds was lost; every change calls it first."""
        for guard in list(self.guards):
            guard()

    def _check_folder(self, folder: Path) -> None:
        """Raise if a folder is a link, or is below one inside the store: a change would leave the store."""
        while folder != self.root and folder not in self._real_folders:
            if folder.is_symlink():
                raise InputError(f"{folder} is a link: stratalens does not write through links; replace it by a folder")
            self._real_folders.add(folder)
            folder = folder.parent

    # -- folders ----------------------------------------------------------------
    def make_folders(self, keys: Iterable[str]) -> None:
        """Create folders and their parents, durably."""
        with convert_write_errors(self.root):
            self._make_folders(keys)

    def _make_folders(self, keys: Iterable[str]) -> None:
        parents: dict[Path, None] = {}
        for key in keys:
            path = self.path(key)
            self._check_folder(path)
            missing = []
            while not path.is_dir():
                missing.append(path)
                path = path.parent
            for folder in reversed(missing):
                try:
                    self._disk.mkdir(folder)
                except FileExistsError:
                    if not folder.is_dir():
                        raise InputError(f"{folder} is a file, expected a folder: choose another path") from None
                parents[folder.parent] = None
        fsync_folders(self._disk, parents)

    def sync_folders(self, keys: Iterable[str]) -> None:
        """Make the names in folders durable, also those that a killed process left; skip folders that do not exist.

        The key "" also covers the folders above the store, as far as this user may read them.
        """
        folders = {self.path(key): None for key in keys}
        with convert_write_errors(self.root):
            fsync_folders(self._disk, [folder for folder in folders if folder.is_dir()])
            for folder in Path(os.path.abspath(self.root)).parents if self.root in folders else ():  # noqa: PTH100
                with suppress(OSError):
                    fsync_folder(folder)

    def kind(self) -> Kind:
        """Return whether the root is a folder, a file or nothing."""
        return "folder" if self.root.is_dir() else "file" if self.root.exists() else "nothing"

    def is_folder(self, key: str) -> bool:
        """Return whether the key is a folder; a link to a folder does not count."""
        path = self.path(key)
        return path.is_dir() and not path.is_symlink()

    def inner_stores(self) -> list[str]:
        """List the stores in the folder, one level down."""
        return sorted(p.name for p in self.root.iterdir() if (p / PRIVATE).is_dir())

    def neighbours(self) -> list[str]:
        """List the paths of the stores in the same folder."""
        try:
            return sorted(str(self.root.parent / p.name) for p in self.root.parent.iterdir() if (p / PRIVATE).is_dir())
        except OSError:
            return []

    def remove_folder(self, key: str) -> None:
        """Remove an empty folder."""
        with convert_write_errors(self.root):
            self.path(key).rmdir()

    # -- writing ------------------------------------------------------------------
    def put(self, key: str, data: Buffer) -> None:
        """Make one object durable under `key`; replace an existing one atomically."""
        self.put_many([(key, (data,))])

    def put_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> None:
        """Make objects durable, then visible in the order of the argument.

        The slices of each object may be generated while it is written. If anything fails, no object that was still
        invisible remains.
        """
        self.write_many(objects).publish()

    def write_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> StagedFiles:
        """Write objects under temporary names; the result publishes or discards them."""
        self.check_guards()
        staged = StagedFiles(self._disk, self.root, self.check_guards)
        try:
            for key, slices in objects:
                temporary, target = self.path(f"{TEMPORARY}/{self._token}-{next(self._counter)}"), self.path(key)
                self._check_folder(temporary.parent)
                self._check_folder(target.parent)
                staged.write(temporary, target, slices)
        except BaseException as error:
            staged.discard()
            if isinstance(error, OSError):
                raise write_error(self.root, error) from error
            raise
        return staged

    def append(self, key: str, line: bytes) -> None:
        """Append a line to a file, durably; its checksum reveals a line that a loss of power has torn."""
        path = self.path(key)
        self.check_guards()
        with convert_write_errors(self.root):
            self._check_folder(path.parent)
            status = path.lstat() if os.path.lexists(path) else None
            if status is not None and status.st_nlink > 1:  # a hard-linked copy of a store (cp -al) must not change
                self.put(key, (self.get(key) or b"") + line)
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o666)
            try:
                os.write(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if status is None:
                fsync_folder(path.parent)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects durably; ignore those that do not exist."""
        folders: dict[Path, None] = {}
        self.check_guards()
        with convert_write_errors(self.root):
            for key in keys:
                path = self.path(key)
                self._check_folder(path.parent)
                self._disk.unlink(path)
                folders[path.parent] = None
            fsync_folders(self._disk, [f for f in folders if f.is_dir()])

    def remove_temporaries(self, own_only: bool) -> None:
        """Remove temporary files: only those of this object, or, under the exclusive lock, those of all writers."""
        folder = self.path(TEMPORARY)
        with convert_write_errors(self.root):
            self._check_folder(folder)
            for path in folder.iterdir() if folder.is_dir() else ():
                if not own_only or path.name.startswith(self._token + "-"):
                    self._disk.unlink(path)

    # -- reading --------------------------------------------------------------------
    def _read(self, key: str, read: Callable[[str], T], default: Default) -> T | Default:
        """Call `read` with the path of a key; return `default` if it does not exist."""
        path = f"{self._root}/{key}" if key else self._root  # joining Paths takes longer than opening a file
        try:
            return read(path)
        except (FileNotFoundError, NotADirectoryError):
            return default
        except OSError as error:
            raise read_error(path, error) from error

    def get(self, key: str, limit: int = OBJECT_LIMIT) -> bytes | None:
        """Return the content of an object, or None if it does not exist."""
        return self._read(key, lambda path: _read_whole(path, limit), None)

    def list(self, folder: str) -> list[str]:
        """List the names in a folder, sorted; empty if it does not exist."""
        return self._read(folder, lambda path: sorted(p.name for p in Path(path).iterdir()), [])

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, or None if it does not exist."""
        return self._read(key, lambda path: Path(path).stat().st_size, None)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every object in a folder, by name; empty if it does not exist."""
        return self._read(folder, _file_sizes, {})

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """Return a value that changes when the object is replaced, or None if it does not exist."""
        return self._read(key, _stamp, None)

    def is_pinned(self, key: str) -> bool:
        """Return False: another process may replace any file."""
        return False

    def open_read(self, key: str, chunk: int = 0) -> ReadHandle | None:
        """Open an object for positioned reads; None if it does not exist. The size of a chunk does not matter here."""
        return self._read(key, lambda path: ReadHandle(_open_regular(path), path, self._nowait), None)

    # -- locks ------------------------------------------------------------------------
    def writer_lock(self) -> FileLock:
        """Return the lock of the writers of the store."""
        self._check_folder(self.path(PRIVATE))
        return FileLock(self.path(f"{PRIVATE}/lock"))

    def claim_lock(self, name: str) -> FileLock:
        """Return the lock of one block."""
        self._check_folder(self.path(f"{PRIVATE}/claims"))
        return FileLock(self.path(f"{PRIVATE}/claims/{name}"))

    def clear_claims(self) -> None:
        """Remove the lock files of killed writers; only under the exclusive lock."""
        with convert_write_errors(self.root):
            self._check_folder(self.path(f"{PRIVATE}/claims"))
            for name in self.list(f"{PRIVATE}/claims"):
                self.path(f"{PRIVATE}/claims/{name}").unlink(missing_ok=True)

    @contextmanager
    def structure_lock(self) -> Iterator[None]:
        """Return a context manager that holds the lock for changes of the root document."""
        self._check_folder(self.path(PRIVATE))
        lock = FileLock(self.path(f"{PRIVATE}/structure.lock"))
        with wait_for_lock(lock, self.root, self.guards):
            yield
