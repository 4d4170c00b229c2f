"""Reading inside one data file: inner chunks into NumPy memory, checked, unpacked and decoded.

Which files a selection touches is decided in `slabs`; what was written is in `shards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numcodecs import zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from stratalens.store.format.checksum import extend
from stratalens.store.format.layout import CRC_BYTES, ArrayLayout, consecutive_runs
from stratalens.store.format.shards import parse_index
from stratalens.store.reading.indexing import RowRanges, Selection, row_ranges
from stratalens.store.storage.base import Handle
from stratalens.store.threads import scratch

PIECE = 1 << 18


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # whose cast takes half the time of shifting bits with NumPy


TOO_SHORT = "the file is too short"


DIFFERS = "its bytes differ from their checksum"


BAD_INDEX = "the shard index is damaged"


class ChunkError(Exception):
    """Something is wrong with an inner chunk (or, with number None, with the whole file)."""

    def __init__(self, number: int | None, what: str) -> None:
        super().__init__(number, what)
        self.number, self.what = number, what


def bfloat16_to_float32(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """float32 values of bfloat16 bits, exactly, into `out` of the same shape."""
    out[...] = bits.view(BFLOAT16)


def read_with_checksum(
    handle: Handle, offset: int, nbytes: int, memory: NDArray[np.uint8] | None = None
) -> tuple[int, bytes] | None:
    """crc32c of an inner chunk and the one that is written behind it; None where the file is too short.

    Read into `memory` where that is given. Piece by piece, so that each is summed while it is
    in the processor's cache.
    """
    handle.expect(offset, nbytes)
    crc, end = 0, nbytes - CRC_BYTES
    if end < 0:
        return None
    tail = np.empty(CRC_BYTES, dtype=np.uint8)
    for start in range(0, end, PIECE):
        stop = min(start + PIECE, end)
        piece = scratch(stop - start) if memory is None else memory[start:stop]
        last = (piece, tail) if stop == end else (piece,)
        if not handle.read_into(last, offset + start):
            return None
        crc = extend(crc, piece)
    return crc, tail.tobytes()


@dataclass
class ChunkFile:
    """One data file that is open for reading.

    Parameters
    ----------
    handle
        Positioned reads on the file.
    layout
        How it is cut.
    decode
        Whether bfloat16 bits are widened to float32.
    verify
        Whether checksums are checked.
    checked
        Numbers of the inner chunks that were found whole before; grows.
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
        """Put rows of the file at `out[:, target]` [shape: (layer, row, token, *features)]; `valid` rows are real."""
        layout = self.layout
        every_row = isinstance(rows, slice) and isinstance(target, slice) and (rows.start, rows.stop) == (0, valid)
        simple = every_row and layout.inner_layers == 1 and layout.token_chunks == 1
        if simple and list(tokens) == list(range(layout.tokens)):
            self._whole(layers, out[:, target], valid)
            return
        few = None
        if not layout.compressed and self._trusted(layers, tokens):
            few = row_ranges(rows, layout.block_size, self.handle.gap // max(1, layout.row_nbytes))
        if few is not None:
            self._thin(layers, few, tokens, out, target)
        else:
            self._some(layers, rows, tokens, out, target)

    def _trusted(self, layers: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether no checksum has to be looked at any more."""
        if not self.verify:
            return True
        layout = self.layout
        if not layout.sharded:
            return 0 in self.checked
        runs_of_tokens = {t // layout.token_chunk for t in tokens}
        return self.checked.issuperset(layer * layout.token_chunks + r for layer in layers for r in runs_of_tokens)

    # -- whole inner chunks -------------------------------------------------------------
    def _place(self, number: int) -> tuple[int, int]:
        """Offset and stored bytes (with the crc32c) of an inner chunk."""
        layout = self.layout
        if not layout.compressed:
            return number * layout.inner_stride, layout.inner_stride
        if self._index is None:
            size = self.handle.size()
            raw = np.empty(layout.index_nbytes, dtype=np.uint8)
            if size < layout.index_nbytes or not self.handle.read_into([raw], size - layout.index_nbytes):
                raise ChunkError(None, TOO_SHORT)
            self._index = parse_index(layout, raw.tobytes(), size)
        if self._index is None:
            raise ChunkError(None, BAD_INDEX)
        offset, nbytes = self._index[number].tolist()
        return offset, nbytes

    def _chunk(self, number: int) -> NDArray[np.uint8]:
        """Bytes of an inner chunk, checked and unpacked; good until this thread reads the next one."""
        offset, nbytes = self._place(number)
        packed = scratch(max(0, nbytes - CRC_BYTES))
        if not self.verify:
            if not self.handle.read_into((packed,), offset):
                raise ChunkError(number, TOO_SHORT)
        elif (found := read_with_checksum(self.handle, offset, nbytes, packed)) is None:
            raise ChunkError(number, TOO_SHORT)
        else:
            self._compare(found[0], found[1], number)
        if not self.layout.compressed:
            return packed
        try:
            values = np.frombuffer(zstd.decompress(packed), dtype=np.uint8)
        except RuntimeError as error:
            raise ChunkError(number, f"it cannot be unpacked ({error})") from error
        if values.size != self.layout.inner_nbytes:
            raise ChunkError(number, f"it unpacks to {values.size} bytes instead of {self.layout.inner_nbytes}")
        return values

    def _whole(self, layers: Sequence[int], out: NDArray[Any], valid: int) -> None:
        """All rows of some layers, in file order, straight into `out` [shape: (layer, row, token, *features)]."""
        layout = self.layout
        used = valid * layout.row_nbytes
        if layout.compressed:
            for position, layer in enumerate(layers):
                self._assign(out[position], self._chunk(layer)[:used].view(layout.variable.storage_dtype))
            return
        if self.decode:
            for position, layer in enumerate(layers):
                self._widen(layer, out[position], used)
            return
        tail = layout.inner_nbytes - used + CRC_BYTES
        for position, first, length in consecutive_runs(layers):
            buffers, tails = [], []
            for k in range(length):
                tails.append(np.empty(tail, dtype=np.uint8))
                buffers += [out[position + k].reshape(-1).view(np.uint8), tails[-1]]
            if not self.handle.read_into(buffers, first * layout.inner_stride):
                raise ChunkError(first, TOO_SHORT)
            if self.verify:
                for k in range(length):
                    crc = extend(extend(0, buffers[2 * k]), tails[k][:-CRC_BYTES])
                    self._compare(crc, tails[k][-CRC_BYTES:].tobytes(), first + k)

    def _widen(self, layer: int, out: NDArray[np.float32], used: int) -> None:
        """One inner chunk piece by piece: read, checksum and widen while it is in the processor's cache."""
        layout = self.layout
        offset = layer * layout.inner_stride
        self.handle.expect(offset, layout.inner_stride)
        flat = out.reshape(-1)
        crc = 0
        for start in range(0, used, PIECE):
            stop = min(start + PIECE, used)
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
            self._compare(extend(crc, tail[:-CRC_BYTES]), tail[-CRC_BYTES:].tobytes(), layer)

    # -- parts of inner chunks ------------------------------------------------------------
    def _thin(
        self, layers: Sequence[int], rows: RowRanges, tokens: Sequence[int], out: NDArray[Any], target: Selection
    ) -> None:
        """Few rows that nothing has to be checked of any more: only they are read, some layers at a time."""
        layout = self.layout
        width, run = layout.row_nbytes, layout.token_chunk
        chunks = sorted({t // run for t in tokens})
        nbytes = len(chunks) * rows.count * width
        step = max(1, PIECE // nbytes)
        # From one layer to the next, in the file.
        apart = layout.token_chunks * layout.inner_stride if layout.sharded else layout.block_size * width
        inside = [(low * width, (high - low) * width) for low, high in rows.spans]
        for first in range(0, len(layers), step):
            chosen = layers[first : first + step]
            memory = scratch(nbytes * len(chosen))
            starts = [layer * apart + chunk * layout.inner_stride for layer in chosen for chunk in chunks]
            spans = [(start + low, size) for start in starts for low, size in inside]
            if not self.handle.read_pieces(memory, spans):
                raise ChunkError(None, TOO_SHORT)
            shape = (len(chosen), len(chunks), rows.count, run, *layout.variable.shape)
            values = memory.view(layout.variable.storage_dtype).reshape(shape)
            for position, chunk in enumerate(chunks):
                self._put(values[:, position, rows.picks], chunk, tokens, out[first : first + step], target)

    def _some(
        self, layers: Sequence[int], rows: Selection, tokens: Sequence[int], out: NDArray[Any], target: Selection
    ) -> None:
        """Any selection: chunk by chunk through scratch memory; all of a chunk is read, to check it."""
        layout = self.layout
        inner = (layout.inner_layers, layout.block_size, layout.token_chunk, *layout.variable.shape)
        for chunk in sorted({t // layout.token_chunk for t in tokens}):
            numbers = [layer * layout.token_chunks + chunk for layer in layers] if layout.sharded else [0]
            for position, number in enumerate(numbers):
                values = self._chunk(number).view(layout.variable.storage_dtype).reshape(inner)
                part = values[:, rows] if layout.sharded else values[list(layers)][:, rows]
                self._put(part, chunk, tokens, out[position : position + len(part)], target)

    def _put(
        self, values: NDArray[Any], chunk: int, tokens: Sequence[int], out: NDArray[Any], target: Selection
    ) -> None:
        """Values [shape: (layer, row, token in run, *features)] of one run of tokens into their rows and tokens."""
        run = self.layout.token_chunk
        places = [k for k, t in enumerate(tokens) if t // run == chunk]
        inner = [tokens[k] % run for k in places]
        whole = len(places) == len(tokens)
        if inner != list(range(run)):
            values = values[:, :, inner]
        if whole and isinstance(target, slice):
            self._assign(out[:, target], values)
            return
        if self.decode:
            decoded = np.empty(values.shape, dtype=np.float32)
            bfloat16_to_float32(values, decoded)
            values = decoded
        if whole:
            out[:, target] = values
        elif isinstance(target, slice):
            out[:, target][:, :, places] = values
        else:
            out[:, target[:, None], np.asarray(places)] = values

    def _assign(self, out: NDArray[Any], values: NDArray[Any]) -> None:
        """Values in storage order into `out` of as many elements."""
        values = values.reshape(out.shape)
        if self.decode:
            bfloat16_to_float32(values, out)
        else:
            out[...] = values

    def _compare(self, crc: int, held: bytes, number: int) -> None:
        if crc != int.from_bytes(held, "little"):
            raise ChunkError(number, DIFFERS)
        self.checked.add(number)
