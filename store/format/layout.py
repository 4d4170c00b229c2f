"""Chunk and shard geometry, and the size forecast of a store.

Entities are divided into blocks of equally many rows. One file holds one variable at one stage, in all layers, for
one block. In a sharded variable each layer (and each run of tokens of a full sequence) is an inner chunk of at most
4 MiB with its own crc32c, so one layer of one block is one contiguous read. A plain file is a single chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stratalens.store.errors import InputError
from stratalens.store.format.int8 import with_scale_arrays
from stratalens.store.format.schema import Variable, recorded_variable

CHUNK_LIMIT = 4 << 20


MEMORY_LIMIT = 2 << 30


TOKEN_RUN = 16


CRC_BYTES = 4


@dataclass(frozen=True)
class ArrayLayout:
    """The division of one variable into files and inner chunks.

    `layers` and `tokens` are 1 if the variable has no such dim.
    """

    variable: Variable
    block_size: int
    layers: int
    tokens: int
    token_chunk: int

    @cached_property
    def sharded(self) -> bool:
        """Whether a file is a zarr shard: several inner chunks and an index."""
        return bool(self.variable.sharded) or self.token_chunks > 1

    @cached_property
    def compressed(self) -> bool:
        """Whether inner chunks are compressed; only the file then knows their sizes."""
        return self.variable.compression != "none"

    @cached_property
    def token_chunks(self) -> int:
        """Number of inner chunks along token."""
        return -(-self.tokens // self.token_chunk)

    @cached_property
    def inner_layers(self) -> int:
        """Number of layers in one inner chunk: one in a shard, all in a plain file."""
        return 1 if self.sharded else self.layers

    @cached_property
    def inner_count(self) -> int:
        """Number of inner chunks in one file."""
        return self.layers * self.token_chunks if self.sharded else 1

    @cached_property
    def row_nbytes(self) -> int:
        """Bytes of one entity row in one inner chunk of one layer."""
        return self.token_chunk * math.prod(self.variable.shape) * self.variable.storage_dtype.itemsize

    @cached_property
    def inner_nbytes(self) -> int:
        """Bytes of one inner chunk in memory, without its crc32c."""
        return self.inner_layers * self.block_size * self.row_nbytes

    @cached_property
    def inner_stride(self) -> int:
        """Bytes from one inner chunk to the next."""
        return self.inner_nbytes + CRC_BYTES

    @cached_property
    def index_nbytes(self) -> int:
        """Bytes of the shard index with its crc32c; 0 for a plain file."""
        return self.inner_count * 16 + CRC_BYTES if self.sharded else 0

    @cached_property
    def file_nbytes(self) -> int:
        """Bytes of one file before compression."""
        return self.inner_count * self.inner_stride + self.index_nbytes

    def _shape(self, stage: int, layer: int, entity: int, token: int) -> tuple[int, ...]:
        sizes = {"stage": stage, "layer": layer, "entity": entity, "token": token}
        axes = [sizes[d] for d in self.variable.dims if d in sizes]
        return (*axes, *self.variable.shape)

    def array_shape(self, stages: int, entities: int) -> tuple[int, ...]:
        """Return the shape of the zarr array."""
        return self._shape(stages, self.layers, entities, self.tokens)

    @cached_property
    def file_shape(self) -> tuple[int, ...]:
        """Chunk shape of the zarr array: that of a shard, or of a plain file."""
        return self._shape(1, self.layers, self.block_size, self.token_chunks * self.token_chunk)

    @cached_property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of one inner chunk, with the dims of the array."""
        return self._shape(1, self.inner_layers, self.block_size, self.token_chunk)

    def key(self, stage: int, block: int) -> str:
        """Return the key of a file in the store."""
        return f"{self.variable.name}/{self.file_name(stage, block)}"

    def file_name(self, stage: int, block: int) -> str:
        """Return the name of a file in the folder of its array."""
        return self._file_name.format(stage, block)

    @cached_property
    def _file_name(self) -> str:
        index = {"stage": "{0}", "entity": "{1}"}
        return "c." + ".".join(index.get(d, "0") for d in self.variable.dims)


@dataclass(frozen=True)
class Geometry:
    """The geometry that all variables of a store share."""

    block_size: int
    entities: int
    layers: int
    tokens: int
    full_sequence: bool

    @property
    def blocks(self) -> int:
        """Number of row blocks."""
        return -(-self.entities // self.block_size)

    def rows(self, block: int) -> tuple[int, int]:
        """Return the first row of a block and the row after its last."""
        return block * self.block_size, min((block + 1) * self.block_size, self.entities)

    def layout(self, variable: Variable) -> ArrayLayout:
        """Return the layout of one variable."""
        layers = self.layers if variable.has("layer") else 1
        tokens = self.tokens if variable.has("token") else 1
        run = tokens
        if self.full_sequence and variable.has("token") and variable.shape and variable.sharded is not False:
            per_token = self.block_size * math.prod(variable.shape) * variable.storage_dtype.itemsize
            run = max(1, min(tokens, CHUNK_LIMIT // per_token))
            run = -(-tokens // -(-tokens // run))
        return ArrayLayout(variable, self.block_size, layers, tokens, run)


def choose_geometry(
    variables: Sequence[Variable],
    *,
    entities: int,
    layers: int,
    tokens: int,
    full_sequence: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
) -> Geometry:
    """Divide the entities into blocks.

    A block is as large as two limits allow: its inner chunks stay within 4 MiB, and two blocks of all variables fit
    into `memory_limit` bytes. All blocks then get the same length, so that the last one is not mostly padding.

    Raises:
        InputError: there are no rows or tokens, or a single row exceeds `memory_limit`.

    Example:
        >>> from stratalens.store.format.schema import site_variable
        >>> site = site_variable("resid_post", ["d_model"], [576], "float32", "blocks.{layer}.hook_out")
        >>> choose_geometry([site], entities=2000, layers=30, tokens=2).block_size
        667
    """
    if entities < 1 or tokens < 1 or layers < 0:
        raise InputError(f"a store needs at least one entity and one token: got {entities} and {tokens}")
    if block_size is not None:
        if block_size < 1:
            raise InputError(f"block_size is {block_size}: give a positive number of rows")
        return Geometry(min(block_size, entities), entities, layers, tokens, full_sequence)
    size = entities
    for variable in variables:
        run = min(tokens, TOKEN_RUN) if full_sequence else tokens
        row = math.prod(variable.shape) * variable.storage_dtype.itemsize * (run if variable.has("token") else 1)
        size = min(size, max(1, CHUNK_LIMIT // row))
    while True:
        balanced = -(-entities // -(-entities // size))
        geometry = Geometry(balanced, entities, layers, tokens, full_sequence)
        need = 2 * sum(geometry.layout(v).file_nbytes for v in variables)
        if need <= memory_limit:
            return geometry
        if size == 1:
            raise InputError(
                f"two buffers of a single row need {need / 1e6:.0f} MB, more than memory_limit = "
                f"{memory_limit / 1e6:.0f} MB: record fewer sites, layers or positions, or raise memory_limit"
            )
        size = max(1, min(size - 1, int(size * memory_limit / need)))


@dataclass(frozen=True)
class Forecast:
    """Size of a store before it is written.

    Attributes:
        nbytes: bytes of all data files.
        files: number of data files.
        commit_records: largest number of commit records, reached while a stage is being written.
        memory: bytes of the two block buffers.
        block_size: rows of one block.
        rows: entity rows of all stages.
    """

    nbytes: int
    files: int
    commit_records: int
    memory: int
    block_size: int
    rows: int


def forecast(variables: Sequence[Variable], *, entities: int, stages: int, **shape: Any) -> Forecast:
    """Forecast bytes, files and buffer memory of a store with these variables.

    The forecast leaves out label columns and metadata (a few KB for each variable). It counts compressed sites at
    their uncompressed size.

    Args:
        variables: variables of the store.
        entities: number of rows.
        stages: number of stages.
        **shape: the other arguments of `choose_geometry`.
    """
    variables = with_scale_arrays(variables)
    geometry = choose_geometry(variables, entities=entities, **shape)
    layouts = [geometry.layout(v) for v in [*variables, recorded_variable(0)]]
    block = sum(layout.file_nbytes for layout in layouts)
    return Forecast(
        nbytes=block * geometry.blocks * stages,
        files=len(layouts) * geometry.blocks * stages,
        commit_records=geometry.blocks + stages,
        memory=2 * block,
        block_size=geometry.block_size,
        rows=entities * stages,
    )


def consecutive_runs(indices: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield maximal runs of consecutive values as (position, first value, length).

    >>> list(consecutive_runs([3, 4, 5, 9]))
    [(0, 3, 3), (3, 9, 1)]
    """
    start = 0
    for position in range(1, len(indices) + 1):
        if position == len(indices) or indices[position] != indices[position - 1] + 1:
            yield start, int(indices[start]), position - start
            start = position
