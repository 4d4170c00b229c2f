"""Positioned reads of a local file, and what to say when it cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, InputError, StratalensError
from stratalens.store.seam import Piece


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
