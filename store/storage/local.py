"""Positioned reads of a local file, and what to say when it cannot be read."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, InputError, NoSpaceError, StratalensError
from stratalens.store.storage.base import PRIVATE, TEMPORARY, Buffer, Kind, Piece
from stratalens.store.storage.local_locks import FileLock, wait_for_lock


def unreadable(path: str | Path, error: OSError) -> StratalensError:
    """The error for a file or folder that cannot be read."""
    if error.errno == errno.ELOOP:
        return InputError(f"{path} is a link that leads back to itself (a loop): give the folder that is meant")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path} may not be read ({error.strerror}): ask for permission, or run as its owner")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StratalensError(
            f"{path} cannot be opened ({error.strerror}): close some files, or allow the process more (ulimit -n)"
        )
    if error.errno not in (errno.EIO, errno.EISDIR, errno.EINVAL, errno.ENODATA):
        return StratalensError(f"{path} cannot be read ({error.strerror}): nothing says that it is damaged; try again")
    return DamagedError(f"{path} cannot be read ({error.strerror}): `stratalens verify` says what is affected")


_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux: says that a read would wait for the disk instead of waiting


@dataclass
class NoWait:
    """Whether a file system can say that a read would wait (tmpfs, for one, cannot); asked once."""

    supported: bool = _NOWAIT != 0


class ReadHandle:
    """Positioned reads straight into memory; a context manager."""

    gap = 1 << 12

    def __init__(self, descriptor: int, path: str, nowait: NoWait) -> None:
        self._descriptor = descriptor
        self._path = path
        self._nowait = nowait

    def __enter__(self) -> ReadHandle:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def size(self) -> int:
        """Bytes of the object."""
        return os.fstat(self._descriptor).st_size

    def expect(self, offset: int, nbytes: int) -> None:
        """Hint that this range is going to be read piece by piece; nothing to do where reads are cheap."""

    def read_into(self, buffers: Sequence[NDArray[np.uint8]], offset: int) -> bool:
        """Fill the buffers one after the other from `offset`; False if the object ends before."""
        pending = [b.data.cast("B") for b in buffers if b.nbytes]
        while pending:
            try:
                got = os.preadv(self._descriptor, pending[:512], offset)
            except OSError as error:
                raise unreadable(self._path, error) from error
            if got == 0:
                return False
            offset += got
            while pending and got >= pending[0].nbytes:
                got -= pending.pop(0).nbytes
            if got:
                pending[0] = pending[0][got:]
        return True

    def read_pieces(self, memory: NDArray[np.uint8], pieces: Sequence[Piece]) -> bool:
        """Fill `memory` with these (offset, bytes) of the file, one behind the other; False if the file ends before.

        What is not in the page cache is asked for all at once, and without what lies
        around it, so that the disk does not answer one piece after the other.
        """
        view, descriptor, preadv, at = memory.data, self._descriptor, os.preadv, 0
        try:
            ask = self._nowait.supported
            for offset, nbytes in pieces:
                part = (view[at : at + nbytes],)
                got = self._read_asking(part, pieces) if ask else preadv(descriptor, part, offset)
                ask = False
                if got < nbytes and not self.read_into((memory[at + got : at + nbytes],), offset + got):
                    return False
                at += nbytes
        except OSError as error:
            raise unreadable(self._path, error) from error
        return True

    def _read_asking(self, part: tuple[memoryview], pieces: Sequence[Piece]) -> int:
        """Read the first piece; where that means waiting for the disk, announce all of them before."""
        offset = pieces[0][0]
        try:
            return os.preadv(self._descriptor, part, offset, _NOWAIT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._nowait.supported = False
            elif error.errno == errno.EAGAIN:
                self._announce(pieces)
            else:
                raise
        return os.preadv(self._descriptor, part, offset)

    def _announce(self, pieces: Sequence[Piece]) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for offset, nbytes in pieces:
                os.posix_fadvise(self._descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


class Disk(Protocol):
    """What changes the disk (`LocalStorage`)."""

    def path(self, key: str) -> Path:
        """Path of a key."""

    def _fsync(self, descriptor: int, path: Path) -> None: ...

    def _rename(self, source: Path, target: Path) -> None: ...

    def _fsync_folder(self, path: Path) -> None: ...

    def _unlink(self, path: Path) -> None: ...

    def explain(self, error: OSError) -> StratalensError:
        """The error for people."""


class WrittenFiles:
    """Open temporary files with the keys that they are going to have."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._files: list[tuple[Path, str, int]] = []

    def add(self, temporary: Path, key: str, descriptor: int) -> None:
        """One more file; it is closed here."""
        self._files.append((temporary, key, descriptor))

    def publish(self) -> None:
        """Make the files durable, then visible in the order given; if that fails, none that was not visible is left."""
        disk = self._disk
        try:
            run_concurrently([partial(disk._fsync, descriptor, temporary) for temporary, _, descriptor in self._files])
            folders: dict[Path, None] = {}
            for position, (temporary, key, descriptor) in enumerate(self._files):
                self._files[position] = (temporary, key, -1)
                os.close(descriptor)
                target = disk.path(key)
                disk._rename(temporary, target)
                folders[target.parent] = None
            fsync_folders(disk, folders)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise disk.explain(error) from error
            raise

    def discard(self) -> None:
        """Remove what is not visible."""
        while self._files:
            temporary, _, descriptor = self._files.pop()
            if descriptor >= 0:
                os.close(descriptor)
            with suppress(FileNotFoundError):  # renamed already
                temporary.lstat()
                self._disk._unlink(temporary)


def fsync_folders(disk: Disk, folders: Iterable[Path]) -> None:
    """Make the names in the folders durable."""
    run_concurrently([partial(disk._fsync_folder, folder) for folder in folders])


def run_concurrently(calls: Sequence[Callable[[], None]]) -> None:
    """Run fsyncs at the same time: the file system commits them as one (about eight times faster for 27 files)."""
    if len(calls) < 2:
        for call in calls:
            call()
        return
    with ThreadPoolExecutor(min(16, len(calls)), thread_name_prefix="stratalens-fsync") as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


__all__ = ["PRIVATE", "TEMPORARY", "LocalStorage", "ReadHandle"]


class LocalStorage:
    """A store's folder on a local or mounted file system.

    The `_`-methods are the only places that change the disk; tests replace
    them to record, fail or reorder what happens there.
    """

    high_latency = False

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._root = str(self.root)  # joining Paths takes longer than opening a file
        self._token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._counter = itertools.count()
        self._nowait = NoWait()

    def __repr__(self) -> str:
        return f"LocalStorage({str(self.root)!r})"

    def __reduce__(self) -> tuple[type[LocalStorage], tuple[str]]:
        return type(self), (str(self.root),)

    def path(self, key: str) -> Path:
        """Path of a key."""
        return self.root / key if key else self.root

    # -- what changes the disk ------------------------------------------------
    def _open(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def _write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def _fsync(self, descriptor: int, path: Path) -> None:
        os.fsync(descriptor)

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def _fsync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _mkdir(self, path: Path) -> None:
        path.mkdir()

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    # -- folders ----------------------------------------------------------------
    def make_folders(self, keys: Iterable[str]) -> None:
        """Create folders and their parents, durably."""
        parents: dict[Path, None] = {}
        for key in keys:
            path = self.path(key)
            missing = []
            while not path.is_dir():
                missing.append(path)
                path = path.parent
            for folder in reversed(missing):
                try:
                    self._mkdir(folder)
                except FileExistsError:
                    if not folder.is_dir():
                        text = f"{folder} is a file, a folder is needed there: choose another path"
                        raise InputError(text) from None
                parents[folder.parent] = None
        fsync_folders(self, parents)

    def kind(self) -> Kind:
        """What lies at the root."""
        return "folder" if self.root.is_dir() else "file" if self.root.exists() else "nothing"

    def is_folder(self, key: str) -> bool:
        """Whether the key is a folder, and no link to one."""
        path = self.path(key)
        return path.is_dir() and not path.is_symlink()

    def inner_stores(self) -> list[str]:
        """Stores in the folder, one level down."""
        return sorted(p.name for p in self.root.iterdir() if (p / PRIVATE).is_dir())

    def neighbours(self) -> list[str]:
        """Paths of the stores in the same folder."""
        try:
            return sorted(str(self.root.parent / p.name) for p in self.root.parent.iterdir() if (p / PRIVATE).is_dir())
        except OSError:
            return []

    def remove_folder(self, key: str) -> None:
        """Remove an empty folder."""
        self.path(key).rmdir()

    # -- writing ------------------------------------------------------------------
    def put(self, key: str, data: Buffer) -> None:
        """Make one object durable under `key`, replacing what was there atomically."""
        self.put_many([(key, (data,))])

    def put_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> None:
        """Make objects durable, then visible in the order given.

        The pieces of each object may be generated while it is written. If
        anything fails, none of the objects that were not yet visible is left.
        """
        self.write_many(objects).publish()

    def write_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> WrittenFiles:
        """The first half of `put_many`: what is returned makes them durable and visible, or discards them."""
        written = WrittenFiles(self)
        try:
            for key, pieces in objects:
                temporary = self.path(f"{TEMPORARY}/{self._token}-{next(self._counter)}")
                descriptor = self._open(temporary)
                written.add(temporary, key, descriptor)
                for piece in pieces:
                    view = (memoryview(piece) if isinstance(piece, bytes) else piece.data).cast("B")
                    while view.nbytes:
                        view = view[self._write(descriptor, view) :]
        except BaseException as error:
            written.discard()
            if isinstance(error, OSError):
                raise self.explain(error) from error
            raise
        return written

    def explain(self, error: OSError) -> StratalensError:
        """The error for people, by what the disk said."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(self.root).free if self.root.is_dir() else 0
            return NoSpaceError(
                f"no space left for {self.root} ({error.strerror}; {free / 1e6:.0f} MB free): what was committed so "
                "far is safe. Free some space and run the same call again; it resumes."
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return InputError(
                f"{self.root} cannot be written ({error.strerror}): make it writable or choose another path"
            )
        return StratalensError(
            f"writing to {self.root} failed: {error}. What was committed so far is safe; run the same call again "
            "to resume."
        )

    def append(self, key: str, line: bytes) -> None:
        """Add to the end of a file; a line that is torn by a loss of power is found by its checksum."""
        path = self.path(key)
        if path.exists() and path.stat().st_nlink > 1:  # a copy by hard links (cp -al) is another store
            self.put(key, path.read_bytes() + line)
            return
        with self.path(key).open("ab", buffering=0) as file:
            file.write(line)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects (those that are not there are ignored), durably."""
        folders: dict[Path, None] = {}
        for key in keys:
            path = self.path(key)
            self._unlink(path)
            folders[path.parent] = None
        fsync_folders(self, (f for f in folders if f.is_dir()))

    def remove_temporaries(self, own_only: bool) -> None:
        """Remove temporary files: this writer's, or everybody's (only under the exclusive lock)."""
        folder = self.path(TEMPORARY)
        if folder.is_dir():
            for path in folder.iterdir():
                if not own_only or path.name.startswith(self._token + "-"):
                    self._unlink(path)

    # -- reading --------------------------------------------------------------------
    def get(self, key: str) -> bytes | None:
        """Bytes of an object, or None where there is none."""
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(self.path(key), error) from error

    def list(self, folder: str) -> list[str]:
        """Sorted names in a folder (empty where it does not exist)."""
        try:
            return sorted(p.name for p in self.path(folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(self.path(folder), error) from error

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None where there is none."""
        try:
            return self.path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object in a folder, by name (empty where it does not exist)."""
        try:
            with os.scandir(self.path(folder)) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise unreadable(self.path(folder), error) from error

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """What differs as soon as an object was replaced; None where there is none."""
        try:
            facts = os.stat(f"{self._root}/{key}")  # noqa: PTH116 - before every read
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(self.path(key), error) from error
        return facts.st_ino, facts.st_mtime_ns, facts.st_size

    def open_read(self, key: str) -> ReadHandle | None:
        """Handle for positioned reads, or None where there is no object."""
        path = f"{self._root}/{key}"
        try:
            return ReadHandle(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path, self._nowait)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error

    # -- locks ------------------------------------------------------------------------
    def writer_lock(self) -> FileLock:
        """The lock of the store's writers."""
        return FileLock(self.path(f"{PRIVATE}/lock"))

    def claim_lock(self, name: str) -> FileLock:
        """The lock of one block."""
        return FileLock(self.path(f"{PRIVATE}/claims/{name}"))

    def clear_claims(self) -> None:
        """Remove the lock files that killed writers have left; only under the exclusive lock."""
        for name in self.list(f"{PRIVATE}/claims"):
            self.path(f"{PRIVATE}/claims/{name}").unlink(missing_ok=True)

    def structure_lock(self) -> AbstractContextManager[None]:
        """Held around a change of the root metadata."""
        return wait_for_lock(FileLock(self.path(f"{PRIVATE}/structure.lock")), self.root)
