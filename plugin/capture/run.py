"""capture(): a whole table, at one or many stages, into one store."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from stratalens.analyses.accessor import open_store
from stratalens.plugin.capture.batching import BatchSize, Bucket, length_buckets, out_of_memory
from stratalens.plugin.capture.options import CaptureOptions, Positions
from stratalens.plugin.capture.output_hooks import Sequences
from stratalens.plugin.capture.session import HookedModel, write_batch
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.capture.store import RecordingStore, open_for_recording
from stratalens.plugin.models.adapters import Adapter, ForwardFunction, adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.models.user_hooks import user_hooks
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.plugin.progress import Progress, ProgressFunction, is_interactive, suppress_progress_bars
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.checkpoints import Checkpoint, check_checkpoint
from stratalens.plugin.stages.label_warnings import warn_about_label_typos
from stratalens.plugin.stages.stage import Stage, loaded_model, parse_stages, resolve_stage_order
from stratalens.store.errors import InputError, MismatchError, NoSpaceError
from stratalens.store.files import user_path
from stratalens.store.format.layout import MEMORY_LIMIT
from stratalens.store.state.capture_plan import clear_if_complete, plan_stages, restore_plan
from stratalens.store.state.manifest import load
from stratalens.store.state.provenance import check_weights
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.buffers import RowBlock
from stratalens.store.writing.writer import StageWriter

_ROWS_PER_SEQUENCE = 32  # rows of a batch for each of its sequences, at most: bounds the memory of the gathered vectors


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
    prepend_bos: bool | None = None,
    device: str | torch.device | None = None,
    missing: Literal["raise", "nan"] = "raise",
    nonfinite: Literal["raise", "keep"] = "raise",
    check: Literal["raise", "warn", False] = "raise",
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

    In an existing store, complete stages are verified by weight fingerprint and skipped. Unfinished stages resume, and
    new stages are added. The models' hooks, training flags and gradient mode are restored afterwards.

    Args:
        stages: one hooked model (its stage is called "model"), or, in training order, {name: model | function
            returning one | checkpoint folder | Checkpoint | Revision | LoraAdapter}.
        table: the prompts.
        path: folder or fsspec URL (s3://bucket/run.zarr) of the store. An object store has leases instead of locks:
            run one writer at a time there (docs/howto/remote.md).
        sites: short names (`resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `mlp_post`, `z`, `q`, `k`,
            `v`, `embed`, `ln_final`; in encoder-decoders with `encoder_` or `decoder_` in front, such as
            `decoder_resid_post`) or full TransformerLens names.
        layers: block indices, None for all.
        positions: `last`, `-1` .. `-k`, `entity_first`, `entity_last`, `<span>_first`, `<span>_last`, or "all".
        dtype: "auto" (the model's own), "float32", "bfloat16", "float16", or "int8" scaled by row.
        batch_size: rows per forward pass, or "auto" by memory; halved when memory runs out. In dense models it changes
            no value on most devices. In mixtures of experts and in state-space models it changes the last bits (1e-7 to
            4e-6 of the value). `recorded_with["batch_size"]` of the store says what the check saw.
        statistics: True for all but `running_loss` (of an existing store: for those that it records), "all", False for
            none, or names (see `stratalens.plugin.capture.spec`). `running_loss` needs the output layer at every token,
            `entity_loss` at the tokens of the entity, the others at the recorded positions only.
        resume: False refuses an existing store.
        tokenizer: None takes that of the first model's checkpoint. However the model came in, the token ids of a prompt
            are `tokenizer(prompt).input_ids`: the Hugging Face call with the special tokens that the tokenizer adds.
            `TransformerBridge` and `HookedTransformer` add a BOS token to most prompts where this call does not.
        prepend_bos: True for one BOS token in front of every prompt, as TransformerLens's `to_tokens` puts it; False
            for none; None for what the tokenizer adds, or for the ids that an existing store records. Rule and first
            row are in `ds.attrs["recorded_with"]["tokenization"]` and in `stratalens info`.
        device: None runs models where they are, and checkpoints on a GPU where there is one.
        missing: "raise" or "nan" for positions that a prompt does not have.
        nonfinite: "raise" or "keep" for activations that are NaN or infinite.
        check: compare the sites with what the first model computes, on a few tokens (`stratalens.check`), and "raise"
            or "warn" where they differ; False leaves the comparison out.
        forward: `(model, ids, mask) -> logits or anything` for your own HookedRootModule.
        progress: True, False, a function, or None for a bar on a terminal or in a notebook. The function is called as
            `(stage, rows done, rows in all)` before the first batch and after every batch.
        allow_same_weights: accept two stages with the same weights.
        memory_limit: bytes that the two block buffers may take together.
        block_size: rows that are committed together, a power of two; None chooses.
        force: record even where the disk seems too small for the whole store.
        compression: "none", or "zstd" to pack the sites (about 1.3x; more where prompts start with the same tokens).
        rank: (rank, number of processes) where several processes record into one store, all with the same arguments.
            Each takes its own blocks, so `block_size` x processes should not exceed the rows. Under torchrun pass
            `(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))`.

    Returns:
        The store as a lazy Dataset (`stratalens.open_store`). With several processes, it shows the rows that are
        committed when this process has finished.

    Raises:
        InputError: an argument is invalid; nothing was written.
        MismatchError: a stage does not fit the existing store.
        NonFiniteError: an activation is NaN or infinite, or overflows the requested dtype.
    """
    return capture_stages(stages, table, path, CaptureOptions.of_call(locals()))


def capture_stages(
    stages: Any, table: PromptTable, path: str | os.PathLike[str], options: CaptureOptions
) -> xr.Dataset:
    """Record every stage with these options; arguments, result and errors are those of `capture`."""
    parsed = parse_stages(stages)
    for stage in parsed:  # all folders are checked before the first model is loaded
        if isinstance(stage.source, Checkpoint):
            check_checkpoint(user_path(stage.source.folder))
    first, *others = parsed
    with ExitStack() as stack:
        with loaded_adapter(first, options) as adapter:
            run = stack.enter_context(_CaptureRun(_open_store(path, table, adapter, options, parsed), options))
            run.plan(parsed, named=not isinstance(stages, list))
            run.record(first, adapter)
            del adapter  # else this model would stay in memory while the next one is loaded
        for stage in others:
            with loaded_adapter(stage, options) as adapter:
                run.record(stage, adapter)
                del adapter
    return open_store(path)


@contextmanager
def loaded_adapter(stage: Stage, options: CaptureOptions) -> Iterator[Adapter]:
    """Load the model of a stage, and free its memory afterwards; the caller's own model stays."""
    shown = is_interactive() if options.progress is None else options.progress is True
    with ExitStack() as stack:
        with nullcontext() if shown or isinstance(stage.source, nn.Module) else suppress_progress_bars(downloads=False):
            model = stack.enter_context(loaded_model(stage, options.tokenizer, options.device))
        yield adapt(model, options.forward)
        del model
    if not isinstance(stage.source, nn.Module):
        _free_memory()


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _open_store(
    path: str | os.PathLike[str],
    table: PromptTable,
    adapter: Adapter,
    options: CaptureOptions,
    stages: Sequence[Stage],
) -> RecordingStore:
    """Open the store with the model of the first stage.

    Weights are compared only after the store has been opened. If opening fails for another reason, the error also
    reports a weight mismatch, because that may be the actual cause.
    """
    try:
        return open_for_recording(path, table, adapter, options, stages=len(stages), shared=options.rank[1] > 1)
    except MismatchError as error:
        store = load(storage_at(path))
        index = store.stage_index(stages[0].name)
        if index is not None:
            try:
                check_weights(store, store.stages[index], weights_fingerprint(adapter))
            except MismatchError as other_weights:
                error.add_note(f"In addition, {other_weights}")
        raise


@dataclass
class _CaptureRun(AbstractContextManager["_CaptureRun"]):
    """A capture into an open store; a context manager that closes the store and keeps its plan right.

    Attributes:
        store: the open store.
        options: the options of the capture.
        orders: place of every stage in training order.
        earlier_plan: stages that an earlier capture planned; None until this capture has planned its own.
        stage: name of the stage that is being recorded.
    """

    store: RecordingStore
    options: CaptureOptions
    orders: dict[str, int] = field(default_factory=dict)
    earlier_plan: list[str] | None = None
    stage: str = ""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        storage = self.store.writer.store.storage
        self.store.__exit__(kind, error, trace)
        if error is None:
            clear_if_complete(storage)
        elif self.earlier_plan is not None and isinstance(error, InputError) and not isinstance(error, NoSpaceError):
            # The same input will be refused again, so the plan of this capture is dropped. An interruption keeps it.
            restore_plan(storage, self.earlier_plan, self.stage if isinstance(error, MismatchError) else None)

    def plan(self, stages: Sequence[Stage], named: bool) -> None:
        """Decide the order of the stages, warn about label typos, and note the plan in the store."""
        stored = self.store.writer.store.stages
        self.orders = resolve_stage_order(stages, stored, named=named)
        if self.options.rank[0] == 0:  # a single process: only the first one sees the plan from before this capture
            names = [stage.name for stage in stages]
            warn_about_label_typos(self.store.table.labels(), list(dict.fromkeys([*(s.name for s in stored), *names])))
            self.earlier_plan = plan_stages(self.store.writer.store, names)

    def record(self, stage: Stage, adapter: Adapter) -> None:
        """Record the missing rows of one stage, or this process's share of them."""
        self.stage = stage.name
        hooked_model = self.store.hooked_model(adapter, stage.name)
        token_memory = bytes_per_token(adapter, self.store.spec, hooked_model.outputs.split)
        size = BatchSize(self.options.batch_size, adapter, token_memory)
        rank, processes = self.options.rank
        hooks = user_hooks(adapter)
        with self.store.writer.stage(
            stage.name,
            order=self.orders[stage.name],
            fingerprint=weights_fingerprint(adapter),
            provenance={"user_hooks": hooks} if hooks else None,
            allow_same_weights=self.options.allow_same_weights,
        ) as writer:
            blocks = list(writer.pending(rank, processes))
            total = sum(len(b) for b in self.store.writer.blocks()[rank::processes])
            done = total - sum(len(b) for b in blocks)
            with Progress(stage.name, done, total, self.options.progress) as bar:
                if blocks:
                    passes = ForwardPasses(hooked_model, stage.name, size)
                    with hooked_model, evaluation_mode(adapter.model):
                        for block in blocks:
                            passes.record_block(writer, block, bar)


class ForwardPasses:
    """Forward passes over one stage; they run no more of the model than the store needs."""

    def __init__(self, hooked_model: HookedModel, stage: str, size: BatchSize) -> None:
        self.hooked_model = hooked_model
        self.stage = stage
        self.size = size
        self.spec = hooked_model.spec
        adapter, selection = hooked_model.adapter, self.spec.selection
        all_logits = selection.needs_full_logits or (bool(self.spec.outputs) and not hooked_model.outputs.split)
        self._output: Literal["none", "logits"] = "logits" if all_logits else "none"
        self._rows_per_sequence = _ROWS_PER_SEQUENCE  # where several rows have the same prompt
        self._stop = None if all_logits or self.spec.outputs else selection.stop_at_layer(adapter)

    def record_block(self, writer: StageWriter, block: RowBlock, bar: Progress) -> None:
        """Run the rows of one block and hand its buffer to the writer."""
        buffer = writer.buffer(block)
        try:
            for bucket in length_buckets(block.rows, self.spec.lengths):
                for rows, values in self.batches(bucket):
                    write_batch(buffer, rows, values, self.spec)
                    bar.advance(len(rows))
            writer.submit(buffer)
        finally:
            buffer.discard()  # nothing to discard once it is submitted

    def batches(self, bucket: Bucket) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
        """Run a bucket batch by batch; a batch that does not fit into memory runs again in halves.

        Yields:
            Table rows of a batch, and its values by variable.
        """
        start = 0
        while start < len(bucket.rows):
            rows = self._next_rows(bucket.rows[start:], self.size.rows(bucket.pad_to))
            values = self._try_batch(rows, bucket.pad_to)
            if values is None:
                # Here and not in the except clause, whose traceback still holds the tensors.
                self.hooked_model.abandon()
                _free_memory()
                continue
            yield rows, values
            start += len(rows)

    def _next_rows(self, rows: NDArray[np.int64], sequences: int) -> NDArray[np.int64]:
        """Return the first rows that have at most this many different prompts; equal prompts run once."""
        if self.spec.repeats is None:
            return rows[:sequences]
        rows = rows[: sequences * self._rows_per_sequence]
        firsts = np.sort(np.unique(self.spec.repeats[rows], return_index=True)[1])
        return rows if len(firsts) <= sequences else rows[: firsts[sequences]]

    def _try_batch(self, rows: NDArray[np.int64], pad_to: int) -> dict[str, NDArray[Any]] | None:
        """Run one batch; None where it did not fit into memory and a smaller one may."""
        try:
            return self._run_batch(rows, pad_to)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if self.spec.repeats is not None and self._rows_per_sequence > 1:
                self._rows_per_sequence //= 2
                return None
            if not self.size.shrink(len(rows), pad_to):
                error.add_note(
                    f"stage {self.stage!r}: a single row of {pad_to} tokens does not fit into memory. Use another "
                    "device, a smaller dtype, fewer sites or shorter prompts."
                )
                raise
            return None

    def _run_batch(self, rows: NDArray[np.int64], pad_to: int) -> dict[str, NDArray[Any]]:
        spec, adapter = self.spec, self.hooked_model.adapter
        run, lines = rows, None
        if spec.repeats is not None:
            different, inverse = np.unique(spec.repeats[rows], return_inverse=True)
            if len(different) < len(rows):
                run, lines = different, inverse
        ids, mask = spec.tokenized.batch(run, pad_to, answers=spec.runs_answers)
        index = spec.index[rows]
        if spec.positions.is_all:  # without the first columns, where no row of the batch has tokens
            index = index[:, int((index >= 0).any(axis=0).argmax()) :]
        self.hooked_model.site_hooks.start_batch(rows, index, lines)
        device = adapter.device
        result = adapter.run(
            torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), self._output, self._stop
        )
        end = spec.tokenized.lengths[rows]
        entity = None if spec.entity_tokens is None else spec.entity_tokens[rows]
        batch = Sequences(ids, np.zeros_like(end), index, end, spec.lengths[rows], entity, lines)
        return self.hooked_model.values(self.stage, rows, batch, result if isinstance(result, Tensor) else None)


def bytes_per_token(adapter: Adapter, spec: CaptureSpec, split: bool) -> int:
    """Estimate the memory of one token in a forward pass without gradients, for the automatic batch size."""
    width = max(adapter.size("d_mlp") or 0, 4 * (adapter.size("d_model") or 1024))
    element = torch.finfo(adapter.dtype).bits // 8
    needed = 8 * width * element
    if spec.outputs and not split:
        needed += 3 * 4 * (adapter.size("d_vocab") or 50_000)
    layers = len(spec.selection.layers)
    per_position = sum(int(np.prod(s.feature_shape)) * (layers if s.in_blocks else 1) for s in spec.selection.sites)
    share = 1.0 if spec.positions.is_all else len(spec.labels) / max(float(spec.lengths.mean()), 1.0)
    return needed + int(3 * per_position * element * share)
