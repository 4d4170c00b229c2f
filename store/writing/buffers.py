"""The buffer of one block of rows, which the caller fills.

A buffer records which rows of each variable have been written. A block is submitted completely or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratalens.store.errors import InputError, join_names, suggest
from stratalens.store.format.int8 import quantise
from stratalens.store.format.layout import ArrayLayout
from stratalens.store.format.shards import FileImage

Allocator = Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class RowBlock:
    """A range of entity rows that is committed at once.

    Attributes:
        index: number of the block.
        start: first row.
        stop: row after the last one.
        variables: variables still to be recorded for the block: all, or those added since the others were recorded.
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


class BlockMemory:
    """The file images of all variables for one block, reused for later blocks."""

    def __init__(self, layouts: Mapping[str, ArrayLayout], allocate: Allocator | None) -> None:
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


Release = Callable[[RowBlock, BlockMemory], None]


class BlockBuffer:
    """Memory for one block of one stage; `StageWriter.buffer` makes it.

    `release` takes the block and its memory back if the buffer is discarded.
    """

    def __init__(
        self, stage: str, block: RowBlock, memory: BlockMemory, flags: Sequence[str], release: Release | None = None
    ) -> None:
        self.stage = stage
        self.block = block
        self.release = release
        self.flags = tuple(flags)
        self.memory: BlockMemory | None = memory
        self._skipped = np.zeros(len(block), dtype=bool)
        self._written: dict[str, NDArray[np.bool_]] = {}  # (layer, row) of each variable that the caller writes
        for name in block.variables:
            image = memory.images[name]
            image.clear(len(block))
            if name not in self.flags and image.layout.variable.attrs.get("kind") not in ("scale", "error"):
                self._written[name] = np.zeros((image.layout.layers, len(block)), dtype=bool)

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables that the caller has to write."""
        return tuple(self._written)

    def write(
        self,
        variable: str,
        rows: ArrayLike,
        values: NDArray[Any],
        layers: slice | int | ArrayLike = slice(None),
        first_token: int = 0,
    ) -> None:
        """Write values of one variable.

        Args:
            variable: name of the variable. Values of a variable already recorded for this block are ignored.
            rows: int array of shape (n,), table rows of the block.
            values: array of shape (layers, n, tokens, *features) in storage dtype: uint16 bits for bfloat16, float32
                for int8 that is scaled by row. The layer dim is omitted if the variable has none or `layers` is an int,
                and the token dim if the variable has none.
            layers: positions along the store's layer axis.
            first_token: position of the first token in `values`; earlier tokens are missing in these rows.

        Raises:
            InputError: unknown variable, rows outside the block, wrong dtype or shape.
        """
        memory = self._open_memory()
        if variable not in self._written:
            if variable in memory.images and variable not in self.flags:
                return
            raise InputError(f"no variable {variable!r} in this store: {suggest(variable, self._written)}")
        image = memory.images[variable]
        layout = image.layout
        local = self._local_rows(rows)
        selected, count, is_single = _select_layers(layers, layout, variable)
        array = _in_storage_dtype(values, layout)
        has_tokens = layout.variable.has("token")
        if not 0 <= first_token < (layout.tokens if has_tokens else 1):
            raise InputError(f"first_token={first_token}: {variable} has {layout.tokens} tokens")
        tokens = layout.tokens - first_token
        shape: tuple[int, ...] = (local.size, *((tokens,) if has_tokens else ()), *layout.variable.shape)
        if layout.variable.has("layer") and not is_single:
            shape = (count, *shape)
        if array.shape != shape:
            raise InputError(f"values of {variable} have shape {array.shape}: expected {shape}")
        array = array.reshape(count, local.size, tokens, *layout.variable.shape)
        consecutive = local.size > 0 and bool((np.diff(local) == 1).all())
        where = slice(int(local[0]), int(local[-1]) + 1) if consecutive else local
        if layout.variable.scaled_by:
            place = f"stage {self.stage!r}, {variable}, rows {self.block.start} to {self.block.stop - 1}"
            array, scale, error = quantise(array, place)
            memory.images[layout.variable.scaled_by].put(selected, where, scale, first_token)
            memory.images[layout.variable.attrs["error"]].put(selected, where, error, first_token)
        image.put(selected, where, array, first_token)
        self._written[variable][selected if isinstance(selected, slice) else selected[:, None], where] = True

    def skip(self, rows: ArrayLike) -> None:
        """Leave rows out: they read as missing, and `recorded` is False for them."""
        self._open_memory()
        self._skipped[self._local_rows(rows)] = True

    def discard(self) -> None:
        """Give the block up; nothing of it is written. Harmless once the buffer is submitted or discarded."""
        memory, self.memory = self.memory, None
        if memory is not None and self.release is not None:
            self.release(self.block, memory)

    def missing(self) -> dict[str, NDArray[np.intp]]:
        """Return the table rows that were neither written nor skipped, by variable."""
        missing = {}
        for name, written in self._written.items():
            rows = np.flatnonzero(~(written.all(axis=0) | self._skipped))
            if rows.size:
                missing[name] = rows + self.block.start
        return missing

    def finish(self) -> BlockMemory:
        """Check that the block is complete, write the flags and return the memory.

        Raises:
            InputError: rows were neither written nor skipped.
        """
        memory = self._open_memory()
        if missing := self.missing():
            name, rows = next(iter(missing.items()))
            more = f" (and {len(missing) - 1} more variables)" if len(missing) > 1 else ""
            raise InputError(
                f"stage {self.stage!r}: rows {join_names(rows)} of {name}{more} were neither written nor skipped: "
                "write them, or leave them out with buffer.skip(rows)"
            )
        skipped = np.flatnonzero(self._skipped)
        for name in self.block.variables:
            if name in self.flags:
                memory.images[name].values[0, 0, : len(self.block), 0] = ~self._skipped
            elif skipped.size:
                memory.images[name].fill(skipped)
        self.memory = None
        return memory

    def _open_memory(self) -> BlockMemory:
        if self.memory is None:
            raise InputError(
                f"the buffer of rows {self.block.start}..{self.block.stop - 1} was submitted or discarded: get another "
                "one from the stage"
            )
        return self.memory

    def _local_rows(self, rows: ArrayLike) -> NDArray[np.intp]:
        """Return table rows as rows of the block."""
        local = np.atleast_1d(np.asarray(rows))
        if local.size == 0:
            return np.empty(0, dtype=np.intp)
        if local.ndim != 1 or local.dtype.kind not in "iu":
            raise InputError(f"rows must be a one-dimensional array of table rows (integers), got {local.dtype}")
        local = local.astype(np.intp) - self.block.start
        outside = (local < 0) | (local >= len(self.block))
        if outside.any():
            raise InputError(
                f"rows {join_names(local[outside] + self.block.start)} do not belong to this block: it has rows "
                f"{self.block.start} to {self.block.stop - 1}"
            )
        return local


def _in_storage_dtype(values: NDArray[Any], layout: ArrayLayout) -> NDArray[Any]:
    """Return values in the dtype that the writer takes; raise for other dtypes."""
    variable = layout.variable
    array = np.asarray(values)
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    expected = np.dtype(np.float32) if variable.scaled_by else variable.storage_dtype
    if array.dtype != expected:
        descriptions = {"bfloat16": "uint16 (bits of bfloat16)", "int8": "int8 scaled by row and takes float32"}
        stored = expected.name if expected == variable.dtype else descriptions.get(variable.dtype, expected.name)
        raise InputError(f"{variable.name} is stored as {stored}, got {array.dtype}: convert the values first")
    return array


def _select_layers(
    layers: slice | int | ArrayLike, layout: ArrayLayout, variable: str
) -> tuple[slice | NDArray[np.intp], int, bool]:
    """Return the layers, their number, and whether values have no layer dim."""
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
