"""A cache of chunks of remote stores on the local disk.

All processes of a user share one folder. Every stored chunk ends with the crc32c of its bytes, and so does every entry
of the cache: an entry is stored and returned only if the two agree. The least recently used entries are removed first.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

import crc32c

from stratalens.store.errors import InputError, quote

FOLDER_VARIABLE = "STRATALENS_CACHE_DIR"
SIZE_VARIABLE = "STRATALENS_CACHE_SIZE"
DEFAULT_SIZE = "5 GB"

_CRC_BYTES = 4
_SLACK = 20  # a process looks at the folder again after it has added this fraction of the limit
_ABANDONED = 3600.0  # seconds after which a temporary file belongs to a killed process


class ChunkCache:
    """Chunks of remote stores in a local folder.

    Args:
        folder: the folder; it is created with the first entry.
        limit: bytes of all entries. Each writing process may exceed it by one twentieth until it looks again.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._added = limit  # so that the first entry looks at the folder

    def get(self, name: str) -> bytes | None:
        """Return an entry, or None if it does not exist or is damaged; a damaged entry is removed."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if not is_intact(data):
            _remove(path)
            return None
        with suppress(OSError):  # another process removed it meanwhile
            os.utime(path)
        return data

    def put(self, name: str, data: bytes) -> bool:
        """Store an entry and return whether it was stored.

        Data that does not end with its crc32c or exceeds the limit is not stored. A full or read-only disk is no error.
        """
        if len(data) > self.limit or not is_intact(data):
            return False
        path = self._path(name)
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            if not path.parent.is_dir():
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            _remove(temporary)
            return False
        self._added += len(data)
        if self._added > self.limit // _SLACK:
            self.trim()
        return True

    def trim(self) -> int:
        """Remove the least recently used entries beyond the limit; return the bytes of the others."""
        self._added = 0
        entries, now = [], time.time()
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):  # another process removed it meanwhile
                    facts = path.stat()
                    if name.endswith(".tmp"):
                        if now - facts.st_mtime > _ABANDONED:
                            _remove(path)
                        continue
                    entries.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(nbytes for _, nbytes, _ in entries)
        if total <= self.limit:
            return total
        for _, nbytes, path in sorted(entries):
            _remove(path)
            total -= nbytes
            if total <= self.limit - self.limit // _SLACK:
                break
        return total

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name


def entry_name(version: str, key: str, offset: int, nbytes: int) -> str:
    """Return the name of an entry.

    Args:
        version: identifies the store and its content.
        key: key of the object.
        offset: first byte of the chunk.
        nbytes: bytes of the chunk.
    """
    return hashlib.sha256(f"{version}\0{key}\0{offset}\0{nbytes}".encode()).hexdigest()


def is_intact(data: bytes) -> bool:
    """Return whether bytes end with the crc32c of those before, as every stored chunk does.

    >>> is_intact(b"123456789" + (0xE3069283).to_bytes(4, "little")), is_intact(b"123456789")
    (True, False)
    """
    if len(data) <= _CRC_BYTES:
        return False
    return crc32c.crc32c(memoryview(data)[:-_CRC_BYTES]) == int.from_bytes(data[-_CRC_BYTES:], "little")


def cache_from_environment() -> ChunkCache | None:
    """Return the cache that the environment describes.

    `STRATALENS_CACHE_DIR` is its folder, by default `~/.cache/stratalens/chunks`. `STRATALENS_CACHE_SIZE` is its limit,
    such as "20 GB", by default 5 GB. The size 0 turns it off.

    Raises:
        InputError: the size is no number of bytes.
    """
    from dask.utils import parse_bytes

    size = os.environ.get(SIZE_VARIABLE, DEFAULT_SIZE)
    try:
        limit = int(parse_bytes(size))
    except (ValueError, IndexError) as error:
        raise InputError(f"{SIZE_VARIABLE} is {quote(size)}: give a size such as '20 GB', or 0 for no cache") from error
    if limit <= 0:
        return None
    folder = os.environ.get(FOLDER_VARIABLE)
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "stratalens" / "chunks"
    return ChunkCache(Path(folder or default).expanduser(), limit)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
