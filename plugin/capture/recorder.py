"""Recorder: hooks inside a `with`, for your own training or evaluation loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from stratalens.plugin.capture.output_hooks import Sequences
from stratalens.plugin.capture.session import HookedModel, write_batch
from stratalens.plugin.capture.store import RecordingStore
from stratalens.plugin.models.adapters import ForwardFunction, adapt
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.plugin.stages.label_warnings import caller_level
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError, LabelWarning, join_names, suggest
from stratalens.store.writing.buffers import BlockBuffer
from stratalens.store.writing.writer import StageWriter

_OPEN_BLOCKS = 2  # blocks that may be filled at the same time


class Recorder:
    """A context manager that records one stage of a store while the caller runs the model.

    The hooks are on the model only inside the `with`. They return None and leave your own hooks in place. Training
    mode, gradients and flags stay as the caller sets them.

    Args:
        model: the stage's hooked model.
        writer: the store, from `create_store`.
        stage: name of the stage.
        order: its place in training order; by default after the last stage of the store, or as the store has it.
        forward: as in `create_store`; only the dry run of your own HookedRootModule needs it.
        allow_same_weights: accept weights that another stage has too.

    Raises:
        InputError: more than two blocks of rows are open at once, a row is announced twice or never, or the model
            does not fit the store.

    Example:
        Your own model with hook points, and your own loop over batches of the table:

        >>> import numpy as np, pandas as pd, tempfile, torch, stratalens as sl
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformer_lens.hook_points import HookPoint
        >>> from transformer_lens.HookedRootModule import HookedRootModule
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"?": 0, "ada": 1, "bob": 2, "sings": 3}, unk_token="?"))
        >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?")
        >>> class Tiny(HookedRootModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.hook_embed = torch.nn.Embedding(4, 8), HookPoint()
        ...         self.setup()
        ...
        ...     def forward(self, tokens, attention_mask=None):
        ...         return self.hook_embed(self.embed(tokens))
        >>> frame = pd.DataFrame({"prompt": ["ada sings", "bob sings"], "entity": ["ada", "bob"]})
        >>> table, model, folder = sl.PromptTable.from_dataframe(frame), Tiny(), tempfile.TemporaryDirectory()
        >>> store = sl.create_store(
        ...     f"{folder.name}/run.zarr", table, model, sites=["hook_embed"], positions=["entity_last", "last"],
        ...     statistics=False, tokenizer=tokenizer, forward=lambda model, ids, mask: model(ids, mask),
        ... )
        >>> with sl.Recorder(model, store, stage="step0") as rec:
        ...     for rows in (np.array([0]), np.array([1])):
        ...         batch = tokenizer([table.prompts[row] for row in rows], return_tensors="pt")
        ...         rec.batch(rows)  # the next forward pass is of these rows of the table
        ...         _ = model(batch.input_ids, attention_mask=batch.attention_mask)
        >>> ds = sl.open_store(f"{folder.name}/run.zarr")
        >>> float(abs(ds.embed.sel(token="last").values - model.embed.weight[3].detach().numpy()).max())
        0.0
        >>> folder.cleanup()
    """

    def __init__(
        self,
        model: Any,
        writer: RecordingStore,
        stage: str,
        *,
        order: int | None = None,
        forward: ForwardFunction | None = None,
        allow_same_weights: bool = False,
    ) -> None:
        self.store = writer
        self.stage = check_stage_name(stage)
        self.adapter = adapt(model, forward)
        self._order = order
        self._allow_same_weights = allow_same_weights
        self._recording: _StageRecording | None = None

    def __enter__(self) -> Self:
        hooked_model = self.store.hooked_model(self.adapter, self.stage)
        writer = self.store.writer.stage(
            self.stage,
            order=self._resolve_order(),
            fingerprint=weights_fingerprint(self.adapter),
            allow_same_weights=self._allow_same_weights,
        )
        recording = _StageRecording(self.store, self.stage, hooked_model, writer)
        recording.start()
        self._recording = recording
        return self

    def _resolve_order(self) -> int:
        if self._order is not None:
            return self._order
        orders = {stage.name: stage.order for stage in self.store.writer.store.stages}
        return orders.get(self.stage, max(orders.values(), default=-1) + 1)

    def batch(
        self,
        rows: ArrayLike,
        positions: Mapping[str, ArrayLike] | None = None,
        *,
        tokens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        """Announce the next forward pass.

        Args:
            rows: table row of every sequence of the batch, int array of shape (batch,).
            positions: {name: token index of every sequence, int array of shape (batch,)}, counted in the sequences
                that the model receives, padding included; -1 = missing. None takes the table's own positions, which
                are right for the table's own tokenization without padding on the left.
            tokens: token ids, tensor of shape (batch, position). Output statistics need it where the model is not
                called as `model(tokens, attention_mask=mask)`.
            attention_mask: 1 on tokens, 0 on padding; None means no padding.

        Raises:
            InputError: rows or positions are invalid, recorded already, or in too many blocks; or the recorder is not
                inside its `with`.
        """
        if self._recording is None or self._recording.ended:
            raise InputError("this recorder is not recording. Call rec.batch(...) inside `with Recorder(...) as rec:`.")
        self._recording.announce(rows, positions, None if tokens is None else (tokens, attention_mask))

    def pending_rows(self) -> NDArray[np.int64]:
        """List the table rows of this stage that are not recorded yet."""
        return np.empty(0, dtype=np.int64) if self._recording is None else self._recording.pending_rows()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._recording is not None:
            self._recording.end(kind, error, trace)


@dataclass
class _OpenBlock:
    """A block that is being filled, and the table rows written so far."""

    buffer: BlockBuffer
    rows: set[int] = field(default_factory=set)


@dataclass
class _Announced:
    """An announced forward pass: table rows, token index of every position, and (tokens, mask) once known."""

    rows: NDArray[np.int64]
    index: NDArray[np.int64]
    call: tuple[Tensor, Tensor | None] | None


class _StageRecording:
    """The running state of a Recorder: hooks on the model, open blocks and the announced batch."""

    def __init__(self, store: RecordingStore, stage: str, hooked_model: HookedModel, writer: StageWriter) -> None:
        self.store = store
        self.stage = stage
        self.hooked_model = hooked_model
        self.writer = writer
        self.pending = {block.index: block for block in writer.pending()}
        self.open: dict[int, _OpenBlock] = {}
        self.announced: _Announced | None = None
        self.ended = False
        self.warned_about_entity = False
        self._hooks = ExitStack()

    def start(self) -> None:
        """Put the hooks on the model; all or none."""
        root: nn.Module = self.hooked_model.adapter.model
        with ExitStack() as hooks:
            for handle in (
                root.register_forward_pre_hook(self._before, with_kwargs=True),
                root.register_forward_hook(self._after, with_kwargs=True),
            ):
                hooks.callback(handle.remove)
            hooks.enter_context(self.hooked_model)
            self._hooks = hooks.pop_all()

    def announce(
        self,
        rows: ArrayLike,
        positions: Mapping[str, ArrayLike] | None,
        call: tuple[Tensor, Tensor | None] | None,
    ) -> None:
        """Check the rows and positions of the next forward pass, and reserve its blocks."""
        self._write_announced()
        checked = self._check_rows(rows)
        self._open_blocks(checked)
        self.announced = _Announced(checked, self._index(checked, positions), call)
        self.hooked_model.site_hooks.start_batch(checked, self.announced.index)

    def _check_rows(self, rows: ArrayLike) -> NDArray[np.int64]:
        array = np.atleast_1d(np.asarray(rows))
        count = len(self.store.table)
        if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
            raise InputError("rows must be a one-dimensional array of at least one table row number.")
        array = array.astype(np.int64)
        if array.min() < 0 or array.max() >= count:
            raise InputError(f"rows {array.min()} to {array.max()}: the table has rows 0 to {count - 1}.")
        if len(np.unique(array)) != len(array):
            raise InputError(f"rows {array.tolist()[:12]} name a row twice in one batch. Name every row once.")
        return array

    def _index(self, rows: NDArray[np.int64], positions: Mapping[str, ArrayLike] | None) -> NDArray[np.int64]:
        labels = self.store.spec.labels
        if positions is None:
            return self.store.spec.index[rows]
        if absent := [name for name in labels if name not in positions]:
            raise InputError(f"positions has no {absent[0]!r}. This store records {', '.join(map(str, labels))}.")
        if unknown := [name for name in positions if name not in labels]:
            raise InputError(f"unknown position {unknown[0]!r}: {suggest(str(unknown[0]), map(str, labels))}")
        index = np.stack([np.asarray(positions[str(name)]).astype(np.int64) for name in labels], axis=-1)
        if index.shape != (len(rows), len(labels)) or index.min() < -1:
            raise InputError(
                f"every position must be an array of {len(rows)} token indices from 0 (-1 = missing), one per row."
            )
        return index

    def _open_blocks(self, rows: NDArray[np.int64]) -> None:
        size = self.store.writer.block_size
        for number in np.unique(rows // size).tolist():
            if number in self.open:
                if twice := self.open[number].rows & set(rows.tolist()):
                    raise InputError(f"row {min(twice)} was announced to this recorder before. Record every row once.")
                continue
            if number not in self.pending:
                raise InputError(
                    f"rows {number * size} to {(number + 1) * size - 1} of stage {self.stage!r} are recorded already. "
                    "Record the rows that rec.pending_rows() returns."
                )
            if len(self.open) >= _OPEN_BLOCKS:
                raise InputError(
                    f"rows of {_OPEN_BLOCKS + 1} blocks are open at once. A block is {size} rows of the table, and "
                    f"blocks {sorted(self.open)} are not full yet. Finish their rows before rows of block {number}; "
                    "rows may come in any order within a block."
                )
            self.open[number] = _OpenBlock(self.writer.buffer(self.pending[number]))

    def pending_rows(self) -> NDArray[np.int64]:
        """List the table rows that are not recorded yet."""
        rows = [np.arange(b.start, b.stop) for b in self.pending.values()]
        done = {row for block in self.open.values() for row in block.rows}
        everything = np.concatenate(rows).astype(np.int64) if rows else np.empty(0, dtype=np.int64)
        return everything[~np.isin(everything, list(done))]

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the token ids with which the model is called."""
        batch = self.announced
        tokens = args[0] if args else kwargs.get("input", kwargs.get("input_ids"))
        if batch is not None and batch.call is None and isinstance(tokens, Tensor) and not tokens.is_floating_point():
            batch.call = (tokens[None] if tokens.ndim == 1 else tokens, kwargs.get("attention_mask"))

    def _after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._write_announced(output)

    def _write_announced(self, output: Any = None) -> None:
        """Write the values of the announced batch, and submit the blocks that are full."""
        batch, self.announced = self.announced, None
        if batch is None:
            return
        values = self.hooked_model.values(self.stage, batch.rows, self._sequences(batch), self._logits(output))
        numbers = batch.rows // self.store.writer.block_size
        for number in np.unique(numbers).tolist():
            block = self.open[number]
            selected = np.flatnonzero(numbers == number)
            write_batch(block.buffer, batch.rows[selected], values, self.store.spec, selected)
            block.rows.update(batch.rows[selected].tolist())
            if len(block.rows) == len(block.buffer.block):
                self.writer.submit(block.buffer)
                del self.open[number], self.pending[number]

    def _logits(self, output: Any) -> Tensor | None:
        outputs = self.hooked_model.outputs
        if not outputs.names or (outputs.split and outputs.ready):
            return None
        if not outputs.split and isinstance(output, Tensor) and output.ndim == 3:
            return output
        raise InputError(
            "output statistics need the model's logits at every position, which this forward pass did not return. "
            "Run the whole model with model(tokens, attention_mask=mask), or create the store with "
            "statistics=('l2', ...)."
        )

    def _sequences(self, batch: _Announced) -> Sequences:
        rows, index = batch.rows, batch.index
        if not self.store.spec.outputs:
            nothing = np.zeros(len(rows), dtype=np.int64)
            return Sequences(np.zeros((len(rows), 0), dtype=np.int64), nothing, index, nothing, nothing)
        if batch.call is None:
            raise InputError(
                "output statistics need the token ids. Call the model itself, model(tokens, attention_mask=mask), "
                "or pass rec.batch(rows, positions, tokens=tokens, attention_mask=mask)."
            )
        tokens, mask = batch.call
        ids = tokens.detach().cpu().numpy().astype(np.int64)
        full = np.ones_like(ids) if mask is None else mask.detach().cpu().numpy().astype(np.int64)
        start, end = full.argmax(axis=1), ids.shape[1] - full[:, ::-1].argmax(axis=1)
        answers = self.store.spec.tokenized.answer_lengths[rows] if self.store.spec.runs_answers else 0
        prompt_end = np.asarray(end - answers)
        return Sequences(ids, start, index, prompt_end, end, self._entity_tokens(rows, ids, start, prompt_end))

    def _entity_tokens(
        self, rows: NDArray[np.int64], ids: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """Find the tokens of the entities in the sequences that run.

        The sequences may have padding and one more special token at either end.

        Args:
            rows: table rows, int64 array of shape (n,).
            ids: token ids, int64 array of shape (n, positions).
            start: first token of every prompt, int64 array of shape (n,).
            stop: index after the last token of every prompt, int64 array of shape (n,).

        Returns:
            int64 array of shape (n, 2), [first, stop), (0, 0) where a row has no entity.
        """
        spec = self.store.spec
        if spec.entity_tokens is None:
            return None
        tokens = np.zeros((len(rows), 2), dtype=np.int64)
        for line, row in enumerate(rows.tolist()):
            first, last = spec.entity_tokens[row].tolist()
            wanted = spec.tokenized.ids[row][first:last]
            for shift in (int(stop[line]) - len(spec.tokenized.ids[row]), int(start[line])):
                if shift + first >= 0 and np.array_equal(ids[line, shift + first : shift + last], wanted):
                    tokens[line] = shift + first, shift + last
                    break
            else:
                self._warn_about_entity(row)
        return tokens

    def _warn_about_entity(self, row: int) -> None:
        """Warn, once for each stage, that the entity of a row is not in the tokens that run."""
        if not self.warned_about_entity:
            self.warned_about_entity = True
            warnings.warn(
                f"stage {self.stage!r}: the tokens of row {row} do not contain those of its entity in the prompt "
                "table, so its entity_loss is missing (NaN), as in every such row. Run the model on the tokens of the "
                "store's tokenizer, or name the statistics without entity_loss.",
                LabelWarning,
                stacklevel=caller_level(),
            )

    def end(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Remove the hooks, discard unfinished blocks and close the stage.

        Raises:
            InputError: blocks were left unfinished although the caller's loop ended without an error.
        """
        self.ended = True
        with ExitStack() as stack:
            stack.callback(self.writer.__exit__, kind, error, trace)
            stack.callback(self._discard_open)
            stack.callback(self._hooks.close)
            if error is None:
                self._write_announced()
                self._check_finished()

    def _discard_open(self) -> None:
        while self.open:
            self.open.popitem()[1].buffer.discard()

    def _check_finished(self) -> None:
        unfinished = dict(self.open)
        if not unfinished:
            return
        written = {row for block in unfinished.values() for row in block.rows}
        rows = [row for block in unfinished.values() for row in block.buffer.block.rows.tolist()]
        missing = [row for row in rows if row not in written]
        raise InputError(
            f"stage {self.stage!r}: blocks {sorted(unfinished)} are unfinished, so their {len(written)} recorded rows "
            f"were not written. Rows {join_names(missing, 12)} were never announced to the recorder. Record whole "
            f"blocks of {self.store.writer.block_size} rows."
        )
