"""A store on an fsspec URL (s3://, gs://, memory://, ...): one put for each object, nothing renamed or appended.

An upload is there whole or not at all, so a block needs no temporary names: its files
are put, then its commit record. Settings and credentials are fsspec's own
(environment variables, fsspec.config). Locks are in `leases`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import InputError, StratalensError
from stratalens.store.storage.base import PRIVATE, TEMPORARY, Buffer, Kind, Piece
from stratalens.store.storage.leases import LeaseLock
from stratalens.store.storage.local_locks import wait_for_lock

LEASES = f"{PRIVATE}/leases"


UPLOADS = 8


class RemoteStorage:
    """A store behind an fsspec URL."""

    high_latency = True

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.root = url.rstrip("/")
        try:
            self._fs, base = url_to_fs(self.root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{url} cannot be opened ({error}): give a folder, or a URL that fsspec knows; "
                'for s3:// run pip install "stratalens[s3]"'
            ) from error
        self._base = base.rstrip("/")

    def __repr__(self) -> str:
        return f"RemoteStorage({self.root!r})"

    def __reduce__(self) -> tuple[type[RemoteStorage], tuple[str]]:
        return type(self), (self.root,)

    def path(self, key: str) -> str:
        """URL of a key."""
        return f"{self.root}/{key}" if key else self.root

    def _at(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    # -- folders: there are none ------------------------------------------------------
    def kind(self) -> Kind:
        """What lies at the root."""
        if self.list(""):
            return "folder"
        return "nothing" if self.size("") is None else "file"

    def is_folder(self, key: str) -> bool:
        """Whether there are objects below the key."""
        return bool(self.list(key))

    def inner_stores(self) -> list[str]:
        """Nobody looks for them here."""
        return []

    def neighbours(self) -> list[str]:
        """Nobody looks for them here."""
        return []

    def make_folders(self, keys: Iterable[str]) -> None:
        """Leave a sign that the place is a store's, so that an interrupted creation can go on."""
        if TEMPORARY in keys and not any(name != "leases" for name in self.list(PRIVATE)):
            self._put(f"{PRIVATE}/history.jsonl", b"")

    def remove_folder(self, key: str) -> None:
        """Nothing to do."""

    # -- writing --------------------------------------------------------------------------
    def put(self, key: str, data: Buffer) -> None:
        """Make one object durable under `key`, replacing what was there atomically."""
        self.put_many([(key, (data,))])

    def put_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> None:
        """Make objects durable, a few at the same time, each with one put; all are there when this returns."""
        with ThreadPoolExecutor(UPLOADS, thread_name_prefix="stratalens-put") as pool:
            jobs = []
            for key, pieces in objects:
                data = b"".join(p if isinstance(p, bytes) else p.data.cast("B") for p in pieces)
                jobs.append(pool.submit(self._put, key, data))
            for job in jobs:
                job.result()

    def write_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> Uploaded:
        """`put_many`: an object that is there is durable, and nobody looks for it before its commit record."""
        self.put_many(objects)
        return Uploaded()

    def _put(self, key: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(self._at(key), data)
        except OSError as error:
            raise self._failed("writing to", key, error) from error

    def create(self, key: str, data: bytes) -> bool:
        """Put an object if there is none under the key; whether it was put."""
        try:
            self._fs.pipe_file(self._at(key), data, mode="create")
        except OSError as error:
            if self.get(key) is None:  # not because another was first
                raise self._failed("writing to", key, error) from error
        # A client that tries again after a lost answer finds its own object.
        return self.get(key) == data

    def append(self, key: str, line: bytes) -> None:
        """Add to the end of an object; callers hold the structure lock."""
        self._put(key, (self.get(key) or b"") + line)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects (those that are not there are ignored)."""
        for key in keys:
            try:
                self._fs.rm_file(self._at(key))
            except (FileNotFoundError, KeyError):
                continue
            except OSError as error:
                raise self._failed("removing from", key, error) from error

    def remove_temporaries(self, own_only: bool) -> None:
        """Nothing to do: an interrupted upload leaves nothing that can be seen."""

    # -- reading ----------------------------------------------------------------------------
    def get(self, key: str) -> bytes | None:
        """Bytes of an object, or None where there is none."""
        try:
            return cast("bytes", self._fs.cat_file(self._at(key)))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._failed("reading", key, error) from error

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        base = self._at(folder).rstrip("/")
        try:
            found = self._fs.ls(base, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise self._failed("listing", folder, error) from error
        inside = [(entry["name"].rstrip("/"), entry) for entry in found]
        head = base.lstrip("/") + "/"
        return {n.lstrip("/")[len(head) :]: entry for n, entry in inside if n.lstrip("/").startswith(head)}

    def list(self, folder: str) -> list[str]:
        """Sorted names in a folder (empty where it does not exist)."""
        return sorted(self._entries(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object in a folder, by name."""
        return {name: int(e["size"]) for name, e in self._entries(folder).items() if e["type"] == "file"}

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None where there is none."""
        try:
            facts = self._fs.info(self._at(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("reading", key, error) from error
        return int(facts["size"]) if facts["type"] == "file" else None

    def stamp(self, key: str) -> object:
        """What differs as soon as an object was replaced; None where there is none."""
        try:
            facts = self._fs.info(self._at(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("reading", key, error) from error
        return [str(facts.get(name)) for name in ("ETag", "etag", "LastModified", "created", "size")]

    def modified(self, key: str) -> datetime | None:
        """When an object was written, by the clock of whoever stores it."""
        try:
            return cast("datetime", self._fs.modified(self._at(key)))
        except FileNotFoundError:
            return None

    def open_read(self, key: str) -> RemoteHandle:
        """Handle for positioned reads; that there is no object shows at the first one, as FileNotFoundError."""
        return RemoteHandle(self, key)

    def read_ranges(self, key: str, pieces: Sequence[Piece]) -> Sequence[bytes]:
        """Parts (offset, bytes) of an object, asked for at the same time; shorter where the object ends."""
        places, starts, stops = [self._at(key)] * len(pieces), [o for o, _ in pieces], [o + n for o, n in pieces]
        try:
            return cast("Sequence[bytes]", self._fs.cat_ranges(places, starts, stops, on_error="raise"))
        except FileNotFoundError:
            raise
        except OSError as error:
            size = self.size(key)
            if size is None or max(starts) < size:  # S3 refuses a range that begins behind the end
                raise self._failed("reading", key, error) from error
            return [self.read_ranges(key, [piece])[0] if piece[0] < size else b"" for piece in pieces]

    # -- locks --------------------------------------------------------------------------------
    def writer_lock(self) -> LeaseLock:
        """The lock of the store's writers."""
        return LeaseLock(self, f"{LEASES}/lock")

    def claim_lock(self, name: str) -> LeaseLock:
        """The lock of one block."""
        return LeaseLock(self, f"{LEASES}/claim.{name}")

    def clear_claims(self) -> None:
        """Remove what killed writers have left of claims; only under the exclusive lock."""
        for folder in self.list(LEASES):
            if folder.startswith("claim.") or "-clock." in folder:
                names = self.list(f"{LEASES}/{folder}")
                self.delete([f"{LEASES}/{folder}/{n}" for n in names] or [f"{LEASES}/{folder}"])

    def structure_lock(self) -> AbstractContextManager[None]:
        """Held around a change of the root metadata."""
        return wait_for_lock(LeaseLock(self, f"{LEASES}/structure"), self.root)

    def _failed(self, what: str, key: str, error: OSError) -> StratalensError:
        return StratalensError(
            f"{what} {self.path(key)} failed: {error}. What was committed so far is safe; run the same call again to "
            "resume."
        )


class Uploaded:
    """Objects for which nothing is left to do."""

    def publish(self) -> None:
        """They are durable and visible."""

    def discard(self) -> None:
        """They stay; without a commit record they do not exist, and the next writer replaces them."""


class RemoteHandle:
    """Ranged reads of one object; a range that is expected is fetched once."""

    gap = 1 << 18

    def __init__(self, storage: RemoteStorage, key: str) -> None:
        self._storage, self._key = storage, key
        self._held = (0, b"")

    def __enter__(self) -> RemoteHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self._held = (0, b"")

    def size(self) -> int:
        """Bytes of the object."""
        size = self._storage.size(self._key)
        if size is None:
            raise FileNotFoundError(self._storage.path(self._key))
        return size

    def expect(self, offset: int, nbytes: int) -> None:
        """Fetch a range that is going to be read piece by piece."""
        start, data = self._held
        if offset < start or offset + nbytes > start + len(data):
            self._held = (offset, self._storage.read_ranges(self._key, [(offset, nbytes)])[0])

    def read_into(self, buffers: Sequence[NDArray[np.uint8]], offset: int) -> bool:
        """Fill the buffers one after the other from `offset` with one request; False if the object ends before."""
        total = sum(b.nbytes for b in buffers)
        if total == 0:
            return True
        start, data = self._held
        if offset < start or offset + total > start + len(data):
            start, data = offset, self._storage.read_ranges(self._key, [(offset, total)])[0]
            if len(data) < total:
                return False
        at = offset - start
        for buffer in buffers:
            buffer[...] = np.frombuffer(data, dtype=np.uint8, count=buffer.nbytes, offset=at)
            at += buffer.nbytes
        return True

    def read_pieces(self, memory: NDArray[np.uint8], pieces: Sequence[Piece]) -> bool:
        """Fill `memory` with these (offset, bytes), one behind the other; False if the object ends before."""
        found = self._storage.read_ranges(self._key, pieces)
        if any(len(data) < nbytes for data, (_, nbytes) in zip(found, pieces, strict=True)):
            return False
        memory[...] = np.frombuffer(b"".join(found), dtype=np.uint8)
        return True
