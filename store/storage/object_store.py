"""A store on an fsspec URL such as s3://, gs:// or memory://.

An upload appears completely or not at all, so no object needs a temporary name: the files of a block are put, then its
commit record. Nothing is renamed or appended. Settings and credentials come from fsspec (environment variables,
fsspec.config). Several writers at the same time are experimental.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, cast

from stratalens.store.errors import DamagedError, InputError, StratalensError
from stratalens.store.storage.base import OBJECT_LIMIT, PRIVATE, TEMPORARY, Buffer, ByteRange, Kind
from stratalens.store.storage.chunk_cache import ChunkCache, cache_from_environment
from stratalens.store.storage.leases import LeaseLock
from stratalens.store.storage.local_locks import wait_for_lock
from stratalens.store.storage.remote_handle import RemoteHandle, read_through_cache
from stratalens.store.storage.snapshot import Snapshot

LEASES = f"{PRIVATE}/leases"


UPLOADS = 8  # at the same time


_STAMPS = ("ETag", "etag", "LastModified", "Last-Modified", "created", "size")


class RemoteStorage:
    """A store on an fsspec URL.

    Attributes:
        snapshot: objects that are known already; only readers have one.
        cache: keeps chunks on the local disk; only readers have one.
        version: identifies the content of the store in the cache.
    """

    high_latency = True
    lists_folders = True
    read_only = ""  # why nothing can be written, as the end of a message
    _fs: Any

    def __init__(self, url: str) -> None:
        self._initialise(url.rstrip("/"))
        from fsspec.core import url_to_fs

        try:
            self._fs, base = url_to_fs(self.root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{self.root} cannot be opened ({error}): give a folder, or a URL that fsspec supports; "
                'for s3:// run pip install "stratalens[s3]", for https:// "stratalens[http]"'
            ) from error
        self._base = base.rstrip("/")

    def _initialise(self, root: str) -> None:
        self.guards: list[Callable[[], None]] = []
        self.root = root
        self.snapshot: Snapshot | None = None
        self.cache: ChunkCache | None = None
        self.version = ""

    def __repr__(self) -> str:
        return f"RemoteStorage({self.root!r})"

    def __reduce__(self) -> Any:
        return _restore, (type(self), self._url(), self.version)

    def _url(self) -> str:
        return self.root

    def use_cache(self, version: str) -> None:
        """Keep the chunks that are read from now on, and look for them in the local cache.

        Args:
            version: identifies the content of the store; chunks of another version are never returned.
        """
        if getattr(self._fs, "protocol", "") != "memory":
            self.version, self.cache = version, cache_from_environment()

    def is_pinned(self, key: str) -> bool:
        """Return whether the bytes of an object are known to belong to the root that was read."""
        return self.snapshot is not None and key in self.snapshot.labels

    def path(self, key: str) -> str:
        """Return the URL of a key."""
        return f"{self.root}/{key}" if key else self.root

    def _at(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    # -- folders ------------------------------------------------------
    def kind(self) -> Kind:
        """Return whether the root is a folder, a file or nothing."""
        if self.list(""):
            return "folder"
        return "nothing" if self.size("") is None else "file"

    def is_folder(self, key: str) -> bool:
        """Return whether there are objects below the key."""
        return bool(self.list(key))

    def inner_stores(self) -> list[str]:
        """Return no stores: listing a bucket for a message costs too much."""
        return []

    def neighbours(self) -> list[str]:
        """Return no stores: listing a bucket for a message costs too much."""
        return []

    def make_folders(self, keys: Iterable[str]) -> None:
        """Mark the URL as that of a store, so that an interrupted creation can resume; there are no folders."""
        if TEMPORARY in keys and not any(name != "leases" for name in self.list(PRIVATE)):
            self._put(f"{PRIVATE}/history.jsonl", b"")

    def remove_folder(self, key: str) -> None:
        """Do nothing: there are no folders."""

    def sync_folders(self, keys: Iterable[str]) -> None:
        """Do nothing: an object is durable as soon as it is visible."""

    def check_guards(self, key: str) -> None:
        """Raise if a lock that this object holds was lost; every change but those of locks calls it first."""
        if not key.startswith(LEASES):
            for guard in list(self.guards):
                guard()

    # -- writing --------------------------------------------------------------------------
    def put(self, key: str, data: Buffer) -> None:
        """Make one object durable under `key`; replace an existing one atomically."""
        self.put_many([(key, (data,))])

    def put_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> None:
        """Upload objects, several at the same time, each with one put; all are durable when this returns."""
        with ThreadPoolExecutor(UPLOADS, thread_name_prefix="stratalens-put") as pool:
            jobs = []
            for number, (key, slices) in enumerate(objects):
                data = b"".join(part if isinstance(part, bytes) else part.data.cast("B") for part in slices)
                if number % UPLOADS == 0:
                    self.check_guards(key)
                jobs.append(pool.submit(self._put, key, data))
            for job in jobs:
                job.result()

    def write_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> Uploaded:
        """Upload objects like `put_many`; readers ignore an object until its commit record exists."""
        self.put_many(objects)
        return Uploaded()

    def _put(self, key: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(self._at(key), data)
        except Exception as error:  # clients raise their own errors, too
            raise self._failed("writing to", key, error) from error

    def create(self, key: str, data: bytes) -> bool:
        """Put an object unless the key exists; return whether it was put."""
        try:
            self._fs.pipe_file(self._at(key), data, mode="create")
        except Exception as error:  # clients raise their own errors, too
            if self.get(key) is None:  # the object does not exist, so another writer was not the reason
                raise self._failed("writing to", key, error) from error
        # A client that retries after a lost response gets its own object back.
        return self.get(key) == data

    def append(self, key: str, line: bytes) -> None:
        """Append a line to an object; callers hold the structure lock."""
        self.check_guards(key)
        self._put(key, (self.get(key) or b"") + line)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; ignore those that do not exist."""
        for number, key in enumerate(keys):
            if number % UPLOADS == 0:
                self.check_guards(key)
            try:
                self._fs.rm_file(self._at(key))
            except (FileNotFoundError, KeyError):
                continue
            except Exception as error:  # clients raise their own errors, too
                raise self._failed("removing from", key, error) from error

    def remove_temporaries(self, own_only: bool) -> None:
        """Do nothing: an interrupted upload leaves no visible object."""

    # -- reading ----------------------------------------------------------------------------
    def get(self, key: str, limit: int = OBJECT_LIMIT) -> bytes | None:
        """Return the content of an object, or None if it does not exist.

        One request asks for one byte more than `limit`, so a larger object is not read.
        """
        if self.snapshot is not None:
            if self.snapshot.has(key):
                return self.snapshot.files.get(key)
            if (label := self.snapshot.read_label(key, self.read_chunks)) is not None:
                return label
        try:
            content = self._cat(key, limit + 1)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except Exception as error:  # clients raise their own errors, too
            if self._may_be_empty(error) and self.size(key) == 0:
                return b""
            raise self._failed("reading", key, error) from error
        if len(content) > limit:
            raise DamagedError(
                f"{self.path(key)} has more than the {limit} bytes that an object of its kind can have; it was not read"
            )
        return content

    def _cat(self, key: str, end: int) -> bytes:
        return cast("bytes", self._fs.cat_file(self._at(key), start=0, end=end))

    def _may_be_empty(self, error: Exception) -> bool:
        """Return whether the object may be empty: S3 refuses every range of an empty object."""
        return not isinstance(error, StratalensError)

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        base = self._at(folder).rstrip("/")
        try:
            entries = self._fs.ls(base, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception as error:  # clients raise their own errors, too
            raise self._failed("listing", folder, error) from error
        prefix = base.lstrip("/") + "/" if base else ""
        named = [(entry["name"].strip("/"), entry) for entry in entries]
        return {name[len(prefix) :]: entry for name, entry in named if name.startswith(prefix)}

    def list(self, folder: str) -> list[str]:
        """List the names in a folder, sorted; empty if it does not exist."""
        if self.snapshot is not None and folder in self.snapshot.folders:
            return self.snapshot.list(folder)
        return sorted(self._entries(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every object in a folder, by name."""
        if self.snapshot is not None and self.snapshot.bundle:  # the index has the sizes that a reader needs
            prefix = f"{folder}/"
            return {k[len(prefix) :]: n for k, n in self.snapshot.sizes.items() if k.startswith(prefix)}
        return {name: int(e["size"]) for name, e in self._entries(folder).items() if e["type"] == "file"}

    def _info(self, key: str) -> dict[str, Any] | None:
        try:
            return cast("dict[str, Any]", self._fs.info(self._at(key)))
        except FileNotFoundError:
            return None
        except Exception as error:  # clients raise their own errors, too
            raise self._failed("reading", key, error) from error

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, or None if it does not exist."""
        if self.snapshot is not None and key in self.snapshot.sizes:
            return self.snapshot.sizes[key]
        entry = self._info(key)
        return int(entry["size"]) if entry and entry["type"] == "file" else None

    def stamp(self, key: str) -> object:
        """Return a value that changes when the object is replaced, or None if it does not exist."""
        entry = self._info(key)
        return entry and [str(entry.get(name)) for name in _STAMPS]

    def modified(self, key: str) -> datetime | None:
        """Return when an object was written, by the clock of the object store."""
        try:
            return cast("datetime", self._fs.modified(self._at(key)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed("reading", key, error) from error

    def open_read(self, key: str, chunk: int = 0) -> RemoteHandle:
        """Open an object for positioned reads; if it does not exist, the first read raises FileNotFoundError."""
        return RemoteHandle(self, key, chunk)

    def read_chunks(self, key: str, ranges: Sequence[ByteRange], chunk: int = 0) -> Sequence[bytes]:
        """Read ranges of an object, from the local cache where it has them.

        Args:
            key: key of the object.
            ranges: (offset, bytes) of each range.
            chunk: bytes of a chunk, if the object consists of chunks of equal size from its start.
        """
        if self.cache is None:
            return self.read_ranges(key, ranges)
        return read_through_cache(self.cache, self.version, key, ranges, chunk, self.read_ranges)

    def read_ranges(self, key: str, ranges: Sequence[ByteRange]) -> Sequence[bytes]:
        """Request ranges of an object at the same time; a range that exceeds the object comes back shorter."""
        starts = [offset for offset, _ in ranges]
        try:
            return self._cat_ranges(key, starts, [offset + nbytes for offset, nbytes in ranges])
        except FileNotFoundError:
            raise
        except Exception as error:  # clients raise their own errors, too
            size = self.size(key) if self._may_be_empty(error) else None
            if size is None or max(starts) < size:  # S3 refuses a range that starts after the end of the object
                raise self._failed("reading", key, error) from error
            return [self.read_ranges(key, [part])[0] if part[0] < size else b"" for part in ranges]

    def _cat_ranges(self, key: str, starts: Sequence[int], stops: Sequence[int]) -> Sequence[bytes]:
        paths = [self._at(key)] * len(starts)
        return cast("Sequence[bytes]", self._fs.cat_ranges(paths, [*starts], [*stops], on_error="raise"))

    # -- locks --------------------------------------------------------------------------------
    def writer_lock(self) -> LeaseLock:
        """Return the lock of the writers of the store."""
        return LeaseLock(self, f"{LEASES}/lock")

    def claim_lock(self, name: str) -> LeaseLock:
        """Return the lock of one block."""
        return LeaseLock(self, f"{LEASES}/claim.{name}")

    def clear_claims(self) -> None:
        """Remove the claims of killed writers; only under the exclusive lock."""
        for folder in self.list(LEASES):
            if folder.startswith("claim.") or "-clock." in folder:
                names = self.list(f"{LEASES}/{folder}")
                self.delete([f"{LEASES}/{folder}/{n}" for n in names] or [f"{LEASES}/{folder}"])

    @contextmanager
    def structure_lock(self) -> Iterator[None]:
        """Return a context manager that holds the lock for changes of the root document."""
        lock = LeaseLock(self, f"{LEASES}/structure")
        with wait_for_lock(lock, self.root, self.guards):
            yield

    def _failed(self, action: str, key: str, error: Exception) -> StratalensError:
        if isinstance(error, StratalensError):
            return error
        if type(error).__name__ in ("ParamValidationError", "NoCredentialsError", "PartialCredentialsError"):
            return InputError(
                f"{self.path(key)} cannot be used: {' '.join(str(error).split())}. Check the URL, and the credentials "
                "and the endpoint in FSSPEC_S3 or in the environment variables of the service"
            )
        return StratalensError(
            f"{action} {self.path(key)} failed: {error}. Committed data is safe; run the same call again to resume."
        )


class Uploaded:
    """Uploaded objects, which are durable and visible already."""

    def publish(self) -> None:
        """Do nothing: the objects are visible."""

    def discard(self) -> None:
        """Do nothing: readers ignore objects without a commit record, and the next writer replaces them."""


def _restore(kind: type[RemoteStorage], url: str, version: str) -> RemoteStorage:
    """Return an unpickled storage, which reads the same content as the pickled one."""
    storage = kind(url)
    if version:
        storage.use_cache(version)
    return storage
