"""The protocol of a storage backend: operations on whole objects, positioned reads, and locks.

All other modules address objects by key, a path relative to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

PRIVATE = ".stratalens"


TEMPORARY = f"{PRIVATE}/tmp"


OBJECT_LIMIT = 1 << 30  # bytes of an object that is read whole; larger ones are not ours


ByteRange = tuple[int, int]  # offset, bytes


Buffer = bytes | NDArray[Any]


Kind = Literal["nothing", "file", "folder"]


class Handle(AbstractContextManager["Handle"], Protocol):
    """Positioned reads on one object."""

    @property
    def gap(self) -> int:
        """Largest gap between two ranges that is cheaper to read than to skip, in bytes."""

    def size(self) -> int:
        """Return the bytes of the object."""

    def expect(self, offset: int, nbytes: int) -> None:
        """Announce that this range will be read in several steps."""

    def read_into(self, buffers: Sequence[NDArray[np.uint8]], offset: int) -> bool:
        """Fill the buffers in order from `offset` on; return False if the object is too short."""

    def read_pieces(self, memory: NDArray[np.uint8], ranges: Sequence[ByteRange]) -> bool:
        """Fill `memory` with ranges of the object, one after the other; return False if the object is too short."""


class StagedWrite(Protocol):
    """Objects that are written but neither durable nor visible yet."""

    def publish(self) -> None:
        """Make the objects durable, then visible."""

    def discard(self) -> None:
        """Remove the objects that are not visible."""


class Lock(Protocol):
    """A lock that is released when its holder dies."""

    @property
    def acquired(self) -> bool:
        """Whether this object holds the lock."""

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock without waiting; return whether that succeeded."""

    def check(self) -> None:
        """Raise if the lock was lost: its file or lease was removed or replaced."""

    def note(self) -> None:
        """Write who holds the lock, for error messages of other processes."""

    def clear_note(self) -> None:
        """Remove the note."""

    def holder(self) -> str:
        """Describe the holder of the lock, as far as it is known."""

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""

    def release(self, *, unlink: bool = False) -> None:
        """Release the lock."""


class Storage(Protocol):
    """The backend of one store.

    Attributes:
        guards: functions that raise if a lock of the holder of this object was lost; every change calls them first.
    """

    guards: list[Callable[[], None]]

    @property
    def read_only(self) -> str:
        """Why nothing can be written, as the end of a message; "" if it can."""

    @property
    def lists_folders(self) -> bool:
        """Whether `list` and `sizes` work; a web server lists nothing."""

    def is_pinned(self, key: str) -> bool:
        """Return whether the bytes of an object are known to belong to the root that was read."""

    @property
    def root(self) -> Any:
        """Path or URL of the store."""

    @property
    def high_latency(self) -> bool:
        """Whether a read waits for a network, so that parallel reads pay off."""

    def path(self, key: str) -> Any:
        """Return the path or URL of a key, for messages."""

    def kind(self) -> Kind:
        """Return whether the root is a folder, a file or nothing."""

    def is_folder(self, key: str) -> bool:
        """Return whether the key is a folder; a link to a folder does not count."""

    def inner_stores(self) -> list[str]:
        """List the stores in the folder, one level down, for messages."""

    def neighbours(self) -> list[str]:
        """List the paths of the stores in the same folder, for messages."""

    def make_folders(self, keys: Iterable[str]) -> None:
        """Create folders and their parents, durably."""

    def sync_folders(self, keys: Iterable[str]) -> None:
        """Make the names in folders durable, also those that a killed process left."""

    def remove_folder(self, key: str) -> None:
        """Remove an empty folder."""

    def put(self, key: str, data: Buffer) -> None:
        """Make one object durable under `key`; replace an existing one atomically."""

    def put_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> None:
        """Make objects durable and visible, each atomically."""

    def write_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> StagedWrite:
        """Perform the first half of `put_many`; afterwards the caller may reuse the memory of the objects."""

    def append(self, key: str, line: bytes) -> None:
        """Append a line to an object."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects durably; ignore those that do not exist."""

    def remove_temporaries(self, own_only: bool) -> None:
        """Remove temporary files of interrupted writes."""

    def get(self, key: str, limit: int = OBJECT_LIMIT) -> bytes | None:
        """Return the content of an object, or None if it does not exist.

        An object of more than `limit` bytes raises DamagedError and is not read.
        """

    def list(self, folder: str) -> list[str]:
        """List the names in a folder, sorted; empty if it does not exist."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every object in a folder, by name."""

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, or None if it does not exist."""

    def stamp(self, key: str) -> object:
        """Return a value that changes when the object is replaced, or None if it does not exist."""

    def open_read(self, key: str, chunk: int = 0) -> Handle | None:
        """Open an object for positioned reads.

        If the object does not exist, return None, or let the first read raise FileNotFoundError.

        Args:
            key: key of the object.
            chunk: bytes of a chunk, if the object consists of chunks of equal size from its start; else 0.
        """

    def writer_lock(self) -> Lock:
        """Return the lock of the writers of the store."""

    def claim_lock(self, name: str) -> Lock:
        """Return the lock of one block."""

    def clear_claims(self) -> None:
        """Remove the claims of killed writers; only under the exclusive lock."""

    def structure_lock(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the lock for changes of the root document; it waits for the lock."""
