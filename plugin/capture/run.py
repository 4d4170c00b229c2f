"""capture(): a whole table, one or many stages, into one store.

Every stage is loaded, recorded and freed. Rows run block by block of the store
and length group by length group (plan.py), through the leanest forward pass that
the kind of model has (models.py), so that what is recorded depends on neither
batch size nor interruption. For a loop of one's own there is recorder.py.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from stratalens.analyses.accessor import open_store
from stratalens.plugin.capture.batching import BatchSize, Bucket, length_buckets, out_of_memory
from stratalens.plugin.capture.output_hooks import Sequences
from stratalens.plugin.capture.session import HookedModel, write_batch
from stratalens.plugin.capture.spec import CaptureSpec, Positions
from stratalens.plugin.capture.store import RecordingStore, create_store
from stratalens.plugin.models.adapters import Adapter, ForwardFunction, adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.checkpoints import Checkpoint, as_loadable, check_checkpoint
from stratalens.plugin.stages.label_warnings import warn_about_label_typos
from stratalens.plugin.stages.stage import Stage, loaded_model, parse_stages, resolve_stage_order
from stratalens.plugin.terminal import Progress, ProgressFunction
from stratalens.store.errors import InputError, MismatchError, NoSpaceError
from stratalens.store.format.layout import MEMORY_LIMIT
from stratalens.store.state.capture_plan import clear_if_complete, plan_stages, restore_plan
from stratalens.store.state.manifest import load
from stratalens.store.state.provenance import check_weights
from stratalens.store.storage.resolve import storage_at


def capture(
    stages: Any,
    table: PromptTable,
    path: str | os.PathLike[str],
    *,
    sites: Sequence[str] | str = ("resid_post",),
    layers: Sequence[int] | None = None,
    positions: Positions = ("last",),
    dtype: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    statistics: bool | Sequence[str] = True,
    resume: bool = True,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    missing: Literal["raise", "nan"] = "raise",
    nonfinite: Literal["raise", "keep"] = "raise",
    forward: ForwardFunction | None = None,
    progress: bool | ProgressFunction | None = None,
    allow_same_weights: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
    force: bool = False,
    compression: str = "none",
    rank: tuple[int, int] = (0, 1),
) -> xr.Dataset:
    """Record activations of a table of prompts at every stage, and open the store.

    On a store that is there already, stages that are complete are verified against the
    fingerprint of their weights and skipped, unfinished ones resumed, new ones added.
    A model's hooks, training flags and gradient mode are afterwards as before.

    Args:
        stages: one hooked model (its stage is called "model"), or, in training order,
            {name: model | function returning one | checkpoint folder | Checkpoint | Revision |
            LoraAdapter}.
        table: the prompts.
        path: folder of the store, or an fsspec URL (s3://bucket/run.zarr).
        sites: short names (`resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`,
            `mlp_post`, `z`, `q`, `k`, `v`, `embed`, `ln_final`) or full TransformerLens names.
        layers: block indices, None for all.
        positions: `last`, `-1` .. `-k`, `entity_first`, `entity_last`, `<span>_first`, `<span>_last`,
            or "all".
        dtype: "auto" (the model's own), "float32", "bfloat16", "float16", or "int8" scaled by row.
        batch_size: rows per forward pass, or "auto" by memory; halved when memory runs out. It
            never changes what is recorded.
        statistics: True for all, False for none, or names (see `stratalens.plugin.capture.spec`). All of them
            need the output layer at every token for `running_loss`; without it at the recorded
            positions only.
        resume: False refuses a store that is there already.
        tokenizer: None takes the first model's.
        device: None runs models where they are, and checkpoints on a GPU where there is one.
        missing: "raise" or "nan" for positions that a prompt does not have.
        nonfinite: "raise" or "keep" for activations that are NaN or infinite.
        forward: `(model, ids, mask) -> logits or anything` for a HookedRootModule of one's own.
        progress: True, False, a function (stage, rows done, rows in all), called before and after every
            batch, or None for a bar on a terminal or in a notebook.
        allow_same_weights: accept two stages with the same weights.
        memory_limit: bytes that the two block buffers may take together.
        block_size: rows that are committed together, a power of two; None chooses.
        force: record even where the disk seems too small for the whole store.
        compression: "none", or "zstd" to pack the sites (about 1.3x; more where prompts begin alike).
        rank: (number, how many) of one of several processes that record into one store, all called
            alike: each takes its own blocks, so `block_size` x processes should not exceed the rows.
            Under torchrun `(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))`.

    Returns:
        The store as a lazy Dataset (`stratalens.open_store`); with several processes, what is there
        when this one has finished.

    Raises:
        InputError: what was asked for is wrong; nothing was written.
        MismatchError: a stage does not fit what the store records.
        NonFiniteError: an activation is NaN or infinite, or overflows the dtype asked for.
    """
    listed = parse_stages(stages)
    for stage in listed:
        source = as_loadable(stage.source)
        if isinstance(source, Checkpoint):  # all of them before the first one is loaded
            check_checkpoint(source.folder_path)
    store: RecordingStore | None = None
    planned: list[str] | None = None  # by an earlier capture
    try:
        for stage in listed:
            with loaded_model(stage, tokenizer, device) as model:
                adapter = adapt(model, forward)
                if store is None:
                    try:
                        store = create_store(
                            path,
                            table,
                            adapter,
                            sites=sites,
                            layers=layers,
                            positions=positions,
                            dtype=dtype,
                            statistics=statistics,
                            resume=resume,
                            tokenizer=tokenizer,
                            missing=missing,
                            nonfinite=nonfinite,
                            forward=forward,
                            memory_limit=memory_limit,
                            stages=len(listed),
                            force=force,
                            block_size=block_size,
                            compression=compression,
                            shared=rank[1] > 1,
                        )
                    except MismatchError as error:
                        note_other_weights(error, path, stage.name, adapter)
                        raise
                    held, names = store.writer.store.stages, [s.name for s in listed]
                    listed_orders = resolve_stage_order(listed, held, named=not isinstance(stages, list))
                    if rank[0] == 0:  # one process alone, which knows what was planned before all of them began
                        warn_about_label_typos(table.labels(), list(dict.fromkeys([*(s.name for s in held), *names])))
                        planned = plan_stages(store.writer.store, names)
                order = listed_orders[stage.name]
                _record_stage(store, adapter, stage, order, batch_size, allow_same_weights, progress, rank)
                store.first = None
                del adapter, model
            if not isinstance(stage.source, nn.Module):  # the caller holds on to a model of their own
                _free()
    except BaseException as error:
        if store is not None:
            store.__exit__(type(error), error, error.__traceback__)
            # What was refused will be refused again, so it is no longer planned; an interruption leaves the plan.
            if planned is not None and isinstance(error, InputError) and not isinstance(error, NoSpaceError):
                unfit = stage.name if isinstance(error, MismatchError) else None
                restore_plan(store.writer.store.storage, planned, unfit)
        raise
    if store is not None:
        store.close()
        clear_if_complete(store.writer.store.storage)
    return open_store(path)


def _free() -> None:
    """Let go of a stage's memory before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _record_stage(
    store: RecordingStore,
    adapter: Adapter,
    stage: Stage,
    order: int,
    batch_size: int | Literal["auto"],
    allow_same_weights: bool,
    progress: bool | ProgressFunction | None,
    rank: tuple[int, int],
) -> None:
    """Record what is left of one stage, or one process's part of it."""
    probe = store.probe(adapter, stage.name)
    recipe = store.recipe
    size = BatchSize(batch_size, adapter, bytes_per_token(adapter, recipe, probe.outputs.split))
    entry = store.writer.stage(
        stage.name, order=order, fingerprint=weights_fingerprint(adapter), allow_same_weights=allow_same_weights
    )
    with entry as writer:
        blocks = list(writer.pending(*rank))
        total = sum(len(b) for b in store.writer.blocks()[rank[0] :: rank[1]])
        done = total - sum(len(b) for b in blocks)
        with Progress(stage.name, done, total, progress) as bar:
            if not blocks:
                return
            run = Runner(probe, stage.name, recipe)
            with probe, evaluation_mode(adapter.model):
                for block in blocks:
                    buffer = writer.buffer(block)
                    try:
                        for group in length_buckets(block.rows, recipe.lengths):
                            for rows, values in run.group(group, size):
                                write_batch(buffer, rows, values, recipe)
                                bar.advance(len(rows))
                        writer.submit(buffer)
                    except BaseException:
                        getattr(buffer, "discard", lambda: None)()
                        raise


class Runner:
    """Forward passes over groups of rows, as lean as the recipe allows."""

    def __init__(self, probe: HookedModel, stage: str, recipe: CaptureSpec) -> None:
        self.probe, self.stage, self.recipe = probe, stage, recipe
        adapter, selection = probe.adapter, recipe.selection
        full = selection.needs_full_logits or (bool(recipe.outputs) and not probe.outputs.split)
        self._output: Literal["none", "logits"] = "logits" if full else "none"
        self._stop = None if full or recipe.outputs else selection.stop_at_layer(adapter)

    def group(self, group: Bucket, size: BatchSize) -> Any:
        """Yield (rows, values) batch by batch; a batch that does not fit in memory runs again in halves."""
        start = 0
        while start < len(group.rows):
            rows = group.rows[start : start + size.rows(group.pad_to)]
            try:
                values = self.batch(rows, group.pad_to)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if not size.shrink(len(rows), group.pad_to):
                    error.add_note(
                        f"stage {self.stage!r}: memory does not hold a single row of {group.pad_to} tokens. Use "
                        "another device, a smaller dtype, fewer sites or shorter prompts."
                    )
                    raise
                values = None
            if values is None:  # outside of the except clause, whose traceback holds the tensors
                self.probe.tap.abandon()
                _free()
                continue
            yield rows, values
            start += len(rows)

    def batch(self, rows: NDArray[np.int64], pad_to: int) -> dict[str, NDArray[Any]]:
        """One forward pass and what it gives for every variable."""
        recipe, adapter = self.recipe, self.probe.adapter
        tokenized = recipe.tokenized
        ids, mask = tokenized.batch(rows, pad_to, answers=recipe.runs_answers)
        index = recipe.index[rows]
        if recipe.positions.is_all:  # columns that no row of the batch has
            index = index[:, int((index >= 0).any(axis=0).argmax()) :]
        self.probe.tap.start_batch(index)
        device = adapter.device
        result = adapter.run(
            torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), self._output, self._stop
        )
        end = tokenized.lengths[rows]
        batch = Sequences(ids, np.zeros_like(end), index, end, recipe.lengths[rows])
        return self.probe.values(self.stage, rows, batch, result if isinstance(result, Tensor) else None)


def bytes_per_token(adapter: Adapter, recipe: CaptureSpec, split: bool) -> int:
    """Rough memory of one token in a forward pass without gradients, for the automatic batch size."""
    width = max(adapter.size("d_mlp") or 0, 4 * (adapter.size("d_model") or 1024))
    element = torch.finfo(adapter.dtype).bits // 8
    needed = 8 * width * element
    if recipe.outputs and not split:
        needed += 3 * 4 * (adapter.size("d_vocab") or 50_000)
    per_position = sum(
        int(np.prod(s.feature_shape)) * (len(recipe.selection.layers) if s.in_blocks else 1)
        for s in recipe.selection.sites
    )
    share = 1.0 if recipe.positions.is_all else len(recipe.labels) / max(float(recipe.lengths.mean()), 1.0)
    return needed + int(3 * per_position * element * share)


def note_other_weights(error: MismatchError, path: str | os.PathLike[str], stage: str, adapter: Adapter) -> None:
    """Add to the error with which a store refuses to be opened that the weights of a stage differ as well.

    Weights are compared once a store is open. Where it is not opened at all, for what it records,
    they would be heard of only after that was put right, and may be what went wrong first.
    """
    store = load(storage_at(path))
    index = store.stage_index(stage)
    if index is None:
        return
    try:
        check_weights(store, store.stages[index], weights_fingerprint(adapter))
    except MismatchError as weights:
        error.add_note(f"besides, {weights}")
