"""Reading: slabs of one variable straight from its files into NumPy memory; which files, and in parallel.

What happens inside a file is in `chunks`.

One layer over all entities is one contiguous read for each file, into the
destination itself where nothing has to be decoded. Every inner chunk that is
read whole is checked against its crc32c; with verification on, a chunk of which
only some rows are wanted is read whole and checked once, and remembered.
What was never committed is not looked for: it reads as missing.
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
from stratalens.store.storage.base import Storage
from stratalens.store.threads import cores, run_tasks

PARALLEL_FROM = 4 << 20


SMALL_PIECE = 1 << 16


MISSING = "the file is missing"


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
    watch
        What notices that another store lies there now.
    """

    storage: Storage
    layout: ArrayLayout
    entities: int
    committed: NDArray[np.bool_]
    stage_names: Sequence[str]
    layer_names: Sequence[int]
    decode: bool = False
    verify: bool = True
    watch: StalenessCheck | None = None
    _checked: dict[tuple[int, int], set[int]] = field(default_factory=dict, repr=False)

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
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Values [shape: (stage, layer, entity, token, *features)] of an orthogonal selection, in `out` if given."""
        layout = self.layout
        if self.watch is not None:
            self.watch.check()
        if isinstance(entities, slice):
            start, stop, step = entities.indices(self.entities)
            if step != 1:
                entities = np.arange(start, stop, step)
            count = len(range(start, stop, step))
        else:
            count = len(entities)
        if out is None:
            out = np.empty((len(stages), len(layers), count, len(tokens), *layout.variable.shape), dtype=self.dtype)
        if out.size == 0:
            return out
        parts = self._parts(entities)
        high_latency = self.storage.high_latency
        check = self._to_check(stages, layers, parts)
        # Threads that read many small pieces mostly wait for each other (for the interpreter's lock).
        small = not check and not isinstance(entities, slice) and layout.row_nbytes < SMALL_PIECE
        alone = not high_latency and (small or out.nbytes + check < PARALLEL_FROM)
        step = len(layers)
        if not alone and layout.sharded and len(parts) * len(stages) == 1:
            step = max(1, len(layers) // cores())
        tasks: list[Callable[[], None]] = []
        for position, stage in enumerate(stages):
            for block, rows, target in parts:
                for first in range(0, len(layers), step):
                    view = out[position, first : first + step]
                    chosen = layers[first : first + step]
                    if alone:
                        self._block(stage, block, chosen, rows, tokens, view, target)
                    else:
                        tasks.append(partial(self._block, stage, block, chosen, rows, tokens, view, target))
        if tasks:
            run_tasks(tasks, high_latency=high_latency)
        return out

    def _to_check(self, stages: Sequence[int], layers: Sequence[int], parts: Sequence[Any]) -> int:
        """Bytes of inner chunks that have to be read whole before a row of them can be trusted."""
        if not self.verify or not self.layout.sharded:
            return 0
        found = [self._checked.get((stage, block)) for stage in stages for block, _, _ in parts]
        unseen = sum(1 for checked in found if checked is None or not checked.issuperset(layers))
        return unseen * len(layers) * self.layout.inner_nbytes

    def _parts(self, entities: Selection) -> list[tuple[int, Selection, Selection]]:
        """(block, rows in the block, rows in the result) of a selection."""
        size = self.layout.block_size
        if isinstance(entities, slice):
            start, stop, _ = entities.indices(self.entities)
            found: list[tuple[int, Selection, Selection]] = []
            for block in range(start // size, (stop - 1) // size + 1):
                low, high = max(start, block * size), min(stop, (block + 1) * size)
                found.append((block, slice(low - block * size, high - block * size), slice(low - start, high - start)))
            return found
        order = np.argsort(entities // size, kind="stable")
        blocks, firsts = np.unique(entities[order] // size, return_index=True)
        pieces = np.split(order, firsts[1:])
        return [(int(b), entities[p] - int(b) * size, as_slice(p)) for b, p in zip(blocks, pieces, strict=True)]

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
        """Rows of one file."""
        layout = self.layout
        if not self.committed[stage, block]:
            fill = np.float32(np.nan) if self.decode else layout.variable.fill
            out[:, target] = fill
            return
        handle = self.storage.open_read(layout.key(stage, block))
        if handle is None:
            raise self._lost(stage, block)
        valid = min(self.entities - block * layout.block_size, layout.block_size)
        checked = self._checked.setdefault((stage, block), set())
        with handle:
            try:
                ChunkFile(handle, layout, self.decode, self.verify, checked).read(
                    layers, rows, tokens, out, target, valid
                )
            except FileNotFoundError:
                raise self._lost(stage, block) from None
            except ChunkError as fault:
                raise self._damaged(stage, block, fault.number, fault.what) from None

    def _lost(self, stage: int, block: int) -> StratalensError:
        """A committed file that is not there: damage, unless a repair took it back since the store was opened."""
        try:
            committed = self.watch is None or self.watch.committed(self.layout.variable.name, stage, block)
        except DamagedError:  # the record of it, too
            committed = True
        if committed:
            return self._damaged(stage, block, None, MISSING)
        where = chunk_name(self.layout, self.stage_names[stage], self.layer_names, block, None, self.entities)
        return NotRecordedError(
            f"{where} was marked as missing by a repair since the store was opened: open it again, then `recorded` "
            "says what is there; the capture, run again, records it anew"
        )

    def _damaged(self, stage: int, block: int, number: int | None, what: str) -> DamagedError:
        where = chunk_name(self.layout, self.stage_names[stage], self.layer_names, block, number, self.entities)
        return DamagedError(
            f"{where} is damaged: {what} ({self.storage.path(self.layout.key(stage, block))}). "
            "`stratalens verify --repair` marks it as missing, then the capture, run again, records it anew."
        )


def chunk_name(
    layout: ArrayLayout, stage: str, layers: Sequence[int], block: int, number: int | None, entities: int
) -> str:
    """Name of an inner chunk for people: stage, site, layer, entity rows."""
    low = block * layout.block_size
    high = min(low + layout.block_size, entities) - 1
    layer = ""
    if number is not None and layout.sharded and layout.variable.has("layer"):
        layer = f", layer {layers[number // layout.token_chunks]}"
    return f"stage {stage!r}, {layout.variable.name}{layer}, entity rows {low} to {high}"
