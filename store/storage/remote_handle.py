"""Ranged reads of one object of a remote store, through the local cache of chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stratalens.store.storage.base import ByteRange
from stratalens.store.storage.chunk_cache import ChunkCache, entry_name

ReadRanges = Callable[[str, Sequence[ByteRange]], Sequence[bytes]]


class RangeReader(Protocol):
    """The operations of a remote storage that a handle needs."""

    def path(self, key: str) -> str:
        """Return the URL of a key."""

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, or None if it does not exist."""

    def read_chunks(self, key: str, ranges: Sequence[ByteRange], chunk: int = 0) -> Sequence[bytes]:
        """Read ranges of an object; a range that exceeds the object comes back shorter."""


class RemoteHandle:
    """Ranged reads of one object; an announced range is fetched once.

    Args:
        storage: storage of the object.
        key: key of the object.
        chunk: bytes of a chunk, if the object consists of chunks of equal size from its start; else 0.
    """

    gap = 1 << 18

    def __init__(self, storage: RangeReader, key: str, chunk: int = 0) -> None:
        self._storage, self._key, self._chunk = storage, key, chunk
        self._fetched = (0, b"")

    def __enter__(self) -> RemoteHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self._fetched = (0, b"")

    def size(self) -> int:
        """Return the bytes of the object."""
        size = self._storage.size(self._key)
        if size is None:
            raise FileNotFoundError(self._storage.path(self._key))
        return size

    def expect(self, offset: int, nbytes: int) -> None:
        """Fetch a range that will be read in several steps."""
        start, data = self._fetched
        if offset < start or offset + nbytes > start + len(data):
            self._fetched = (offset, self._read([(offset, nbytes)])[0])

    def read_into(self, buffers: Sequence[NDArray[np.uint8]], offset: int) -> bool:
        """Fill the buffers in order from `offset` on, with one request; return False if the object is too short."""
        total = sum(b.nbytes for b in buffers)
        if total == 0:
            return True
        start, data = self._fetched
        if offset < start or offset + total > start + len(data):
            start, data = offset, self._read([(offset, total)])[0]
            if len(data) < total:
                return False
        position = offset - start
        for buffer in buffers:
            buffer[...] = np.frombuffer(data, dtype=np.uint8, count=buffer.nbytes, offset=position)
            position += buffer.nbytes
        return True

    def read_pieces(self, memory: NDArray[np.uint8], ranges: Sequence[ByteRange]) -> bool:
        """Fill `memory` with ranges of the object, one after the other; return False if the object is too short."""
        parts = self._read(ranges)
        if any(len(data) < nbytes for data, (_, nbytes) in zip(parts, ranges, strict=True)):
            return False
        memory[...] = np.frombuffer(b"".join(parts), dtype=np.uint8)
        return True

    def _read(self, ranges: Sequence[ByteRange]) -> Sequence[bytes]:
        return self._storage.read_chunks(self._key, ranges, self._chunk)


def read_through_cache(
    cache: ChunkCache, version: str, key: str, ranges: Sequence[ByteRange], chunk: int, read: ReadRanges
) -> list[bytes]:
    """Read ranges of an object from the cache, and the others from the source.

    A range of whole chunks becomes one entry for each chunk, and its missing chunks are requested together. A range
    inside one chunk is cut from the chunk if the cache has it. Any other range is an entry of its own.

    Args:
        cache: the cache.
        version: identifies the content of the store.
        key: key of the object.
        ranges: (offset, bytes) of each range.
        chunk: bytes of a chunk, or 0.
        read: requests ranges of an object from the source.

    Returns:
        Bytes of each range; fewer than asked for if the object is too short.
    """
    parts: list[list[bytes | ByteRange]] = []  # of each range: bytes from the cache, or what to request
    for offset, nbytes in ranges:
        first = offset - offset % chunk if chunk else offset
        if chunk and offset + nbytes <= first + chunk and nbytes < chunk:
            data = cache.get(entry_name(version, key, first, chunk))
            parts.append([(offset, nbytes) if data is None else data[offset - first : offset - first + nbytes]])
            continue
        step = chunk if chunk and offset % chunk == 0 and nbytes % chunk == 0 else nbytes
        row: list[bytes | ByteRange] = []
        for start in range(offset, offset + nbytes, step or 1):
            data = cache.get(entry_name(version, key, start, step))
            last = row[-1] if row else b""
            if data is not None:
                row.append(data)
            elif isinstance(last, tuple):
                row[-1] = (last[0], last[1] + step)
            else:
                row.append((start, step))
        parts.append(row)
    absent = [part for row in parts for part in row if isinstance(part, tuple)]
    answers = iter(read(key, absent)) if absent else iter(())
    results = []
    for row in parts:
        pieces = []
        for part in row:
            if isinstance(part, tuple):
                data = next(answers)
                _store(cache, version, key, part, data, chunk)
                pieces.append(data)
            else:
                pieces.append(part)
        results.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
    return results


def _store(cache: ChunkCache, version: str, key: str, asked: ByteRange, data: bytes, chunk: int) -> None:
    """Store an answer, chunk by chunk; the cache refuses what does not end with its crc32c."""
    offset, nbytes = asked
    step = chunk if chunk and offset % chunk == 0 and nbytes % chunk == 0 else nbytes
    if len(data) < nbytes:
        return
    for start in range(0, nbytes, step or 1):
        cache.put(entry_name(version, key, offset + start, step), data[start : start + step])
