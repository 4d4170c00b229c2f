"""Reading: slabs of one variable straight from its files into NumPy memory.

One layer over all entities is one contiguous read for each file, into the
destination itself where nothing has to be decoded. Every inner chunk that is
read whole is checked against its crc32c; with verification on, a chunk of which
only some rows are wanted is read whole and checked once, and remembered.
What was never committed is not looked for: it reads as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.checksum import extend
from stratalens.store.errors import DamagedError
from stratalens.store.layout import CRC_BYTES, ArrayLayout, runs
from stratalens.store.storage import LocalStorage, ReadHandle
from stratalens.store.threads import cores, run_tasks, scratch

Selection = slice | NDArray[np.intp]
PIECE = 1 << 18
PARALLEL_FROM = 4 << 20


def widen(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """float32 values of bfloat16 bits, exactly, into `out`."""
    wide = out.view(np.uint32)
    wide[...] = bits
    np.left_shift(wide, 16, out=wide)


@dataclass
class SlabReader:
    """Reads any selection of one variable.

    Parameters
    ----------
    storage, layout
        Where the files are and how they are cut.
    entities
        Rows of the whole array.
    committed
        [array, shape: (stage on disk, block), bool] what exists.
    stage_names, layer_names
        For error messages.
    decode
        Whether bfloat16 bits are widened to float32.
    verify
        Whether checksums are checked.
    """

    storage: LocalStorage
    layout: ArrayLayout
    entities: int
    committed: NDArray[np.bool_]
    stage_names: Sequence[str]
    layer_names: Sequence[int]
    decode: bool = False
    verify: bool = True
    _checked: set[tuple[int, int, int]] = field(default_factory=set, repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of what is read."""
        return np.dtype(np.float32) if self.decode else self.layout.variable.storage_dtype

    def read(
        self,
        stages: Sequence[int],
        layers: Sequence[int],
        entities: Selection,
        tokens: Sequence[int],
        *,
        parallel: bool = True,
    ) -> NDArray[Any]:
        """Values [shape: (stage, layer, entity, token, *features)] of an orthogonal selection."""
        layout = self.layout
        if isinstance(entities, slice):
            start, stop, step = entities.indices(self.entities)
            count = len(range(start, stop, step))
            if step != 1:
                entities = np.arange(start, stop, step)
        else:
            count = len(entities)
        out = np.empty((len(stages), len(layers), count, len(tokens), *layout.variable.shape), dtype=self.dtype)
        tasks: list[Callable[[], None]] = []
        if out.size == 0:
            return out
        size = layout.block_size
        if isinstance(entities, slice):
            parts: list[tuple[int, Selection, Selection]] = []
            for block in range(start // size, (stop - 1) // size + 1):
                low, high = max(start, block * size), min(stop, (block + 1) * size)
                parts.append((block, slice(low - block * size, high - block * size), slice(low - start, high - start)))
        else:
            order = np.argsort(entities // size, kind="stable")
            blocks, firsts = np.unique(entities[order] // size, return_index=True)
            pieces = np.split(order, firsts[1:])
            parts = [(int(b), entities[p] - int(b) * size, p) for b, p in zip(blocks, pieces, strict=True)]
        step = len(layers) if not layout.sharded or len(parts) * len(stages) > 1 else max(1, len(layers) // cores())
        for position, stage in enumerate(stages):
            for block, rows, target in parts:
                for first in range(0, len(layers), step):
                    chosen = layers[first : first + step]
                    view = out[position, first : first + step]
                    tasks.append(
                        lambda s=stage, b=block, c=chosen, r=rows, v=view, t=target: (  # type: ignore[misc]
                            self._block(s, b, c, r, tokens, v, t)
                        )
                    )
        run_tasks(tasks, parallel=parallel and out.nbytes >= PARALLEL_FROM)
        return out

    # -- one file ---------------------------------------------------------------------
    def _block(
        self,
        stage: int,
        block: int,
        layers: Sequence[int],
        rows: Selection,
        tokens: Sequence[int],
        out: NDArray[Any],
        target: Selection,
    ) -> None:
        layout = self.layout
        if not self.committed[stage, block]:
            fill = np.float32(np.nan) if self.decode else layout.variable.fill
            out[:, target] = fill
            return
        handle = self.storage.open_read(layout.key(stage, block))
        if handle is None:
            raise self._damaged(stage, block, None, "the file is missing")
        valid = min(self.entities - block * layout.block_size, layout.block_size)
        whole_rows = isinstance(rows, slice) and (rows.start, rows.stop) == (0, valid)
        all_tokens = list(tokens) == list(range(layout.tokens))
        whole = whole_rows and all_tokens and isinstance(target, slice)
        plain_rows = isinstance(rows, slice) and isinstance(target, slice)
        thin = plain_rows and all_tokens and 2 * (rows.stop - rows.start) <= layout.block_size  # type: ignore[union-attr]
        simple = layout.inner_layers == 1 and layout.token_chunks == 1
        with handle:
            if thin and simple and self._trusted(stage, block, layers):
                self._thin(handle, stage, block, layers, rows, out, target)  # type: ignore[arg-type]
            elif whole and layout.inner_layers == 1 and layout.token_chunks == 1:
                self._whole(handle, stage, block, layers, out[:, target], valid)
            else:
                self._some(handle, stage, block, layers, rows, tokens, out, target)

    def _trusted(self, stage: int, block: int, layers: Sequence[int]) -> bool:
        """Whether nothing of these layers has to be checked before it may be used."""
        return not self.verify or all((stage, block, layer) in self._checked for layer in layers)

    def _thin(
        self, handle: ReadHandle, stage: int, block: int, layers: Sequence[int], rows: slice, out: NDArray[Any],
        target: slice,
    ) -> None:  # fmt: skip
        """Few rows of many layers: one small read for each layer, one pass to decode them together."""
        layout = self.layout
        nbytes = (rows.stop - rows.start) * layout.row_nbytes
        memory = scratch(nbytes * len(layers))
        start = rows.start * layout.row_nbytes
        for position, layer in enumerate(layers):
            piece = memory[position * nbytes : (position + 1) * nbytes]
            if not handle.read_into((piece,), layer * layout.inner_stride + start):
                raise self._damaged(stage, block, layer, "the file is too short")
        values = memory.view(layout.variable.storage_dtype)
        part = out[:, target]
        if self.decode:
            wide = np.empty(values.shape, dtype=np.float32)
            widen(values, wide)
            part[...] = wide.reshape(part.shape)
        else:
            part[...] = values.reshape(part.shape)

    def _whole(
        self, handle: ReadHandle, stage: int, block: int, layers: Sequence[int], out: NDArray[Any], valid: int
    ) -> None:
        """All rows of some layers, in file order, straight into `out` [shape: (layer, row, token, *features)]."""
        layout = self.layout
        used = valid * layout.row_nbytes
        tail = layout.inner_nbytes - used + CRC_BYTES
        if self.decode:
            for position, layer in enumerate(layers):
                self._widen(handle, stage, block, layer, out[position], used)
            return
        for position, first, length in runs(layers):
            buffers, tails = [], []
            for k in range(length):
                tails.append(np.empty(tail, dtype=np.uint8))
                buffers += [out[position + k].reshape(-1).view(np.uint8), tails[-1]]
            if not handle.read_into(buffers, first * layout.inner_stride):
                raise self._damaged(stage, block, first, "the file is too short")
            if self.verify:
                for k in range(length):
                    crc = extend(extend(0, buffers[2 * k]), tails[k][:-CRC_BYTES])
                    self._compare(crc, tails[k][-CRC_BYTES:], stage, block, first + k)

    def _widen(
        self, handle: ReadHandle, stage: int, block: int, layer: int, out: NDArray[np.float32], used: int
    ) -> None:
        """One inner chunk piece by piece: read, checksum and widen while it is in the processor's cache."""
        layout = self.layout
        offset = layer * layout.inner_stride
        flat = out.reshape(-1)
        crc = 0
        for start in range(0, used, PIECE):
            stop = min(start + PIECE, used)
            memory = scratch(stop - start)
            if not handle.read_into([memory], offset + start):
                raise self._damaged(stage, block, layer, "the file is too short")
            if self.verify:
                crc = extend(crc, memory)
            widen(memory.view(np.uint16), flat[start // 2 : stop // 2])
        if self.verify:
            tail = np.empty(layout.inner_nbytes - used + CRC_BYTES, dtype=np.uint8)
            if not handle.read_into([tail], offset + used):
                raise self._damaged(stage, block, layer, "the file is too short")
            self._compare(extend(crc, tail[:-CRC_BYTES]), tail[-CRC_BYTES:], stage, block, layer)

    def _some(
        self,
        handle: ReadHandle,
        stage: int,
        block: int,
        layers: Sequence[int],
        rows: Selection,
        tokens: Sequence[int],
        out: NDArray[Any],
        target: Selection,
    ) -> None:
        """Any selection: chunk by chunk through scratch memory."""
        layout = self.layout
        run = layout.token_chunk
        for chunk in sorted({t // run for t in tokens}):
            wanted = [(position, t % run) for position, t in enumerate(tokens) if t // run == chunk]
            places, inner = [p for p, _ in wanted], [t for _, t in wanted]
            if not layout.sharded:
                values = self._rows(handle, stage, block, 0, rows)
                for position, layer in enumerate(layers):
                    self._store(out[position], target, places, values[layer][:, inner])
                continue
            for position, layer in enumerate(layers):
                values = self._rows(handle, stage, block, layer * layout.token_chunks + chunk, rows)
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

    def _rows(self, handle: ReadHandle, stage: int, block: int, number: int, rows: Selection) -> NDArray[Any]:
        """Rows of one inner chunk [shape: (layer, row, token in run, *features)]; all of it is read to check it."""
        layout, variable = self.layout, self.layout.variable
        at = number * layout.inner_stride
        shape = (layout.inner_layers, layout.block_size, layout.token_chunk, *variable.shape)
        unchecked = self.verify and (stage, block, number) not in self._checked
        low = rows.start if isinstance(rows, slice) else int(rows.min())
        high = rows.stop if isinstance(rows, slice) else int(rows.max()) + 1
        if not unchecked and layout.inner_layers == 1 and 2 * (high - low) <= layout.block_size:
            count = high - low if isinstance(rows, slice) else len(rows)
            sparse = not isinstance(rows, slice) and (high - low) * layout.row_nbytes > 4 * count * max(
                layout.row_nbytes, 1 << 14
            )
            memory = scratch((count if sparse else high - low) * layout.row_nbytes)
            jobs = (
                [(memory[i * layout.row_nbytes :][: layout.row_nbytes], int(r)) for i, r in enumerate(rows)]
                if sparse and not isinstance(rows, slice)
                else [(memory, low)]
            )
            for piece, row in jobs:
                if not handle.read_into([piece], at + row * layout.row_nbytes):
                    raise self._damaged(stage, block, number, "the file is too short")
            values = memory.view(variable.storage_dtype).reshape(1, -1, *shape[2:])
            return values if sparse or isinstance(rows, slice) else values[:, rows - low]
        memory = scratch(layout.inner_stride)
        if not handle.read_into([memory], at):
            raise self._damaged(stage, block, number, "the file is too short")
        if self.verify:
            self._compare(extend(0, memory[:-CRC_BYTES]), memory[-CRC_BYTES:], stage, block, number)
            self._checked.add((stage, block, number))
        return memory[:-CRC_BYTES].view(variable.storage_dtype).reshape(shape)[:, rows]

    # -- what is wrong ------------------------------------------------------------------
    def _compare(self, crc: int, held: NDArray[np.uint8], stage: int, block: int, number: int) -> None:
        if crc != int.from_bytes(held.tobytes(), "little"):
            raise self._damaged(stage, block, number, "its bytes differ from their checksum")

    def _damaged(self, stage: int, block: int, number: int | None, what: str) -> DamagedError:
        where = describe(self.layout, self.stage_names[stage], self.layer_names, block, number, self.entities)
        return DamagedError(
            f"{where} is damaged: {what} ({self.storage.path(self.layout.key(stage, block))}). "
            "`stratalens verify --repair` marks it as missing, then the capture, run again, records it anew."
        )


def describe(
    layout: ArrayLayout, stage: str, layers: Sequence[int], block: int, number: int | None, entities: int
) -> str:
    """Name of an inner chunk for people: stage, site, layer, entity rows."""
    low = block * layout.block_size
    high = min(low + layout.block_size, entities) - 1
    layer = ""
    if number is not None and layout.sharded and layout.variable.has("layer"):
        layer = f", layer {layers[number // layout.token_chunks]}"
    return f"stage {stage!r}, {layout.variable.name}{layer}, entity rows {low} to {high}"
