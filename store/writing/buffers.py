"""The buffer of one block: what the caller fills while the forward pass runs.

A buffer knows which rows of which variable have been given; a block is handed
over whole or not at all. Committing it is the writer's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratalens.store.errors import InputError, suggest
from stratalens.store.format.int8 import quantise
from stratalens.store.format.layout import ArrayLayout
from stratalens.store.format.shards import FileImage

Allocate = Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Block:
    """A range of entity rows that is committed at once.

    `variables` names what is still to be recorded for it: all of them, except
    where sites were added to a store that has recorded the others already.
    """

    index: int
    start: int
    stop: int
    variables: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> NDArray[np.intp]:
        """Table rows of the block."""
        return np.arange(self.start, self.stop)


class Memory:
    """The file images of all variables for one block, reused from block to block."""

    def __init__(self, layouts: Mapping[str, ArrayLayout], allocate: Allocate | None) -> None:
        self.images: dict[str, FileImage] = {}
        for name, layout in layouts.items():
            size = layout.file_nbytes
            memory = np.empty(size, dtype=np.uint8) if allocate is None else allocate(size)
            if memory.dtype != np.uint8 or memory.shape != (size,) or not memory.flags.c_contiguous:
                raise InputError(
                    f"allocate({size}) returned {memory.dtype} {memory.shape}: it must return a contiguous uint8 "
                    f"array of shape ({size},)"
                )
            self.images[name] = FileImage(layout, memory)


def _names(rows: Iterable[int], limit: int = 8) -> str:
    listed = list(rows)
    shown = ", ".join(str(r) for r in listed[:limit])
    return shown + (f", ... ({len(listed)} in all)" if len(listed) > limit else "")


class BlockBuffer:
    """Room for one block of one stage; made by `StageWriter.buffer`."""

    def __init__(self, stage: str, block: Block, memory: Memory, flags: Sequence[str]) -> None:
        self.stage = stage
        self.block = block
        self.flags = tuple(flags)
        self.memory: Memory | None = memory
        self._skipped = np.zeros(len(block), dtype=bool)
        self._given: dict[str, NDArray[np.bool_]] = {}
        for name in block.variables:
            image = memory.images[name]
            image.clear(len(block))
            if name not in self.flags and image.layout.variable.attrs.get("kind") not in ("scale", "error"):
                self._given[name] = np.zeros((image.layout.layers, len(block)), dtype=bool)

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables that this block still needs."""
        return tuple(self._given)

    def _open(self) -> Memory:
        if self.memory is None:
            raise InputError(
                f"the buffer of rows {self.block.start}..{self.block.stop - 1} was submitted or discarded: ask the "
                "stage for another"
            )
        return self.memory

    def _local(self, rows: ArrayLike) -> NDArray[np.intp]:
        local = np.atleast_1d(np.asarray(rows))
        if local.size == 0:
            return np.empty(0, dtype=np.intp)
        if local.ndim != 1 or local.dtype.kind not in "iu":
            raise InputError(f"rows must be a one-dimensional array of table rows (integers), got {local.dtype}")
        local = local.astype(np.intp) - self.block.start
        if local.size and (local.min() < 0 or local.max() >= len(self.block)):
            bad = local[(local < 0) | (local >= len(self.block))] + self.block.start
            raise InputError(
                f"rows {_names(bad)} do not belong to this block: it holds rows {self.block.start} to "
                f"{self.block.stop - 1}"
            )
        return local

    def write(
        self,
        variable: str,
        rows: ArrayLike,
        values: NDArray[Any],
        layers: slice | int | ArrayLike = slice(None),
        first_token: int = 0,
    ) -> None:
        """Give values of one variable.

        Parameters
        ----------
        variable
            Name of the variable. One that the store has recorded already for
            this block is left as it is.
        rows
            [array-like, shape: (n,), int] table rows inside the block.
        values
            [array, shape: (layer, n, token, *features)] in storage dtype (the
            bits as uint16 for bfloat16; float32 for int8 that is scaled by
            row); without the first dim for a variable
            without layers or where `layers` is an int; without token where the
            variable has none.
        layers
            Positions along the store's layer axis.
        first_token
            Position of the first token that values are given of; those before it are missing in these rows.
        """
        memory = self._open()
        if variable not in self._given:
            if variable in memory.images and variable not in self.flags:
                return
            raise InputError(f"no variable {variable!r} in this store: {suggest(variable, self._given)}")
        image = memory.images[variable]
        layout = image.layout
        local = self._local(rows)
        selected, count, single = _select_layers(layers, layout, variable)
        kind = layout.variable
        array = np.asarray(values)
        if array.dtype.name == "bfloat16":
            array = array.view(np.uint16)
        taken = np.dtype(np.float32) if kind.scaled_by else kind.storage_dtype
        if array.dtype != taken:
            form = {"bfloat16": "uint16 (bits of bfloat16)", "int8": "int8 scaled by row and takes float32"}
            stored = form.get(kind.dtype, taken.name) if taken != kind.dtype else taken.name
            raise InputError(f"{variable} is stored as {stored}, got {array.dtype}: convert the values first")
        if not 0 <= first_token < (layout.tokens if kind.has("token") else 1):
            raise InputError(f"first_token={first_token}: {variable} has {layout.tokens} tokens")
        tokens = layout.tokens - first_token
        expected: tuple[int, ...] = (local.size, *((tokens,) if kind.has("token") else ()), *kind.shape)
        if kind.has("layer") and not single:
            expected = (count, *expected)
        if array.shape != expected:
            raise InputError(f"values of {variable} have shape {array.shape}, needed is {expected}")
        full = (count, local.size, tokens, *kind.shape)
        contiguous = local.size > 0 and bool((np.diff(local) == 1).all())
        where = slice(int(local[0]), int(local[-1]) + 1) if contiguous else local
        array = array.reshape(full)
        if kind.scaled_by:
            place = f"stage {self.stage!r}, {variable}, rows {self.block.start} to {self.block.stop - 1}"
            array, scale, error = quantise(array, place)
            memory.images[kind.scaled_by].put(selected, where, scale, first_token)
            memory.images[kind.attrs["error"]].put(selected, where, error, first_token)
        image.put(selected, where, array, first_token)
        self._given[variable][selected if isinstance(selected, slice) else selected[:, None], where] = True

    def skip(self, rows: ArrayLike) -> None:
        """Leave rows out on purpose: they read as missing, and `recorded` says so."""
        self._open()
        self._skipped[self._local(rows)] = True

    def discard(self) -> None:
        """Give the block up; nothing of it is written. Harmless once the buffer is submitted or discarded."""
        self.memory = None

    def missing(self) -> dict[str, NDArray[np.intp]]:
        """Table rows that were neither written nor skipped, for each variable that lacks some."""
        lacking = {}
        for name, given in self._given.items():
            rows = np.flatnonzero(~(given.all(axis=0) | self._skipped))
            if rows.size:
                lacking[name] = rows + self.block.start
        return lacking

    def finish(self) -> Memory:
        """Check that the block is whole, write the flags, and let go of the memory."""
        memory = self._open()
        if lacking := self.missing():
            name, rows = next(iter(lacking.items()))
            more = f" (and {len(lacking) - 1} more variables)" if len(lacking) > 1 else ""
            raise InputError(
                f"stage {self.stage!r}: rows {_names(rows)} of {name}{more} were neither written nor skipped; write "
                "them, or say buffer.skip(rows) to leave them out"
            )
        skipped = np.flatnonzero(self._skipped)
        for name in self.block.variables:
            if name in self.flags:
                memory.images[name].values[0, 0, : len(self.block), 0] = ~self._skipped
            elif skipped.size:
                memory.images[name].fill(skipped)
        self.memory = None
        return memory


def _select_layers(
    layers: slice | int | ArrayLike, layout: ArrayLayout, variable: str
) -> tuple[slice | NDArray[np.intp], int, bool]:
    size = layout.layers
    if not layout.variable.has("layer"):
        return slice(0, 1), 1, True
    if isinstance(layers, slice):
        return layers, len(range(size)[layers]), False
    positions = np.asarray(layers)
    if positions.dtype.kind not in "iu" or positions.ndim > 1:
        raise InputError(f"layers must be a slice, an int or an array of ints, got {layers!r}")
    if positions.size and (positions.min() < 0 or positions.max() >= size):
        raise InputError(f"layer position {layers!r} of {variable}: the store has positions 0 to {size - 1}")
    if positions.ndim == 0:
        return slice(int(positions), int(positions) + 1), 1, True
    return positions.astype(np.intp), positions.size, False
