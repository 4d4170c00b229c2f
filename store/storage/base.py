"""What the store needs from the place where it lies: a few operations on whole objects, and locks.

`storage` has them on a file system, `remote` on whatever fsspec reaches. Everything
above speaks in keys (paths relative to the store) and never in open files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

PRIVATE = ".stratalens"


TEMPORARY = f"{PRIVATE}/tmp"


Piece = tuple[int, int]  # offset, bytes


Buffer = bytes | NDArray[Any]


Kind = Literal["nothing", "file", "folder"]


class Handle(AbstractContextManager["Handle"], Protocol):
    """Positioned reads on one object."""

    @property
    def gap(self) -> int:
        """Bytes that are better read along than left out between two pieces."""

    def size(self) -> int:
        """Bytes of the object."""

    def expect(self, offset: int, nbytes: int) -> None:
        """Hint that this range is going to be read piece by piece."""

    def read_into(self, buffers: Sequence[NDArray[np.uint8]], offset: int) -> bool:
        """Fill the buffers one after the other from `offset`; False if the object ends before."""

    def read_pieces(self, memory: NDArray[np.uint8], pieces: Sequence[Piece]) -> bool:
        """Fill `memory` with these parts of the object, one behind the other; False if the object ends before."""


class StagedWrite(Protocol):
    """What is written and not yet durable."""

    def publish(self) -> None:
        """Make it durable, then visible."""

    def discard(self) -> None:
        """Leave nothing of it that can be seen."""


class Lock(Protocol):
    """A lock that falls when its holder dies."""

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if nobody stands against it."""

    def note(self) -> None:
        """Write who holds the lock, for the other's error message only."""

    def clear_note(self) -> None:
        """Take the note back."""

    def holder(self) -> str:
        """Who holds the lock, as far as it can be told."""

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""

    def release(self, *, unlink: bool = False) -> None:
        """Let go."""


class Storage(Protocol):
    """The place of one store."""

    @property
    def root(self) -> Any:
        """Path or URL of the store."""

    @property
    def high_latency(self) -> bool:
        """Whether a read waits for a network, so that many at a time pay off."""

    def path(self, key: str) -> Any:
        """Path or URL of a key, for messages."""

    def kind(self) -> Kind:
        """What lies at the root."""

    def is_folder(self, key: str) -> bool:
        """Whether the key is a folder (and no link)."""

    def inner_stores(self) -> list[str]:
        """Stores in the folder, one level down, for messages."""

    def neighbours(self) -> list[str]:
        """Paths of the stores in the same folder, for messages."""

    def make_folders(self, keys: Iterable[str]) -> None:
        """Create folders and their parents, durably."""

    def remove_folder(self, key: str) -> None:
        """Remove an empty folder."""

    def put(self, key: str, data: Buffer) -> None:
        """Make one object durable under `key`, replacing what was there atomically."""

    def put_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> None:
        """Make objects durable and visible, each atomically."""

    def write_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> StagedWrite:
        """The first half of `put_many`; the memory of the objects is free when this returns."""

    def append(self, key: str, line: bytes) -> None:
        """Add to the end of an object."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects (those that are not there are ignored), durably."""

    def remove_temporaries(self, own_only: bool) -> None:
        """Remove what interrupted writes have left."""

    def get(self, key: str) -> bytes | None:
        """Bytes of an object, or None where there is none."""

    def list(self, folder: str) -> list[str]:
        """Sorted names in a folder (empty where it does not exist)."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object in a folder, by name."""

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None where there is none."""

    def stamp(self, key: str) -> object:
        """What differs as soon as an object was replaced; None where there is none."""

    def open_read(self, key: str) -> Handle | None:
        """Handle for positioned reads; None where there is no object, or its first read raises FileNotFoundError."""

    def writer_lock(self) -> Lock:
        """The lock of the store's writers."""

    def claim_lock(self, name: str) -> Lock:
        """The lock of one block."""

    def clear_claims(self) -> None:
        """Remove what killed writers have left of claims; only under the exclusive lock."""

    def structure_lock(self) -> AbstractContextManager[None]:
        """Held around a change of the root metadata; waits for others, who hold it for moments."""
