"""File images: a block of one variable in memory exactly as it will lie on disk.

Each inner chunk's C-ordered bytes are followed by room for its crc32c, and a
shard ends with its index; so sealing a block is one pass over it and writing it
needs no copy. Reading is in `slabs`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numcodecs import zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from stratalens.store.format.checksum import crc32c, extend
from stratalens.store.format.layout import CRC_BYTES, ArrayLayout
from stratalens.store.format.schema import Variable

_PIECE = 1 << 20


def index_bytes(layout: ArrayLayout) -> bytes:
    """The index of a shard with its crc32c: (offset, length) of every inner chunk; of all files that are not packed."""
    return pack_index([layout.inner_stride] * layout.inner_count)


def pack_index(sizes: Sequence[int]) -> bytes:
    """The index of a shard whose inner chunks take `sizes` bytes each, one behind the other."""
    index = np.empty((len(sizes), 2), dtype="<u8")
    index[:, 1] = sizes
    index[:, 0] = np.cumsum(index[:, 1]) - index[:, 1]
    raw = index.tobytes()
    return raw + crc32c(raw).to_bytes(CRC_BYTES, "little")


def parse_index(layout: ArrayLayout, raw: bytes, file_nbytes: int) -> NDArray[np.int64] | None:
    """(offset, bytes with crc32c) of every inner chunk [shape: (chunk, 2)], or None where the index is damaged.

    `raw` is the end of the file, `layout.index_nbytes` long; a plain file is its one chunk.
    """
    if not layout.sharded:
        return np.array([[0, file_nbytes]], dtype=np.int64)
    index = np.frombuffer(raw[:-CRC_BYTES], dtype="<u8").reshape(-1, 2)
    sizes = index[:, 1].tolist()
    if raw != pack_index(sizes) or sum(sizes) != file_nbytes - layout.index_nbytes or min(sizes) < CRC_BYTES:
        return None
    return index.astype(np.int64)


class FileImage:
    """One file of one variable in memory.

    Parameters
    ----------
    layout
        Geometry of the variable.
    memory
        [array, shape: (layout.file_nbytes,), uint8]

    Attributes
    ----------
    values
        View of the memory [shape: (layer, token run, row, token in run, *features)] in storage dtype.
    """

    def __init__(self, layout: ArrayLayout, memory: NDArray[np.uint8]) -> None:
        self.layout = layout
        self.memory = memory
        variable: Variable = layout.variable
        dtype = variable.storage_dtype
        inner = (layout.block_size, layout.token_chunk, *variable.shape)
        steps = [dtype.itemsize]
        for size in reversed(inner[1:]):
            steps.append(steps[-1] * size)
        if layout.sharded:
            outer = (layout.token_chunks * layout.inner_stride, layout.inner_stride)
        else:
            outer = (layout.block_size * layout.row_nbytes, 0)
        self.values: NDArray[np.generic] = np.ndarray(
            (layout.layers, layout.token_chunks, *inner),
            dtype=dtype,
            buffer=memory.data,
            strides=(*outer, *reversed(steps)),
        )
        self._index = index_bytes(layout) if layout.sharded else b""
        self.digest = 0

    def clear(self, rows: int) -> None:
        """Fill what lies behind `rows` rows and behind the last token."""
        fill = self.layout.variable.fill
        self.values[:, :, rows:] = fill
        behind = self.layout.tokens - (self.layout.token_chunks - 1) * self.layout.token_chunk
        self.values[:, -1, :, behind:] = fill

    def put(
        self,
        layers: slice | NDArray[np.intp],
        rows: slice | NDArray[np.intp],
        values: NDArray[np.generic],
        first: int = 0,
    ) -> None:
        """Copy values [shape: (layer, row, token, *features)] to their place; tokens before `first` are missing."""
        layout = self.layout
        for run in range(layout.token_chunks):
            start = run * layout.token_chunk
            stop = min(start + layout.token_chunk, layout.tokens)
            lacking = min(max(first - start, 0), stop - start)
            part = values[:, :, max(start - first, 0) : max(stop - first, 0)]
            for position, layer in [(None, layers)] if isinstance(layers, slice) else enumerate(layers):
                place = self.values[layer, run]
                across = (slice(None), rows) if position is None else (rows,)
                place[(*across, slice(0, lacking))] = layout.variable.fill
                place[(*across, slice(lacking, stop - start))] = part if position is None else part[position]

    def fill(self, rows: NDArray[np.intp]) -> None:
        """Mark rows as never recorded."""
        self.values[:, :, rows] = self.layout.variable.fill

    def seal(self) -> Generator[NDArray[np.uint8]]:
        """Compute the checksums and yield the file's bytes piece by piece; `digest` is known afterwards.

        The digest is the crc32c over the crc32c of every inner chunk, in order.
        """
        layout, memory = self.layout, self.memory
        self.digest = 0
        if layout.compressed:
            yield from self._seal_packed()
            return
        start = 0
        for number in range(layout.inner_count):
            at = number * layout.inner_stride
            end = at + layout.inner_nbytes
            crc = extend(0, memory[at:end]).to_bytes(CRC_BYTES, "little")
            tail = memory[end : end + CRC_BYTES]
            tail[:] = np.frombuffer(crc, dtype=np.uint8)
            self.digest = extend(self.digest, tail)
            # Written while it is still in the processor's cache.
            if end + CRC_BYTES - start >= _PIECE:
                yield memory[start : end + CRC_BYTES]
                start = end + CRC_BYTES
        if self._index:
            memory[layout.file_nbytes - layout.index_nbytes :] = np.frombuffer(self._index, dtype=np.uint8)
        if start < layout.file_nbytes:
            yield memory[start:]

    def _seal_packed(self) -> Generator[NDArray[np.uint8]]:
        """The same for compressed inner chunks, which lie one behind the other at the sizes they have."""
        layout, sizes = self.layout, []
        for number in range(layout.inner_count):
            at = number * layout.inner_stride
            raw = zstd.compress(self.memory[at : at + layout.inner_nbytes], 1)
            packed = np.frombuffer(raw, dtype=np.uint8)
            tail = np.frombuffer(extend(0, packed).to_bytes(CRC_BYTES, "little"), dtype=np.uint8)
            self.digest = extend(self.digest, tail)
            sizes.append(packed.size + CRC_BYTES)
            yield packed
            yield tail
        if layout.sharded:
            yield np.frombuffer(pack_index(sizes), dtype=np.uint8)
