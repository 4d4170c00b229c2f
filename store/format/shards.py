"""One data file in memory, with the bytes that it has on disk.

Room for its crc32c follows the C-ordered bytes of each inner chunk, and a shard ends with its index. Computing the
checksums is therefore one pass over the memory, and writing needs no copy.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numcodecs import zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from stratalens.store.format.checksum import crc32c, extend
from stratalens.store.format.layout import CRC_BYTES, ArrayLayout
from stratalens.store.format.schema import Variable

WRITE_BYTES = 1 << 20  # bytes handed to one write: small enough to stay in the processor's cache


def index_bytes(layout: ArrayLayout) -> bytes:
    """Return the index of an uncompressed shard with its crc32c: (offset, length) of every inner chunk."""
    return pack_index([layout.inner_stride] * layout.inner_count)


def pack_index(sizes: Sequence[int]) -> bytes:
    """Return the index of a shard with its crc32c, for contiguous inner chunks of `sizes` bytes."""
    index = np.empty((len(sizes), 2), dtype="<u8")
    index[:, 1] = sizes
    index[:, 0] = np.cumsum(index[:, 1]) - index[:, 1]
    raw = index.tobytes()
    return raw + crc32c(raw).to_bytes(CRC_BYTES, "little")


def parse_index(layout: ArrayLayout, raw: bytes, file_nbytes: int) -> NDArray[np.int64] | None:
    """Parse the index of a shard.

    Args:
        layout: geometry of the variable.
        raw: the last `layout.index_nbytes` bytes of the file.
        file_nbytes: size of the file.

    Returns:
        int64 array of shape (chunks, 2): offset and bytes of every inner chunk, its crc32c included. A plain file
        is one chunk. None if the index is damaged.
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

    Args:
        layout: geometry of the variable.
        memory: uint8 array of shape (layout.file_nbytes,).

    Attributes:
        values: view of the memory in storage dtype, of shape (layers, token runs, rows, tokens in run, *features).
        digest: crc32c over the crc32c of every inner chunk, in order; valid after `encode`.
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
        """Fill the padding: everything after the first `rows` rows and after the last token."""
        fill = self.layout.variable.fill
        self.values[:, :, rows:] = fill
        last_run = self.layout.tokens - (self.layout.token_chunks - 1) * self.layout.token_chunk
        self.values[:, -1, :, last_run:] = fill

    def put(
        self,
        layers: slice | NDArray[np.intp],
        rows: slice | NDArray[np.intp],
        values: NDArray[np.generic],
        first: int = 0,
    ) -> None:
        """Copy values into the file.

        Args:
            layers: layers of the values.
            rows: rows of the values in the block.
            values: array of shape (layers, rows, tokens, *features) in storage dtype.
            first: token of the first value; tokens before it are missing.
        """
        layout = self.layout
        for run in range(layout.token_chunks):
            start = run * layout.token_chunk
            stop = min(start + layout.token_chunk, layout.tokens)
            missing = min(max(first - start, 0), stop - start)
            tokens = values[:, :, max(start - first, 0) : max(stop - first, 0)]
            if isinstance(layers, slice):
                target = self.values[layers, run]
                target[:, rows, :missing] = layout.variable.fill
                target[:, rows, missing : stop - start] = tokens
                continue
            for position, layer in enumerate(layers):
                target = self.values[layer, run]
                target[rows, :missing] = layout.variable.fill
                target[rows, missing : stop - start] = tokens[position]

    def fill(self, rows: NDArray[np.intp]) -> None:
        """Mark rows as never recorded."""
        self.values[:, :, rows] = self.layout.variable.fill

    def encode(self) -> Generator[NDArray[np.uint8]]:
        """Compute the checksums and yield the bytes of the file in slices; `digest` is known afterwards."""
        layout, memory = self.layout, self.memory
        self.digest = 0
        if layout.compressed:
            yield from self._compress()
            return
        start = 0
        for number in range(layout.inner_count):
            at = number * layout.inner_stride
            end = at + layout.inner_nbytes
            crc = extend(0, memory[at:end]).to_bytes(CRC_BYTES, "little")
            tail = memory[end : end + CRC_BYTES]
            tail[:] = np.frombuffer(crc, dtype=np.uint8)
            self.digest = extend(self.digest, tail)
            if end + CRC_BYTES - start >= WRITE_BYTES:
                yield memory[start : end + CRC_BYTES]
                start = end + CRC_BYTES
        if self._index:
            memory[layout.file_nbytes - layout.index_nbytes :] = np.frombuffer(self._index, dtype=np.uint8)
        if start < layout.file_nbytes:
            yield memory[start:]

    def _compress(self) -> Generator[NDArray[np.uint8]]:
        """Compress the inner chunks and yield them one after the other, then the index with their sizes."""
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
