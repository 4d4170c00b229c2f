"""Reading inside one data file: checked, decompressed and decoded chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numcodecs import zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from stratalens.store.format.checksum import extend
from stratalens.store.format.label_codec import frame_content_size
from stratalens.store.format.layout import CRC_BYTES, ArrayLayout, consecutive_runs
from stratalens.store.format.shards import parse_index
from stratalens.store.reading.indexing import RowRanges, Selection, row_ranges
from stratalens.store.storage.base import Handle
from stratalens.store.threads import scratch

READ_BYTES = 1 << 18  # read at a time, so that checksum and cast find the bytes in the processor's cache
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # its cast takes half the time of shifting bits with NumPy

TOO_SHORT = "the file is too short"
DIFFERS = "its bytes differ from their checksum"
BAD_INDEX = "the shard index is damaged"


class ChunkError(Exception):
    """Damage of an inner chunk; `number` is None if it concerns the whole file."""

    def __init__(self, number: int | None, reason: str) -> None:
        super().__init__(number, reason)
        self.number, self.reason = number, reason


def bfloat16_to_float32(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """Write the float32 values of bfloat16 bits into an array of the same shape."""
    out[...] = bits.view(BFLOAT16)


def read_with_checksum(
    handle: Handle, offset: int, nbytes: int, memory: NDArray[np.uint8] | None = None
) -> tuple[int, bytes] | None:
    """Read an inner chunk and return its crc32c and the stored crc32c.

    Args:
        handle: positioned reads on the file.
        offset: first byte of the inner chunk.
        nbytes: bytes of the inner chunk with its stored crc32c.
        memory: uint8 array of shape (nbytes - 4,) that receives the bytes, if given.

    Returns:
        The computed and the stored crc32c; None if the file is too short.
    """
    handle.expect(offset, nbytes)
    crc, end = 0, nbytes - CRC_BYTES
    if end < 0:
        return None
    stored_crc = np.empty(CRC_BYTES, dtype=np.uint8)
    for start in range(0, end, READ_BYTES):
        stop = min(start + READ_BYTES, end)
        target = scratch(stop - start) if memory is None else memory[start:stop]
        targets = (target, stored_crc) if stop == end else (target,)
        if not handle.read_into(targets, offset + start):
            return None
        crc = extend(crc, target)
    return crc, stored_crc.tobytes()


@dataclass
class ChunkFile:
    """One data file that is open for reading.

    Attributes:
        handle: positioned reads on the file.
        layout: geometry of the file.
        decode: whether bfloat16 bits are widened to float32.
        verify: whether checksums are checked.
        checked: numbers of the inner chunks whose checksum was correct; `read` adds to it. Threads share the set
            without a lock: each operation on it is atomic, also in a free-threaded Python, and a chunk that two
            threads check twice costs only time.
    """

    handle: Handle
    layout: ArrayLayout
    decode: bool = False
    verify: bool = True
    checked: set[int] = field(default_factory=set)
    _index: NDArray[np.int64] | None = None

    def read(
        self,
        layers: Sequence[int],
        rows: Selection,
        tokens: Sequence[int],
        out: NDArray[Any],
        target: Selection,
        valid: int,
    ) -> None:
        """Read some rows of the file into `out[:, target]`.

        Args:
            layers: positions along the layer axis.
            rows: rows of the block.
            tokens: positions along the token axis.
            out: array of shape (layers, rows, tokens, *features).
            target: rows of `out`, one for each of `rows`.
            valid: number of rows of the block that are not padding.
        """
        layout = self.layout
        all_rows = isinstance(rows, slice) and isinstance(target, slice) and (rows.start, rows.stop) == (0, valid)
        one_chunk_a_layer = layout.inner_layers == 1 and layout.token_chunks == 1
        if all_rows and one_chunk_a_layer and list(tokens) == list(range(layout.tokens)):
            self._read_all(layers, out[:, target], valid)
            return
        ranges = None
        if not layout.compressed and self._is_checked(layers, tokens):
            ranges = row_ranges(rows, layout.block_size, self.handle.gap // max(1, layout.row_nbytes))
        if ranges is not None:
            self._read_rows(layers, ranges, tokens, out, target)
        else:
            self._read_chunks(layers, rows, tokens, out, target)

    def _is_checked(self, layers: Sequence[int], tokens: Sequence[int]) -> bool:
        """Return whether every inner chunk of a selection was checked, or none has to be."""
        if not self.verify:
            return True
        layout = self.layout
        if not layout.sharded:
            return 0 in self.checked
        token_chunks = {token // layout.token_chunk for token in tokens}
        return self.checked.issuperset(layer * layout.token_chunks + k for layer in layers for k in token_chunks)

    def _read_all(self, layers: Sequence[int], out: NDArray[Any], valid: int) -> None:
        """Read all rows of some layers, in file order.

        `out` has shape (layers, rows, tokens, *features).
        """
        layout = self.layout
        used = valid * layout.row_nbytes
        if layout.compressed:
            for position, layer in enumerate(layers):
                self._assign(out[position], self._load_chunk(layer)[:used].view(layout.variable.storage_dtype))
            return
        if self.decode:
            for position, layer in enumerate(layers):
                self._read_decoded(layer, out[position], used)
            return
        tail_nbytes = layout.inner_nbytes - used + CRC_BYTES
        for position, first, length in consecutive_runs(layers):
            values = [out[position + k].reshape(-1).view(np.uint8) for k in range(length)]
            tails = [np.empty(tail_nbytes, dtype=np.uint8) for _ in range(length)]
            buffers = [buffer for pair in zip(values, tails, strict=True) for buffer in pair]
            if not self.handle.read_into(buffers, first * layout.inner_stride):
                raise ChunkError(first, TOO_SHORT)
            if self.verify:
                for k in range(length):
                    crc = extend(extend(0, values[k]), tails[k][:-CRC_BYTES])
                    self._check(crc, tails[k][-CRC_BYTES:].tobytes(), first + k)

    def _read_decoded(self, layer: int, out: NDArray[np.float32], used: int) -> None:
        """Read, check and widen one inner chunk, `READ_BYTES` at a time."""
        layout = self.layout
        offset = layer * layout.inner_stride
        self.handle.expect(offset, layout.inner_stride)
        flat = out.reshape(-1)
        crc = 0
        for start in range(0, used, READ_BYTES):
            stop = min(start + READ_BYTES, used)
            memory = scratch(stop - start)
            if not self.handle.read_into([memory], offset + start):
                raise ChunkError(layer, TOO_SHORT)
            if self.verify:
                crc = extend(crc, memory)
            bfloat16_to_float32(memory.view(np.uint16), flat[start // 2 : stop // 2])
        if self.verify:
            tail = np.empty(layout.inner_nbytes - used + CRC_BYTES, dtype=np.uint8)
            if not self.handle.read_into([tail], offset + used):
                raise ChunkError(layer, TOO_SHORT)
            self._check(extend(crc, tail[:-CRC_BYTES]), tail[-CRC_BYTES:].tobytes(), layer)

    def _read_rows(
        self, layers: Sequence[int], ranges: RowRanges, tokens: Sequence[int], out: NDArray[Any], target: Selection
    ) -> None:
        """Read row ranges of checked inner chunks, several layers at a time."""
        layout = self.layout
        row_nbytes, run = layout.row_nbytes, layout.token_chunk
        chunks = sorted({token // run for token in tokens})
        layer_nbytes = len(chunks) * ranges.count * row_nbytes
        step = max(1, READ_BYTES // layer_nbytes)
        layer_stride = layout.token_chunks * layout.inner_stride if layout.sharded else layout.block_size * row_nbytes
        for first in range(0, len(layers), step):
            some_layers = layers[first : first + step]
            memory = scratch(layer_nbytes * len(some_layers))
            spans = [
                (layer * layer_stride + chunk * layout.inner_stride + start * row_nbytes, (stop - start) * row_nbytes)
                for layer in some_layers
                for chunk in chunks
                for start, stop in ranges.spans
            ]
            if not self.handle.read_pieces(memory, spans):
                raise ChunkError(None, TOO_SHORT)
            shape = (len(some_layers), len(chunks), ranges.count, run, *layout.variable.shape)
            values = memory.view(layout.variable.storage_dtype).reshape(shape)
            for position, chunk in enumerate(chunks):
                self._put(values[:, position, ranges.picks], chunk, tokens, out[first : first + step], target)

    def _read_chunks(
        self, layers: Sequence[int], rows: Selection, tokens: Sequence[int], out: NDArray[Any], target: Selection
    ) -> None:
        """Read any selection through scratch memory, in whole inner chunks."""
        layout = self.layout
        inner = (layout.inner_layers, layout.block_size, layout.token_chunk, *layout.variable.shape)
        for chunk in sorted({token // layout.token_chunk for token in tokens}):
            numbers = [layer * layout.token_chunks + chunk for layer in layers] if layout.sharded else [0]
            for position, number in enumerate(numbers):
                values = self._load_chunk(number).view(layout.variable.storage_dtype).reshape(inner)
                selected = values[:, rows] if layout.sharded else values[list(layers)][:, rows]
                self._put(selected, chunk, tokens, out[position : position + len(selected)], target)

    def _load_chunk(self, number: int) -> NDArray[np.uint8]:
        """Return the bytes of an inner chunk, checked and decompressed.

        They are valid until this thread loads the next chunk.
        """
        offset, nbytes = self._locate(number)
        stored = scratch(max(0, nbytes - CRC_BYTES))
        if self.verify:
            checksums = read_with_checksum(self.handle, offset, nbytes, stored)
            if checksums is None:
                raise ChunkError(number, TOO_SHORT)
            self._check(*checksums, number)
        elif not self.handle.read_into((stored,), offset):
            raise ChunkError(number, TOO_SHORT)
        if not self.layout.compressed:
            return stored
        size = frame_content_size(stored[:18].tobytes())
        if size != self.layout.inner_nbytes:
            raise ChunkError(number, f"it decompresses to {size} bytes instead of {self.layout.inner_nbytes}")
        try:
            return np.frombuffer(zstd.decompress(stored), dtype=np.uint8)
        except (RuntimeError, ValueError) as error:
            raise ChunkError(number, f"it cannot be decompressed ({error})") from error

    def _locate(self, number: int) -> tuple[int, int]:
        """Return the offset of an inner chunk and its stored bytes, crc32c included."""
        layout = self.layout
        if not layout.compressed:
            return number * layout.inner_stride, layout.inner_stride
        if self._index is None:
            size = self.handle.size()
            if size < layout.index_nbytes:
                raise ChunkError(None, TOO_SHORT)
            raw = np.empty(layout.index_nbytes, dtype=np.uint8)
            if not self.handle.read_into([raw], size - layout.index_nbytes):
                raise ChunkError(None, TOO_SHORT)
            self._index = parse_index(layout, raw.tobytes(), size)
        if self._index is None:
            raise ChunkError(None, BAD_INDEX)
        offset, nbytes = self._index[number].tolist()
        return offset, nbytes

    def _put(
        self, values: NDArray[Any], chunk: int, tokens: Sequence[int], out: NDArray[Any], target: Selection
    ) -> None:
        """Put values of one token chunk into `out`.

        `values` has shape (layers, rows, tokens of the chunk, *features).
        """
        run = self.layout.token_chunk
        positions = [k for k, token in enumerate(tokens) if token // run == chunk]
        inner = [tokens[k] % run for k in positions]
        all_tokens = len(positions) == len(tokens)
        if inner != list(range(run)):
            values = values[:, :, inner]
        if all_tokens and isinstance(target, slice):
            self._assign(out[:, target], values)
            return
        if self.decode:
            decoded = np.empty(values.shape, dtype=np.float32)
            bfloat16_to_float32(values, decoded)
            values = decoded
        if all_tokens:
            out[:, target] = values
        elif isinstance(target, slice):
            out[:, target][:, :, positions] = values
        else:
            out[:, target[:, None], np.asarray(positions)] = values

    def _assign(self, out: NDArray[Any], values: NDArray[Any]) -> None:
        """Write values in storage order into `out`, an array of as many elements."""
        values = values.reshape(out.shape)
        if self.decode:
            bfloat16_to_float32(values, out)
        else:
            out[...] = values

    def _check(self, crc: int, stored_crc: bytes, number: int) -> None:
        """Compare the checksum of an inner chunk with the stored one."""
        if crc != int.from_bytes(stored_crc, "little"):
            raise ChunkError(number, DIFFERS)
        self.checked.add(number)
