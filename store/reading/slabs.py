"""Reading any selection of one variable: which files hold it, read in parallel.

One layer over all entities is one contiguous read per file, straight into the destination if nothing has to be decoded.
With verification, an inner chunk is read whole and checked the first time, even if only some of its rows are selected.
A block that was never committed reads as missing; its file is not opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, NotRecordedError, StratalensError
from stratalens.store.format.layout import ArrayLayout
from stratalens.store.reading.chunks import ChunkError, ChunkFile
from stratalens.store.reading.indexing import Selection, as_slice
from stratalens.store.reading.staleness import StalenessCheck
from stratalens.store.state.manifest import Store
from stratalens.store.threads import cores, run_tasks

PARALLEL_BYTES = 4 << 20  # less is read faster by one thread
SMALL_ROW_BYTES = 1 << 16  # threads that read smaller rows mostly wait for the interpreter's lock

MISSING_FILE = "the file is missing"


@dataclass
class SlabReader:
    """Reads any selection of one variable.

    Attributes:
        store: the store as it was opened.
        layout: geometry of the variable.
        committed: bool array of shape (stages on disk, blocks).
        decode: whether bfloat16 bits are widened to float32.
        verify: whether checksums are checked.
        staleness: notices that another store replaced this one, if given.
    """

    store: Store
    layout: ArrayLayout
    committed: NDArray[np.bool_]
    decode: bool = False
    verify: bool = True
    staleness: StalenessCheck | None = None
    # Checked inner chunks by (stage, block). Threads share it without a lock, which could not be pickled: `get`,
    # `setdefault` and every operation on the sets are atomic, also in a free-threaded Python.
    _checked: dict[tuple[int, int], set[int]] = field(default_factory=dict, repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the values that `read` returns."""
        return np.dtype(np.float32) if self.decode else self.layout.variable.storage_dtype

    def read(
        self,
        stages: Sequence[int],
        layers: Sequence[int],
        entities: Selection,
        tokens: Sequence[int],
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Read an orthogonal selection.

        Args:
            stages: positions along the stage axis on disk.
            layers: positions along the layer axis.
            entities: rows of the variable.
            tokens: positions along the token axis.
            out: array that receives the values, if given.

        Returns:
            Array of shape (stages, layers, entities, tokens, *features); `out` if given.
        """
        layout = self.layout
        if self.staleness is not None:
            self.staleness.check()
        if isinstance(entities, slice):
            start, stop, step = entities.indices(self.store.entities)
            if step != 1:
                entities = np.arange(start, stop, step)
            count = len(range(start, stop, step))
        else:
            count = len(entities)
        if out is None:
            out = np.empty((len(stages), len(layers), count, len(tokens), *layout.variable.shape), dtype=self.dtype)
        if out.size == 0:
            return out
        blocks = self._split(entities)
        high_latency = self.store.storage.high_latency
        unchecked = self._unchecked_nbytes(stages, layers, [block for block, _, _ in blocks])
        small_rows = not unchecked and not isinstance(entities, slice) and layout.row_nbytes < SMALL_ROW_BYTES
        one_thread = not high_latency and (small_rows or out.nbytes + unchecked < PARALLEL_BYTES)
        step = len(layers)
        if not one_thread and layout.sharded and len(blocks) * len(stages) == 1:
            step = max(1, len(layers) // cores())
        tasks: list[Callable[[], None]] = []
        for position, stage in enumerate(stages):
            for block, rows, target in blocks:
                for first in range(0, len(layers), step):
                    view = out[position, first : first + step]
                    some_layers = layers[first : first + step]
                    if one_thread:
                        self._read_block(stage, block, some_layers, rows, tokens, view, target)
                    else:
                        tasks.append(partial(self._read_block, stage, block, some_layers, rows, tokens, view, target))
        if tasks:
            run_tasks(tasks, high_latency=high_latency)
        return out

    def _unchecked_nbytes(self, stages: Sequence[int], layers: Sequence[int], blocks: Sequence[int]) -> int:
        """Return the bytes of inner chunks that must be read whole to check them."""
        if not self.verify or not self.layout.sharded:
            return 0
        files = 0
        for stage in stages:
            for block in blocks:
                checked = self._checked.get((stage, block))
                files += checked is None or not checked.issuperset(layers)
        return files * len(layers) * self.layout.inner_nbytes

    def _split(self, entities: Selection) -> list[tuple[int, Selection, Selection]]:
        """Return (block, rows in it, rows in the result) for each selected block."""
        size = self.layout.block_size
        if isinstance(entities, slice):
            start, stop, _ = entities.indices(self.store.entities)
            blocks: list[tuple[int, Selection, Selection]] = []
            for block in range(start // size, (stop - 1) // size + 1):
                low, high = max(start, block * size), min(stop, (block + 1) * size)
                rows = slice(low - block * size, high - block * size)
                blocks.append((block, rows, slice(low - start, high - start)))
            return blocks
        order = np.argsort(entities // size, kind="stable")
        numbers, firsts = np.unique(entities[order] // size, return_index=True)
        targets = np.split(order, firsts[1:])
        return [
            (int(block), entities[target] - int(block) * size, as_slice(target))
            for block, target in zip(numbers, targets, strict=True)
        ]

    def _read_block(
        self,
        stage: int,
        block: int,
        layers: Sequence[int],
        rows: Selection,
        tokens: Sequence[int],
        out: NDArray[Any],
        target: Selection,
    ) -> None:
        """Read rows of one file into `out[:, target]`."""
        layout = self.layout
        if not self.committed[stage, block]:
            out[:, target] = np.float32(np.nan) if self.decode else layout.variable.fill
            return
        storage = self.store.storage
        key, chunk = layout.key(stage, block), 0 if layout.compressed else layout.inner_stride
        valid = min(self.store.entities - block * layout.block_size, layout.block_size)
        checked = self._checked.setdefault((stage, block), set())
        for last in (False, True) if storage.high_latency else (True,):  # a network may damage or cut an answer
            handle = storage.open_read(key, chunk)
            if handle is None:
                raise self._missing_file_error(stage, block)
            with handle:
                file = ChunkFile(handle, layout, self.decode, self.verify, checked)
                try:
                    file.read(layers, rows, tokens, out, target, valid)
                    return
                except FileNotFoundError:
                    raise self._missing_file_error(stage, block) from None
                except ChunkError as error:
                    if last:
                        raise self._damaged_error(stage, block, error.number, error.reason) from None

    def _missing_file_error(self, stage: int, block: int) -> StratalensError:
        """Return the error for a committed file that is missing.

        The file is damaged, unless a repair removed its block after the store was opened.
        """
        try:
            name = self.layout.variable.name
            committed = self.staleness is None or self.staleness.is_committed(name, stage, block)
        except DamagedError:  # the commit record is damaged, too
            committed = True
        if committed:
            return self._damaged_error(stage, block, None, MISSING_FILE)
        where = chunk_name(self.store, stage, block, self.layout, None)
        return NotRecordedError(
            f"{where} was marked as missing by a repair since the store was opened: open it again to see in `recorded` "
            "which rows it has; run the capture again to record the missing rows"
        )

    def _damaged_error(self, stage: int, block: int, number: int | None, reason: str) -> DamagedError:
        where = chunk_name(self.store, stage, block, self.layout, number)
        remedy = "Mark it as missing with `stratalens verify --repair`, then run the capture again to record it again."
        if self.store.storage.read_only:
            remedy = "Open the store again; if the error stays, its owner has to push it again."
        return DamagedError(
            f"{where} is damaged: {reason} ({self.store.storage.path(self.layout.key(stage, block))}). {remedy}"
        )


def chunk_name(store: Store, stage: int, block: int, layout: ArrayLayout, number: int | None) -> str:
    """Return the name of an inner chunk for messages: stage, site, layer, entity rows."""
    low, high = store.geometry.rows(block)
    layer = chunk_layer(store, layout, number)
    at_layer = "" if layer is None else f", layer {layer}"
    return f"stage {store.stages[stage].name!r}, {layout.variable.name}{at_layer}, entity rows {low} to {high - 1}"


def chunk_layer(store: Store, layout: ArrayLayout, number: int | None) -> int | None:
    """Return the layer of an inner chunk.

    The result is None for a chunk of several or no layers, and for a whole file (`number` is None).
    """
    if number is None or not layout.sharded or not layout.variable.has("layer"):
        return None
    return store.layers[number // layout.token_chunks]
