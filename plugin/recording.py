"""The store that is being recorded: decided once by `create_store`, held against every stage's model.

Also what is common to `Recorder` and `capture()`: a stage's model with its hooks
(`Probe`), and putting a batch's values into a block of the store (`give`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens import sites as site_names
from stratalens.choices import Positions, make_recipe, probe_ids
from stratalens.forecast import check_room
from stratalens.models import Adapter, ForwardFunction, adapt
from stratalens.outputs import OutputTap, Sequences
from stratalens.prompts import PromptTable
from stratalens.recipe import Recipe
from stratalens.store.buffers import BlockBuffer
from stratalens.store.create import create
from stratalens.store.layout import MEMORY_LIMIT
from stratalens.store.writer import ActivationWriter
from stratalens.tap import Tap, check_finite, to_host


class Probe:
    """One model, looked at for a recording: its adapter, its sites, its output statistics, its hooks.

    Used as a context manager: hooks are on it only inside.
    """

    def __init__(self, adapter: Adapter, recipe: Recipe) -> None:
        self.adapter = adapter
        self.recipe = recipe
        self.tap = Tap(adapter, recipe)
        self.outputs = OutputTap(adapter, recipe.outputs)

    def __enter__(self) -> Self:
        try:
            self.tap.attach()
            self.outputs.attach()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tap.detach()
        self.outputs.detach()

    def values(
        self, stage: str, rows: NDArray[np.int64], batch: Sequences, logits: Tensor | None
    ) -> dict[str, NDArray[Any]]:
        """What the batch that has just run gives for every variable of the store, on the host."""
        caught = self.tap.caught()
        with torch.no_grad():
            caught |= self.outputs.statistics(batch, logits)
            values = to_host(caught)
        check_finite(self.recipe, values, stage, rows, batch.index)
        return {name: value for name, value in values.items() if "/" not in name}


@dataclass
class RecordingStore:
    """A store being recorded; made by `create_store`, closed by leaving its `with` or by `close()`.

    Attributes:
        recipe: what is recorded.
        writer: the writer underneath.
        table: the prompts.
        first: the adapter that the recipe was made from, until another one is looked at.
    """

    recipe: Recipe
    writer: ActivationWriter
    table: PromptTable
    first: Adapter | None = None

    @property
    def path(self) -> str:
        """Folder of the store."""
        return str(self.writer.store.path)

    def probe(self, adapter: Adapter, stage: str) -> Probe:
        """Hold a stage's model against the recipe and make it ready.

        Raises:
            MismatchError: the model does not fit what the store records.
            InputError: it lacks a site or a layer.
        """
        if adapter is self.first:  # the recipe was made from it a moment ago
            return Probe(adapter, self.recipe)
        selection, ids = self.recipe.selection, probe_ids(self.recipe.tokenized.ids)
        block = selection.layers[0] if selection.layers else 0
        names = [s.name if s.name in site_names.SHORT_NAMES else s.hook_at(block) for s in selection.sites]
        again = site_names.resolve(adapter, names, selection.layers or None, ids)
        self.recipe.check_model(adapter, again, stage)
        self.first = None
        return Probe(adapter, self.recipe)

    def close(self) -> None:
        """Write what is queued and let go of the store."""
        self.writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.__exit__(kind, error, trace)


def create_store(
    path: str | os.PathLike[str],
    table: PromptTable,
    model: Any,
    *,
    sites: Sequence[str] | str = ("resid_post",),
    layers: Sequence[int] | None = None,
    positions: Positions = ("last",),
    dtype: str = "auto",
    statistics: bool | Sequence[str] = True,
    resume: bool = True,
    tokenizer: Any = None,
    missing: Literal["raise", "nan"] = "raise",
    nonfinite: Literal["raise", "keep"] = "raise",
    forward: ForwardFunction | None = None,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
    stages: int = 1,
    force: bool = False,
    compression: str = "none",
    shared: bool = False,
) -> RecordingStore:
    """Make a store for a model's activations on a table of prompts, or open the one that is there.

    Args:
        path: folder of the store, or an fsspec URL (s3://bucket/run.zarr).
        table: the prompts; row numbers of the table are what `Recorder.batch` takes.
        model: a hooked model, of the shape of all stages to be recorded.
        sites: short names (`resid_post`, `z`, ...) or full TransformerLens names.
        layers: block indices, None for all.
        positions: names (`last`, `-2`, `entity_last`, `<span>_first`), or "all".
        dtype: "auto" (the model's own), "float32", "bfloat16", "float16", or "int8" scaled by row.
        statistics: True for all, False for none, or names.
        resume: False refuses a store that is there already.
        tokenizer: None takes the model's.
        missing: "raise" or "nan" for positions that a prompt does not have.
        nonfinite: "raise" or "keep" for activations that are NaN or infinite.
        forward: `(model, ids, mask) -> logits or anything` for a HookedRootModule of one's own.
        memory_limit: bytes that the two block buffers may take together.
        block_size: rows that are committed together, a power of two; None chooses.
        stages: stages that will be recorded; the disk must have room for what is missing of them.
        force: go on even where the disk seems too small.
        compression: "none", or "zstd" to pack the sites.
        shared: let other processes that say so too write other blocks of the store at the same time.

    Returns:
        The open store, to be handed to `Recorder` and closed at the end.

    Raises:
        InputError: a site, layer, position, dtype or statistic is wrong; nothing was written.
        MismatchError: the store there was recorded otherwise.
    """
    adapter = adapt(model, forward)
    recipe = make_recipe(
        table,
        adapter,
        sites=sites,
        layers=layers,
        positions=positions,
        dtype=dtype,
        statistics=statistics,
        tokenizer=tokenizer,
        missing=missing,
        nonfinite=nonfinite,
    )
    if not force:
        check_room(path, recipe, stages=stages, memory_limit=memory_limit, block_size=block_size)
    store = create(
        path,
        entities=table.labels(),
        layers=recipe.selection.layers,
        tokens=recipe.labels,
        variables=recipe.variables(),
        provenance=recipe.provenance(),
        memory_limit=memory_limit,
        block_size=block_size,
        exist_ok=resume,
        recorded_with={"model": adapter.name},
        compression=compression,
    )
    if not table.names_entities:
        note_entities(table.source)
    allocate = pinned if adapter.device.type == "cuda" else None
    return RecordingStore(recipe, ActivationWriter(store, allocate=allocate, shared=shared), table, adapter)


@cache
def note_entities(source: str) -> None:
    """Say once for each table that nothing tells which of its prompts are about the same thing."""
    logging.getLogger("stratalens").warning(
        "%s has neither a column entity nor entity_id: every prompt counts as an entity of its own, so that prompts "
        "about the same thing can be on both sides of a split. If some are, add entity_id (stratalens.relabel does "
        "that for a store that is recorded).",
        source,
    )


def pinned(size: int) -> NDArray[np.uint8]:
    """Page-locked host memory, from which and to which a GPU copies at full speed."""
    memory: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory


def give(
    buffer: BlockBuffer,
    rows: NDArray[np.int64],
    values: Mapping[str, NDArray[Any]],
    recipe: Recipe,
    inside: NDArray[np.intp] | None = None,
) -> None:
    """Write one batch's values into a block buffer.

    Args:
        buffer: the block.
        rows: table rows, all inside the block.
        values: by variable, with a layer axis in front where the site has one.
        recipe: what is recorded.
        inside: which rows of the batch these are; None for all of them.
    """
    columns = len(recipe.labels)
    for variable in recipe.variables_by_name.values():
        value = values[variable.name]
        axis = 1 if variable.has("layer") else 0
        if inside is not None and len(inside) != value.shape[axis]:
            value = np.take(value, inside, axis=axis)
        # Columns in front that no row of the batch has are not made.
        first = columns - value.shape[axis + 1] if variable.has("token") else 0
        buffer.write(variable.name, rows, value, first_token=first)
