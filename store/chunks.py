"""Reading inside one data file: inner chunks into NumPy memory, checked, unpacked and decoded.

Which files a selection touches is decided in `slabs`; what was written is in `shards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numcodecs import zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from stratalens.store.checksum import extend
from stratalens.store.layout import CRC_BYTES, ArrayLayout, runs
from stratalens.store.seam import Handle
from stratalens.store.shards import parse_index
from stratalens.store.threads import scratch

Selection = slice | NDArray[np.intp]
PIECE = 1 << 18
TOO_SHORT = "the file is too short"
DIFFERS = "its bytes differ from their checksum"
BAD_INDEX = "the shard index is damaged"


class Fault(Exception):  # noqa: N818 - never leaves the package: it becomes a DamagedError that names the place
    """Something is wrong with an inner chunk (or, with number None, with the whole file)."""

    def __init__(self, number: int | None, what: str) -> None:
        super().__init__(number, what)
        self.number, self.what = number, what


def widen(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """float32 values of bfloat16 bits, exactly, into `out` of the same shape."""
    wide = out.view(np.uint32)
    wide[...] = bits
    np.left_shift(wide, 16, out=wide)


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
        simple = layout.inner_layers == 1 and layout.token_chunks == 1 and list(tokens) == list(range(layout.tokens))
        if simple and isinstance(rows, slice) and isinstance(target, slice):
            if (rows.start, rows.stop) == (0, valid):
                self._whole(layers, out[:, target], valid)
                return
            few = 2 * (rows.stop - rows.start) <= layout.block_size
            if few and not layout.compressed and (not self.verify or self.checked.issuperset(layers)):
                self._thin(layers, rows, out, target)
                return
        self._some(layers, rows, tokens, out, target)

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
                raise Fault(None, TOO_SHORT)
            self._index = parse_index(layout, raw.tobytes(), size)
        if self._index is None:
            raise Fault(None, BAD_INDEX)
        offset, nbytes = self._index[number].tolist()
        return offset, nbytes

    def _chunk(self, number: int) -> NDArray[np.uint8]:
        """Bytes of an inner chunk, checked and unpacked; good until this thread reads the next one."""
        offset, nbytes = self._place(number)
        memory = scratch(nbytes)
        if nbytes < CRC_BYTES or not self.handle.read_into([memory], offset):
            raise Fault(number, TOO_SHORT)
        packed = memory[:-CRC_BYTES]
        if self.verify:
            self._compare(extend(0, packed), memory[-CRC_BYTES:], number)
            self.checked.add(number)
        if not self.layout.compressed:
            return packed
        try:
            values = np.frombuffer(zstd.decompress(packed), dtype=np.uint8)
        except RuntimeError as error:
            raise Fault(number, f"it cannot be unpacked ({error})") from error
        if values.size != self.layout.inner_nbytes:
            raise Fault(number, f"it unpacks to {values.size} bytes instead of {self.layout.inner_nbytes}")
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
        for position, first, length in runs(layers):
            buffers, tails = [], []
            for k in range(length):
                tails.append(np.empty(tail, dtype=np.uint8))
                buffers += [out[position + k].reshape(-1).view(np.uint8), tails[-1]]
            if not self.handle.read_into(buffers, first * layout.inner_stride):
                raise Fault(first, TOO_SHORT)
            if self.verify:
                for k in range(length):
                    crc = extend(extend(0, buffers[2 * k]), tails[k][:-CRC_BYTES])
                    self._compare(crc, tails[k][-CRC_BYTES:], first + k)

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
                raise Fault(layer, TOO_SHORT)
            if self.verify:
                crc = extend(crc, memory)
            widen(memory.view(np.uint16), flat[start // 2 : stop // 2])
        if self.verify:
            tail = np.empty(layout.inner_nbytes - used + CRC_BYTES, dtype=np.uint8)
            if not self.handle.read_into([tail], offset + used):
                raise Fault(layer, TOO_SHORT)
            self._compare(extend(crc, tail[:-CRC_BYTES]), tail[-CRC_BYTES:], layer)

    # -- parts of inner chunks ------------------------------------------------------------
    def _thin(self, layers: Sequence[int], rows: slice, out: NDArray[Any], target: slice) -> None:
        """Few rows of many layers: one small read for each layer, one pass to decode them together."""
        layout = self.layout
        nbytes = (rows.stop - rows.start) * layout.row_nbytes
        start, stride = rows.start * layout.row_nbytes, layout.inner_stride
        whole = out[:, target]
        direct = whole.flags.c_contiguous and not self.decode
        memory = whole.reshape(-1).view(np.uint8) if direct else scratch(nbytes * len(layers))
        if not self.handle.read_pieces(memory, nbytes, [layer * stride + start for layer in layers]):
            raise Fault(layers[0], TOO_SHORT)
        if not direct:
            self._assign(whole, memory.view(layout.variable.storage_dtype))

    def _assign(self, out: NDArray[Any], values: NDArray[Any]) -> None:
        """Values in storage order into `out` of as many elements."""
        values = values.reshape(out.shape)
        if self.decode:
            widen(values, out)
        else:
            out[...] = values

    def _some(
        self, layers: Sequence[int], rows: Selection, tokens: Sequence[int], out: NDArray[Any], target: Selection
    ) -> None:
        """Any selection: chunk by chunk through scratch memory."""
        layout = self.layout
        run = layout.token_chunk
        for chunk in sorted({t // run for t in tokens}):
            wanted = [(position, t % run) for position, t in enumerate(tokens) if t // run == chunk]
            places, inner = [p for p, _ in wanted], [t for _, t in wanted]
            if not layout.sharded:
                values = self._rows(0, rows)
                for position, layer in enumerate(layers):
                    self._store(out[position], target, places, values[layer][:, inner])
                continue
            for position, layer in enumerate(layers):
                values = self._rows(layer * layout.token_chunks + chunk, rows)
                self._store(out[position], target, places, values[0][:, inner])

    def _store(self, out: NDArray[Any], target: Selection, places: list[int], values: NDArray[Any]) -> None:
        if self.decode:
            decoded = np.empty(values.shape, dtype=np.float32)
            widen(values, decoded)
            values = decoded
        if isinstance(target, slice):
            out[target][:, places] = values
        else:
            out[np.ix_(target, np.asarray(places))] = values

    def _rows(self, number: int, rows: Selection) -> NDArray[Any]:
        """Rows of one inner chunk [shape: (layer, row, token in run, *features)]; all of it is read to check it."""
        layout, variable = self.layout, self.layout.variable
        shape = (layout.inner_layers, layout.block_size, layout.token_chunk, *variable.shape)
        low = rows.start if isinstance(rows, slice) else int(rows.min())
        high = rows.stop if isinstance(rows, slice) else int(rows.max()) + 1
        trusted = not self.verify or number in self.checked
        if trusted and not layout.compressed and layout.inner_layers == 1 and 2 * (high - low) <= layout.block_size:
            return self._few_rows(number, rows, low, high, shape)
        return self._chunk(number).view(variable.storage_dtype).reshape(shape)[:, rows]

    def _few_rows(self, number: int, rows: Selection, low: int, high: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Rows between `low` and `high` in one read, or row by row where they lie far apart."""
        row_nbytes = self.layout.row_nbytes
        offset = number * self.layout.inner_stride
        dtype = self.layout.variable.storage_dtype
        if not isinstance(rows, slice) and (high - low) * row_nbytes > 4 * len(rows) * max(row_nbytes, 1 << 14):
            memory = scratch(len(rows) * row_nbytes)
            jobs = [(memory[i * row_nbytes : (i + 1) * row_nbytes], int(row)) for i, row in enumerate(rows)]
            chosen: Selection = slice(None)
        else:
            memory = scratch((high - low) * row_nbytes)
            jobs = [(memory, low)]
            chosen = slice(None) if isinstance(rows, slice) else rows - low
        for piece, row in jobs:
            if not self.handle.read_into([piece], offset + row * row_nbytes):
                raise Fault(number, TOO_SHORT)
        return memory.view(dtype).reshape(1, -1, *shape[2:])[:, chosen]

    def _compare(self, crc: int, held: NDArray[np.uint8], number: int) -> None:
        if crc != int.from_bytes(held.tobytes(), "little"):
            raise Fault(number, DIFFERS)
