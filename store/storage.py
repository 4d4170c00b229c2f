"""Durable files: the few operations on a folder that the store is built from.

Everything above speaks in keys (paths relative to the store) and in whole
objects, never in open files, so another backend needs only these methods.
`put_many` makes a set of objects durable before any of them becomes visible
under its key: write to temporary names, fsync, rename, fsync the folders.
What a commit means is decided in `manifest` and `writer`.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from stratalens.store.errors import InputError, NoSpaceError, StratalensError
from stratalens.store.handles import NoWait, ReadHandle, unreadable
from stratalens.store.locks import FileLock, waiting
from stratalens.store.pending import WrittenFiles, fsync_folders
from stratalens.store.seam import PRIVATE, TEMPORARY, Buffer, Kind

__all__ = ["PRIVATE", "TEMPORARY", "LocalStorage", "ReadHandle"]


class LocalStorage:
    """A store's folder on a local or mounted file system.

    The `_`-methods are the only places that change the disk; tests replace
    them to record, fail or reorder what happens there.
    """

    waiting = False

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
        return waiting(FileLock(self.path(f"{PRIVATE}/structure.lock")), self.root)
