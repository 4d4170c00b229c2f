"""Positioned reads of a local file, and what to say when it cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, InputError, StratalensError


def unreadable(path: Path, error: OSError) -> StratalensError:
    """The error for a file or folder that cannot be read."""
    if error.errno == errno.ELOOP:
        return InputError(f"{path} is a link that leads back to itself (a loop): give the folder that is meant")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"{path} may not be read ({error.strerror}): ask for permission, or run as its owner")
    return DamagedError(f"{path} cannot be read ({error.strerror}): `stratalens verify` says what is affected")


class ReadHandle:
    """Positioned reads straight into memory; a context manager."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

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
