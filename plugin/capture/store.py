"""The store of a capture: create or open it, check each stage's model, correct its labels."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stratalens.plugin.capture.checks import batch_note, check_before_recording
from stratalens.plugin.capture.options import CaptureOptions, Positions
from stratalens.plugin.capture.session import HookedModel
from stratalens.plugin.capture.spec import CaptureSpec, sample_ids
from stratalens.plugin.capture.store_defaults import existing_store
from stratalens.plugin.capture.tokens import RULE, explain_other_tokens, warn_about_repeated_tokens
from stratalens.plugin.models.adapters import Adapter, BridgeAdapter, ForwardFunction, adapt
from stratalens.plugin.models.site_resolution import resolve as resolve_sites
from stratalens.plugin.models.sites import SHORT_NAMES
from stratalens.plugin.models.weights import describe_quantization
from stratalens.plugin.prompts.entity_warnings import entity_warning
from stratalens.plugin.prompts.ids_of_store import with_ids_of_store
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.label_warnings import caller_level, warn_about_label_typos
from stratalens.store.errors import CheckWarning, InputError, LabelWarning, MismatchError
from stratalens.store.files import user_path
from stratalens.store.format.layout import MEMORY_LIMIT, Forecast
from stratalens.store.format.layout import forecast as store_forecast
from stratalens.store.state.info import info
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import is_url, storage_at
from stratalens.store.writing.create import create
from stratalens.store.writing.relabel import relabel as relabel_columns
from stratalens.store.writing.writer import ActivationWriter


@dataclass
class RecordingStore(AbstractContextManager["RecordingStore"]):
    """An open store that is being recorded; made by `create_store`, closed by leaving its `with` or by `close()`.

    Attributes:
        spec: what the store records.
        writer: the writer of the store.
        table: the prompts.
        first: the adapter that `spec` was made from, until a model is hooked.
    """

    spec: CaptureSpec
    writer: ActivationWriter
    table: PromptTable
    first: Adapter | None = None

    @property
    def path(self) -> str:
        """Folder of the store."""
        return str(self.writer.store.path)

    def tokens(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token ids of some rows, padded on the right, and their attention mask.

        Args:
            rows: n rows of the table.

        Returns:
            ids and mask: int64 tensors of shape (n, tokens) on the CPU, without answers; the mask is 0 on padding.
        """
        lengths = self.spec.tokenized.lengths[np.asarray(rows, dtype=np.int64)]
        ids, mask = self.spec.tokenized.batch(rows, int(lengths.max(initial=0)))
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def hooked_model(self, adapter: Adapter, stage: str) -> HookedModel:
        """Check that a stage's model fits the store, and prepare its hooks.

        Raises:
            MismatchError: the model does not fit what the store records.
            InputError: the model has no such site or layer.
        """
        if adapter is not self.first:
            check_stage_model(self.spec, adapter, stage)
        self.first = None
        return HookedModel(adapter, self.spec)

    def close(self) -> None:
        """Write what is queued and release the store."""
        self.writer.close()

    def __exit__(self, *error: Any) -> None:
        self.writer.__exit__(*error)


def check_stage_model(spec: CaptureSpec, adapter: Adapter, stage: str) -> None:
    """Check that the model of a further stage fits a specification.

    Raises:
        MismatchError: the model does not fit what is recorded.
        InputError: the model has no such site or layer.
    """
    selection, ids = spec.selection, sample_ids(spec.tokenized.ids)
    block = selection.layers[0] if selection.layers else 0
    names = [s.name if s.hook in SHORT_NAMES.get(s.name, ()) else s.hook_at(block) for s in selection.sites]
    spec.check_model(adapter, resolve_sites(adapter, names, selection.layers or None, ids), stage)


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
    prepend_bos: bool | None = None,
    missing: Literal["raise", "nan"] = "raise",
    nonfinite: Literal["raise", "keep"] = "raise",
    check: Literal["raise", "warn", False] = "raise",
    forward: ForwardFunction | None = None,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
    stages: int = 1,
    force: bool = False,
    compression: str = "none",
    shared: bool = False,
) -> RecordingStore:
    """Create a store for a model's activations on a table of prompts, or open an existing one.

    Args:
        path: folder of the store, or an fsspec URL (s3://bucket/run.zarr).
        table: the prompts. `Recorder.batch` takes row numbers of this table.
        model: a hooked model; the models of all stages must have its shape.
        sites: short names (`resid_post`, `z`, ...) or full TransformerLens names.
        layers: block indices, None for all.
        positions: names (`last`, `-2`, `entity_last`, `<span>_first`), or "all".
        dtype: "auto" (the model's own), "float32", "bfloat16", "float16", or "int8" scaled by row.
        statistics: True for all (of an existing store: for those that it records), False for none, or names.
        resume: False refuses an existing store.
        tokenizer: None takes the tokenizer of the model's checkpoint. The ids of a prompt are
            `tokenizer(prompt).input_ids`; `Recorder` refuses a loop that runs other ids.
        prepend_bos: True for one BOS token in front of every prompt, False for none, None for what the tokenizer adds
            (of an existing store: for the ids that it records).
        missing: "raise" or "nan" for positions that a prompt does not have.
        nonfinite: "raise" or "keep" for activations that are NaN or infinite.
        check: compare the sites with what the model computes, on a few tokens (`stratalens.check`), and "raise" or
            "warn" where they differ; False leaves the comparison out.
        forward: `(model, ids, mask) -> logits or anything` for your own HookedRootModule.
        memory_limit: bytes that the two block buffers may take together.
        block_size: rows that are committed together, a power of two; None chooses.
        stages: number of stages to record; the disk must have room for those that are missing.
        force: record even where the disk seems too small.
        compression: "none", or "zstd" to pack the sites.
        shared: let other processes that also pass shared=True write other blocks of the store at the same time.

    Returns:
        The open store. Pass it to `Recorder`, and close it at the end.

    Raises:
        InputError: a site, layer, position, dtype or statistic is invalid; nothing was written.
        MismatchError: the existing store records something else.
    """
    options = CaptureOptions.of_call(locals())
    return open_for_recording(path, table, adapt(model, forward), options, stages=stages, shared=shared)


def open_for_recording(
    path: str | os.PathLike[str],
    table: PromptTable,
    adapter: Adapter,
    options: CaptureOptions,
    *,
    stages: int,
    shared: bool,
) -> RecordingStore:
    """Create or open the store of a capture; arguments and errors are those of `create_store`."""
    existing = existing_store(path)
    if isinstance(table, PromptTable):  # else the specification refuses it
        table = with_ids_of_store(table, existing, stacklevel=caller_level() + 1)
    spec = CaptureSpec.from_model(table, adapter, options, existing if options.resume else None)
    if not options.force:
        check_room(path, spec, stages)
    verdict = check_before_recording(adapter, spec, existing)
    recorded_with: dict[str, Any] = {"model": adapter.name, RULE: spec.tokenized.describe(spec.tokenizer)}
    recorded_with |= batch_note(verdict)
    if quantization := describe_quantization(adapter.weights_module):
        recorded_with["quantization"] = quantization
    try:
        store = create(
            path,
            entities=table.labels(),
            layers=spec.selection.layers,
            tokens=spec.labels,
            variables=spec.variables(),
            provenance=spec.provenance(),
            memory_limit=options.memory_limit,
            block_size=options.block_size,
            exist_ok=options.resume,
            recorded_with=recorded_with | ({"check": verdict} if verdict is not None else {}),
            compression=options.compression,
            label_orders=table.label_orders,
        )
    except MismatchError as error:
        if existing is not None and (note := explain_other_tokens(existing, spec.tokenized)) is not None:
            error.add_note(note)
        raise
    warn_about_repeated_tokens(table, spec.tokenized, spec.tokenizer)
    warn_about_missing_entities(table)
    warn_about_missing_logits(adapter, options)
    allocate = pinned if adapter.device.type == "cuda" else None
    return RecordingStore(spec, ActivationWriter(store, allocate=allocate, shared=shared), table, adapter)


def warn_about_missing_entities(table: PromptTable) -> None:
    """Warn, once for each table, that prompts about the same entity may count as several entities."""
    if table.warned_about_entities:
        return
    table.warned_about_entities = True
    message = entity_warning(table)
    if message is not None:
        warnings.warn(message, LabelWarning, stacklevel=caller_level())


def warn_about_missing_logits(adapter: Adapter, options: CaptureOptions) -> None:
    """Warn that a Hugging Face model gives no output statistics although all statistics were asked for."""
    if options.statistics is True and adapter.no_logits and isinstance(adapter, BridgeAdapter):
        warnings.warn(
            f"no output statistics (loss, entropy, ...) are recorded: {adapter.no_logits}. Pass statistics=False or "
            "names such as ('l2',) to record without this warning.",
            CheckWarning,
            stacklevel=caller_level(),
        )


def pinned(size: int) -> NDArray[np.uint8]:
    """Allocate page-locked host memory, which a GPU copies at full speed."""
    memory: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory


def relabel(store: str | os.PathLike[str], table: PromptTable, *, drop: Sequence[str] = ()) -> dict[str, int]:
    """Correct or add labels of a recorded store without touching its activations.

    Rows are matched by `prompt_id`, in any order. Label columns of the table replace those of the store or are added
    to it; labels that the table does not have stay. `entity_id` is replaced where the table has `entity_id` or
    `entity`. The change is atomic: a crash leaves the old labels or the new ones. The store gets a new content key, so
    results computed before do not count as results of the new labels. Open datasets again after relabelling.

    Args:
        store: folder of the store, or an fsspec URL.
        table: exactly the recorded prompts, with their new labels.
        drop: label columns to remove from the store.

    Returns:
        For each changed column, the number of changed rows; empty where all labels were the same.

    Raises:
        MismatchError: the table has other prompts, entity texts or answers than the store.
        InputError: there is no store, or a column cannot be a label or be dropped.
        StoreBusyError: another process records the store.

    Example:
        >>> sl.relabel("run.zarr", sl.PromptTable.read("prompts.csv"))  # doctest: +SKIP
        {'trained_stage': 3}
    """
    if not isinstance(table, PromptTable):
        raise InputError(
            f"relabel takes a PromptTable, not {type(table).__name__}. Use PromptTable.read(file) or "
            "PromptTable.from_dataframe(df)."
        )
    recorded = load(storage_at(store))
    columns = with_ids_of_store(table, recorded, stacklevel=caller_level() + 1).labels()
    if not table.names_entities:
        del columns["entity_id"]
    warn_about_label_typos(columns, [stage.name for stage in recorded.stages])
    return relabel_columns(store, columns, drop=drop, label_orders=table.label_orders)


_SPARE = 64 * 2**20  # bytes left for labels, metadata and other writers of the disk


def store_size(spec: CaptureSpec, stages: int, rows: int | None = None) -> Forecast:
    """Compute the size of the store of a specification.

    Args:
        spec: what the store records.
        stages: number of stages.
        rows: number of rows, None for those of the table.
    """
    return store_forecast(
        spec.variables(),
        entities=len(spec.entities) if rows is None else rows,
        layers=len(spec.selection.layers),
        tokens=len(spec.labels),
        stages=stages,
        full_sequence=spec.positions.is_all,
        memory_limit=spec.options.memory_limit,
        block_size=spec.options.block_size,
    )


def check_room(path: str | os.PathLike[str], spec: CaptureSpec, stages: int) -> None:
    """Check that the disk can hold a capture.

    Raises:
        InputError: the capture needs more bytes than the disk has free.
    """
    if is_url(path):  # an object store does not report its free space
        return
    local = user_path(path).absolute()
    recorded = info(path)["bytes"] if (local / "zarr.json").is_file() else 0
    needed = store_size(spec, stages).nbytes - recorded
    folder = next(parent for parent in (local, *local.parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise InputError(
            f"{path}: the capture needs {needed / 2**30:.2f} GiB more, the disk has {free / 2**30:.2f} GiB free. "
            "Free some space, record fewer sites, layers or positions, or pass force=True (--force) to record anyway."
        )
