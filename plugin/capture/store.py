"""The store that is being recorded: decided once by `create_store`, held against every stage's model.

Also what is common to `Recorder` and `capture()`: a stage's model with its hooks
(`HookedModel`), and putting a batch's values into a block of the store (`give`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from stratalens.plugin.capture.session import HookedModel
from stratalens.plugin.capture.spec import CaptureSpec, Positions, make_recipe, sample_ids
from stratalens.plugin.models import site_resolution as site_names
from stratalens.plugin.models.adapters import Adapter, ForwardFunction, adapt
from stratalens.plugin.models.sites import SHORT_NAMES
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.label_warnings import warn_about_label_typos
from stratalens.store.errors import InputError
from stratalens.store.format.layout import MEMORY_LIMIT, Forecast
from stratalens.store.format.layout import forecast as store_forecast
from stratalens.store.state.info import info
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import is_url, storage_at
from stratalens.store.writing.create import create
from stratalens.store.writing.relabel import relabel as relabel_columns
from stratalens.store.writing.writer import ActivationWriter

if TYPE_CHECKING:
    from stratalens.plugin.prompts.table import PromptTable


@dataclass
class RecordingStore:
    """A store being recorded; made by `create_store`, closed by leaving its `with` or by `close()`.

    Attributes:
        recipe: what is recorded.
        writer: the writer underneath.
        table: the prompts.
        first: the adapter that the recipe was made from, until another one is looked at.
    """

    recipe: CaptureSpec
    writer: ActivationWriter
    table: PromptTable
    first: Adapter | None = None

    @property
    def path(self) -> str:
        """Folder of the store."""
        return str(self.writer.store.path)

    def probe(self, adapter: Adapter, stage: str) -> HookedModel:
        """Hold a stage's model against the recipe and make it ready.

        Raises:
            MismatchError: the model does not fit what the store records.
            InputError: it lacks a site or a layer.
        """
        if adapter is self.first:  # the recipe was made from it a moment ago
            return HookedModel(adapter, self.recipe)
        selection, ids = self.recipe.selection, sample_ids(self.recipe.tokenized.ids)
        block = selection.layers[0] if selection.layers else 0
        names = [s.name if s.name in SHORT_NAMES else s.hook_at(block) for s in selection.sites]
        again = site_names.resolve(adapter, names, selection.layers or None, ids)
        self.recipe.check_model(adapter, again, stage)
        self.first = None
        return HookedModel(adapter, self.recipe)

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


def relabel(store: str | os.PathLike[str], table: PromptTable, *, drop: Sequence[str] = ()) -> dict[str, int]:
    """Correct or add labels of a store that is recorded, without touching its activations.

    Rows are matched by `prompt_id`, in any order. Label columns of the table replace those of the store or are added
    to it; what the table does not have stays. `entity_id` is replaced where the table gives `entity_id` or `entity`.
    The change is atomic: a crash leaves the old labels or the new ones. It changes the store's content key, so no
    result that was computed before is taken for one of the new labels; datasets that are open must be opened again.

    Args:
        store: folder of the store, or an fsspec URL.
        table: the prompts that were recorded, all of them and no others, with the labels they should have.
        drop: label columns to be taken out of the store.

    Returns:
        For each column that was changed, in how many rows; empty where the labels were the same.

    Raises:
        MismatchError: the table holds other prompts, entity texts or answers than those that were run.
        InputError: there is no store, or a column cannot be a label or be dropped.
        StoreBusyError: the store is being recorded.

    >>> sl.relabel("run.zarr", sl.PromptTable.read("prompts.csv"))  # doctest: +SKIP
    {'trained_stage': 3}
    """
    if not isinstance(table, PromptTable):
        raise InputError(
            f"relabel takes a PromptTable, not {type(table).__name__}: PromptTable.read(file), or "
            "PromptTable.from_dataframe(df)"
        )
    columns = table.labels()
    if not table.names_entities:
        del columns["entity_id"]
    warn_about_label_typos(columns, [stage.name for stage in load(storage_at(store)).stages])
    return relabel_columns(store, columns, drop=drop)


_SPARE = 64 * 2**20  # bytes left for labels, metadata and whatever else writes to this disk


def store_size(
    recipe: CaptureSpec,
    *,
    stages: int,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
    rows: int | None = None,
) -> Forecast:
    """Size of the store that a recipe makes, or would make of a table of so many rows."""
    return store_forecast(
        recipe.variables(),
        entities=len(recipe.entities) if rows is None else rows,
        layers=len(recipe.selection.layers),
        tokens=len(recipe.labels),
        stages=stages,
        full_sequence=recipe.positions.is_all,
        memory_limit=memory_limit,
        block_size=block_size,
    )


def check_room(
    path: str | os.PathLike[str],
    recipe: CaptureSpec,
    *,
    stages: int,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
) -> None:
    """Refuse a capture that the disk cannot hold.

    Raises:
        InputError: what is still to be written needs more bytes than are free.
    """
    if is_url(path):  # nobody knows how much room an object store has
        return
    size = store_size(recipe, stages=stages, memory_limit=memory_limit, block_size=block_size)
    held = info(path)["bytes"] if (Path(path) / "zarr.json").is_file() else 0
    needed = size.nbytes - held
    folder = next(parent for parent in (Path(path).absolute(), *Path(path).absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise InputError(
            f"{path}: {needed / 2**30:.2f} GiB are still to be written, the disk has {free / 2**30:.2f} GiB free. "
            "Free some space, record fewer sites, layers or positions, or pass force=True (--force) to go on anyway."
        )
