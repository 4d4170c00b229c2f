"""The running state of a Recorder: one stage with its hooks, its announced batch and its open blocks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stratalens.plugin.capture.forward_calls import ForwardCall, ForwardCalls
from stratalens.plugin.capture.output_hooks import Sequences
from stratalens.plugin.capture.prompt_match import find_prompts
from stratalens.plugin.capture.session import HookedModel, write_batch
from stratalens.plugin.capture.store import RecordingStore
from stratalens.plugin.compat import in_backward_pass
from stratalens.plugin.models.hooks import has_later_hooks, is_own_pass
from stratalens.plugin.stages.label_warnings import caller_level
from stratalens.store.errors import InputError, LabelWarning, RecordingWarning, join_names, suggest
from stratalens.store.writing.buffers import BlockBuffer
from stratalens.store.writing.writer import StageWriter

_OPEN_BLOCKS = 2  # blocks that may be filled at the same time

_on_model: dict[int, list[StageRecording]] = {}  # id of a model -> its recordings, for several recorders


@dataclass
class _OpenBlock:
    """A block that is being filled, and the table rows written so far."""

    buffer: BlockBuffer
    rows: set[int] = field(default_factory=set)


@dataclass
class _Announced:
    """An announced forward pass.

    Attributes:
        rows: table row of every sequence, int64 array of shape (n,).
        index: token index of every position, int64 array of shape (n, tokens); -1 = missing.
        has_positions: whether the caller gave the positions.
        ids: token ids, int64 array of shape (n, length); None until they are known.
        mask: attention mask of the same shape; None = no padding.
        starts: first token of every prompt, int64 array of shape (n,); None until the ids are compared.
    """

    rows: NDArray[np.int64]
    index: NDArray[np.int64]
    has_positions: bool
    ids: NDArray[np.int64] | None = None
    mask: NDArray[np.int64] | None = None
    starts: NDArray[np.int64] | None = None


class StageRecording:
    """The running state of a Recorder: hooks on the model, open blocks and the announced batch.

    Attributes:
        announced: the batch of the next forward pass.
        pauses: how many `Recorder.paused` are open.
        ended: whether the `with` of the recorder has ended.
    """

    def __init__(self, store: RecordingStore, stage: str, hooked_model: HookedModel, writer: StageWriter) -> None:
        self.store = store
        self.stage = stage
        self.hooked_model = hooked_model
        self.writer = writer
        self.pending = {block.index: block for block in writer.pending()}
        self.open: dict[int, _OpenBlock] = {}
        self.announced: _Announced | None = None
        self.pauses = 0
        self.ended = False
        self._calls = ForwardCalls(hooked_model.adapter, self)
        self._records = False  # the pass that runs is that of the announced batch
        self._ignores = False  # the pass that runs is another one
        self._last_ids: Tensor | None = None  # token ids of the last recorded pass
        self._points = [p for points in store.spec.selection.points(hooked_model.adapter).values() for p in points]
        self._warned_about: set[str] = set()
        self._hooks = ExitStack()

    def start(self) -> None:
        """Put the hooks on the model; all or none."""
        self.hooked_model.site_hooks.listens = self._listens
        self.hooked_model.outputs.listens = self._listens
        others = _on_model.setdefault(id(self.hooked_model.adapter.model), [])
        with ExitStack() as hooks:
            hooks.enter_context(self._calls.attached())
            hooks.enter_context(self.hooked_model)
            others.append(self)
            self._hooks = hooks.pop_all()

    def announce(
        self,
        rows: ArrayLike,
        positions: Mapping[str, ArrayLike] | None,
        call: tuple[Tensor, Tensor | None] | None,
    ) -> None:
        """Check the rows and positions of the next forward pass, and reserve its blocks."""
        if self._calls.running:  # a pass that ended with KeyboardInterrupt
            self._calls.reset()
            self.discard_batch()
        checked = self._check_rows(rows)
        if self._is_repeated(checked):
            self.discard_batch()
        self._write_announced()
        self._open_blocks(checked)
        batch = _Announced(checked, self._index(checked, positions), positions is not None)
        if call is not None:
            ids, mask = (None if part is None else part[None] if part.ndim == 1 else part for part in call)
            self._place(batch, ids, mask)
        self.announced = batch
        self.hooked_model.site_hooks.start_batch(checked, batch.index)

    def _is_repeated(self, rows: NDArray[np.int64]) -> bool:
        """Whether rows are announced again because their forward pass has not happened, or has failed."""
        if self.announced is None or self.hooked_model.site_hooks.is_complete:
            return False
        return not set(rows.tolist()).isdisjoint(self.announced.rows.tolist())

    def discard_batch(self) -> None:
        """Give up the announced batch."""
        self.announced = None
        self._records = False
        self.hooked_model.abandon()
        for number in [number for number, block in self.open.items() if not block.rows]:
            self.open.pop(number).buffer.discard()

    def _listens(self) -> bool:
        """Whether a hook that fires now sees a pass to record."""
        if self._records:
            return not (is_own_pass() or in_backward_pass())
        if self._ignores or self.pauses or is_own_pass() or in_backward_pass():
            return False
        return self.announced is not None or not self._is_of_another_recorder()

    def _is_of_another_recorder(self) -> bool:
        others = _on_model.get(id(self.hooked_model.adapter.model), [])
        return any(other.announced is not None for other in others if other is not self)

    def begin(self, call: ForwardCall) -> None:
        """A forward pass begins: decide whether it is recorded, and find the positions in its tokens."""
        batch = self.announced
        self._records = self._ignores = False
        if self.pauses or is_own_pass():
            self._ignores = True
        elif batch is None:
            self._ignores = self._is_of_another_recorder() or (
                self._last_ids is not None and call.continues_from(self._last_ids)
            )
        else:
            if call.ids is not None:
                self._place(batch, call.ids, call.mask)
                self.hooked_model.site_hooks.start_batch(batch.rows, batch.index)
            elif not batch.has_positions and batch.starts is None:
                raise self._unknown_ids()
            self._last_ids = call.ids
            self._records = True
            self._warn_about_later_hooks()

    def finish(self, output: Any) -> None:
        """The forward pass has ended: write its values if it is recorded."""
        records, self._records, self._ignores = self._records, False, False
        if records:
            self._write_announced(output)

    def fail(self) -> None:
        """The forward pass has raised an exception: give up its batch."""
        records, self._records, self._ignores = self._records, False, False
        if records or (self.announced is not None and not self.pauses and not is_own_pass()):
            self.discard_batch()

    def _place(self, batch: _Announced, ids: Tensor | None, mask: Tensor | None) -> None:
        """Keep the token ids of a batch, and find the positions in them unless the caller gave them."""
        if ids is None:
            return
        batch.ids = ids.detach().cpu().numpy().astype(np.int64)
        if mask is not None:
            batch.mask = mask.detach().cpu().numpy().astype(np.int64)
        elif batch.mask is not None and batch.mask.shape != batch.ids.shape:
            batch.mask = None
        if batch.has_positions:
            return
        spec = self.store.spec
        batch.starts = find_prompts(
            spec.tokenized, batch.rows, batch.ids, batch.mask, spec.entities, answers=spec.runs_answers
        )
        index = spec.index[batch.rows]
        batch.index = np.where(index >= 0, index + batch.starts[:, None], -1) if batch.starts.any() else index

    def _unknown_ids(self) -> InputError:
        return InputError(
            "the recorder does not see the token ids of this forward pass, so it cannot find the prompts of the table "
            "in it. Call the model itself, model(tokens, attention_mask=mask), or pass rec.batch(rows, positions) or "
            "rec.batch(rows, tokens=tokens, attention_mask=mask)."
        )

    def _warn_about_later_hooks(self) -> None:
        """Warn, once for each stage, that hooks of the caller come after those that record."""
        if "hooks" in self._warned_about:
            return
        later = [point for point in self._points if has_later_hooks(point)]
        if later:
            self._warned_about.add("hooks")
            warnings.warn(
                f"stage {self.stage!r}: hooks were added inside the recorder, after its own, at "
                f"{join_names(point.name for point in later)}. The recorded values there are those before your hooks. "
                "Add your hooks before `with Recorder(...)` to record what they return.",
                RecordingWarning,
                stacklevel=caller_level(),
            )

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

    def _write_announced(self, output: Any = None) -> None:
        """Write the values of the announced batch, and submit the blocks that are full."""
        batch, self.announced = self.announced, None
        if batch is None:
            return
        if not self.hooked_model.site_hooks.has_fired:
            self.hooked_model.abandon()
            raise InputError(
                f"rows {join_names(batch.rows.tolist())} were announced, but the model did not run. Run it after "
                "rec.batch(rows), or give the batch up with rec.discard_batch()."
            )
        if not batch.has_positions and batch.starts is None:
            raise self._unknown_ids()
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
        spec, rows, index, ids = self.store.spec, batch.rows, batch.index, batch.ids
        if not spec.outputs:
            nothing = np.zeros(len(rows), dtype=np.int64)
            return Sequences(np.zeros((len(rows), 0), dtype=np.int64), nothing, index, nothing, nothing)
        if ids is None:
            raise InputError(
                "output statistics need the token ids. Call the model itself, model(tokens, attention_mask=mask), "
                "or pass rec.batch(rows, positions, tokens=tokens, attention_mask=mask)."
            )
        if batch.starts is not None:
            start = batch.starts
            prompt_end = start + spec.tokenized.lengths[rows]
            end = start + spec.lengths[rows]
            entity = None
            if spec.entity_tokens is not None:
                tokens = spec.entity_tokens[rows]
                entity = np.where(tokens[:, 1:] > 0, tokens + start[:, None], 0)
            return Sequences(ids, start, index, prompt_end, end, entity)
        full = np.ones_like(ids) if batch.mask is None else batch.mask
        start, end = full.argmax(axis=1), ids.shape[1] - full[:, ::-1].argmax(axis=1)
        prompt_end = np.asarray(end - (spec.tokenized.answer_lengths[rows] if spec.runs_answers else 0))
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
        if "entity" not in self._warned_about:
            self._warned_about.add("entity")
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
            stack.callback(self._leave_model)
            if error is None:
                self._write_announced()
                self._check_finished()

    def _leave_model(self) -> None:
        """Forget this recording among those on the model."""
        key = id(self.hooked_model.adapter.model)
        _on_model[key].remove(self)
        if not _on_model[key]:
            del _on_model[key]

    def _discard_open(self) -> None:
        while self.open:
            self.open.popitem()[1].buffer.discard()

    def _check_finished(self) -> None:
        unfinished = {number: block for number, block in self.open.items() if block.rows}
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
