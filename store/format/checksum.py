"""crc32c of memory, without holding the interpreter lock where that can be had.

`google_crc32c.value` computes while holding the lock, which would stop the
forward pass while the background thread checksums a block and would make
parallel verification no faster than one thread. The C library that it wraps
is reached through ctypes, which releases the lock; where the symbol is not
visible the wrapper is used, with the same results.
"""

from __future__ import annotations

import ctypes
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray


def _library_function() -> Any:
    try:
        from google_crc32c import _crc32c

        function = ctypes.CDLL(_crc32c.__file__).crc32c_extend
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    probe = np.frombuffer(b"123456789", dtype=np.uint8)
    return function if function(0, probe.ctypes.data, probe.size) == 0xE3069283 else None


_extend = _library_function()


RELEASES_GIL = _extend is not None


def extend(crc: int, data: NDArray[Any]) -> int:
    """crc32c of what `crc` stands for followed by the bytes of `data` (C-contiguous).

    >>> extend(0, np.frombuffer(b"123456789", dtype=np.uint8)) == 0xE3069283
    True
    """
    if not data.flags.c_contiguous:
        raise ValueError("crc32c needs contiguous memory")
    if _extend is not None:
        return int(_extend(crc, data.ctypes.data, data.nbytes))
    return int(google_crc32c.extend(crc, data.reshape(-1).view(np.uint8).tobytes()))


def crc32c(data: NDArray[Any] | bytes | bytearray | memoryview) -> int:
    """crc32c of bytes or of a C-contiguous array.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if isinstance(data, np.ndarray):
        return extend(0, data)
    return extend(0, np.frombuffer(data, dtype=np.uint8)) if len(data) else 0
