"""Recorder: hooks that live inside a `with`, for a training or evaluation loop of one's own.

What is recorded, and the store that it goes to, come from `create_store`
(recording.py). `capture()` (capturing.py) runs the same parts over a whole table
by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from stratalens.plugin.capture.output_hooks import Sequences
from stratalens.plugin.capture.session import HookedModel, write_batch
from stratalens.plugin.capture.store import RecordingStore
from stratalens.plugin.models.adapters import ForwardFunction, adapt
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError, suggest
from stratalens.store.writing.buffers import BlockBuffer
from stratalens.store.writing.writer import StageWriter

_OPEN = 2  # blocks that may be filled at the same time


class Recorder:
    """Records one stage of a store while the caller runs the model.

    Hooks are on the model only inside the `with`; they return None and take nothing of the
    user's own hooks away. Training mode, gradients and flags are left as the caller has them.

    Example:
        A model of one's own with hook points, and a loop of one's own over batches of the table:

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

    Args:
        model: the stage's hooked model.
        writer: what `create_store` returned.
        stage: name of the stage.
        order: its place in training order; by default behind the last one, or as the store has it.
        forward: as in `create_store`, only needed for probing a HookedRootModule.
        allow_same_weights: accept weights that another stage has too.

    Raises:
        InputError: more than two blocks of rows are open at once, a row is given twice or not at
            all, or the model does not fit.
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
        self._probe: HookedModel | None = None
        self._writer: StageWriter | None = None
        self._open: dict[int, tuple[BlockBuffer, set[int]]] = {}
        self._pending: dict[int, Any] = {}
        self._rows: NDArray[np.int64] | None = None
        self._index: NDArray[np.int64] | None = None
        self._call: tuple[Tensor, Tensor | None] | None = None
        self._root: list[Any] = []

    def __enter__(self) -> Self:
        held = self.store.writer.store.stages
        order = self._order
        if order is None:
            own = [s.order for s in held if s.name == self.stage]
            order = own[0] if own else max((s.order for s in held), default=-1) + 1
        self._probe = self.store.probe(self.adapter, self.stage)
        self._writer = self.store.writer.stage(
            self.stage,
            order=order,
            fingerprint=weights_fingerprint(self.adapter),
            allow_same_weights=self._allow_same_weights,
        )
        self._pending = {block.index: block for block in self._writer.pending()}
        root: nn.Module = self.adapter.model
        self._root = [
            root.register_forward_pre_hook(self._before, with_kwargs=True),
            root.register_forward_hook(self._after, with_kwargs=True),
        ]
        try:
            self._probe.__enter__()
        except BaseException:
            self._take_off()
            raise
        return self

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
            rows: table row of every sequence of the batch, (batch,) int.
            positions: {name: token index (batch,) int} in the sequences as the model gets them
                (padding counted), -1 = missing. None takes the table's own positions, right for
                the table's own tokenisation without padding on the left.
            tokens: token ids (batch, position), only needed where the model is not called as
                `model(tokens, attention_mask=mask)` and output statistics are recorded.
            attention_mask: 1 on tokens, 0 on padding; None means no padding at all.

        Raises:
            InputError: rows or positions are wrong, recorded already, or lie in too many blocks.
        """
        self._finish()
        assert self._probe is not None
        given = np.atleast_1d(np.asarray(rows))
        count = len(self.store.table)
        if given.ndim != 1 or given.dtype.kind not in "iu" or not len(given):
            raise InputError("rows must be a one-dimensional array of at least one table row number.")
        given = given.astype(np.int64)
        if given.min() < 0 or given.max() >= count:
            raise InputError(f"rows {given.min()} to {given.max()}: the table has rows 0 to {count - 1}.")
        if len(np.unique(given)) != len(given):
            raise InputError(f"rows {given.tolist()[:12]} name a row twice in one batch.")
        self._claim(given)
        self._rows, self._index = given, self._positions(given, positions)
        self._call = None if tokens is None else (tokens, attention_mask)
        self._probe.tap.start_batch(self._index)

    def _positions(self, rows: NDArray[np.int64], positions: Mapping[str, ArrayLike] | None) -> NDArray[np.int64]:
        labels = self.store.recipe.labels
        if positions is None:
            return self.store.recipe.index[rows]
        if absent := [name for name in labels if name not in positions]:
            raise InputError(f"positions lacks {absent[0]!r}. This store records {', '.join(map(str, labels))}.")
        if unknown := [name for name in positions if name not in labels]:
            raise InputError(f"unknown position {unknown[0]!r}: {suggest(str(unknown[0]), map(str, labels))}")
        index = np.stack([np.asarray(positions[str(name)]).astype(np.int64) for name in labels], axis=-1)
        if index.shape != (len(rows), len(labels)) or index.min() < -1:
            raise InputError(
                f"every position must be an array of {len(rows)} token indices from 0 (-1 = missing), one per row."
            )
        return index

    def _claim(self, rows: NDArray[np.int64]) -> None:
        size = self.store.writer.block_size
        for number in np.unique(rows // size).tolist():
            if number in self._open:
                if twice := self._open[number][1] & set(rows.tolist()):
                    raise InputError(f"row {min(twice)} was given to this recorder before. Record every row once.")
                continue
            if number not in self._pending:
                raise InputError(
                    f"rows {number * size} to {(number + 1) * size - 1} of stage {self.stage!r} are recorded already. "
                    "Ask rec.pending_rows() for what is left."
                )
            if len(self._open) >= _OPEN:
                raise InputError(
                    f"rows of {_OPEN + 1} blocks are open at once; a block is {size} rows of the table. Blocks "
                    f"{sorted(self._open)} are not full yet. Finish their rows before rows of block {number}: "
                    "within a block the order is free."
                )
            assert self._writer is not None
            self._open[number] = (self._writer.buffer(self._pending[number]), set())

    def pending_rows(self) -> NDArray[np.int64]:
        """Table rows of this stage that are not recorded yet."""
        rows = [np.arange(b.start, b.stop) for b in self._pending.values()]
        done = {row for _, given in self._open.values() for row in given}
        everything = np.concatenate(rows).astype(np.int64) if rows else np.empty(0, dtype=np.int64)
        return everything[~np.isin(everything, list(done))]

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs.get("input", kwargs.get("input_ids"))
        if self._call is None and isinstance(tokens, Tensor) and not tokens.is_floating_point():
            mask = kwargs.get("attention_mask")
            self._call = (tokens[None] if tokens.ndim == 1 else tokens, mask)

    def _after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._finish(output)

    def _finish(self, output: Any = None) -> None:
        """Take over what the forward pass has left."""
        if self._rows is None or self._index is None or self._probe is None:
            return
        rows, index = self._rows, self._index
        self._rows = self._index = None
        values = self._probe.values(self.stage, rows, self._sequences(rows, index), self._logits(output))
        size = self.store.writer.block_size
        for number in np.unique(rows // size).tolist():
            buffer, given = self._open[number]
            inside = np.flatnonzero(rows // size == number)
            write_batch(buffer, rows[inside], values, self.store.recipe, inside)
            given.update(rows[inside].tolist())
            if len(given) == len(buffer.block):
                assert self._writer is not None
                self._writer.submit(buffer)
                del self._open[number], self._pending[number]

    def _logits(self, output: Any) -> Tensor | None:
        assert self._probe is not None
        outputs = self._probe.outputs
        if not outputs.names or (outputs.split and outputs.ready):
            return None
        if not outputs.split and isinstance(output, Tensor) and output.ndim == 3:
            return output
        raise InputError(
            "output statistics need the model's logits at every position, which this forward pass did not make. "
            "Call model(tokens, attention_mask=mask) to the end, or create the store with statistics=('l2', ...)."
        )

    def _sequences(self, rows: NDArray[np.int64], index: NDArray[np.int64]) -> Sequences:
        if not self.store.recipe.outputs:
            nothing = np.zeros(len(rows), dtype=np.int64)
            return Sequences(np.zeros((len(rows), 0), dtype=np.int64), nothing, index, nothing, nothing)
        if self._call is None:
            raise InputError(
                "output statistics need the token ids. Call the model itself, model(tokens, attention_mask=mask), "
                "or pass rec.batch(rows, positions, tokens=tokens, attention_mask=mask)."
            )
        tokens, mask = self._call
        ids = tokens.detach().cpu().numpy().astype(np.int64)
        full = np.ones_like(ids) if mask is None else mask.detach().cpu().numpy().astype(np.int64)
        start, end = full.argmax(axis=1), ids.shape[1] - full[:, ::-1].argmax(axis=1)
        answers = self.store.recipe.tokenized.answer_lengths[rows] if self.store.recipe.runs_answers else 0
        return Sequences(ids, start, index, end - answers, end)

    def _take_off(self) -> None:
        while self._root:
            self._root.pop().remove()
        if self._probe is not None:
            self._probe.__exit__(None, None, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._take_off()
            left = {number: buffer for number, (buffer, _) in self._open.items()}
            given = {row for _, rows in self._open.values() for row in rows}
            self._open.clear()
            for buffer in left.values():
                discard = getattr(buffer, "discard", None)
                if discard is not None:
                    discard()
            if self._writer is not None:
                self._writer.__exit__(kind, error, trace)
        if error is None and left:
            lacking = [row for buffer in left.values() for row in buffer.block.rows.tolist() if row not in given]
            raise InputError(
                f"stage {self.stage!r}: blocks {sorted(left)} were left unfinished: rows {lacking[:12]} were never "
                f"given ({len(lacking)} in all), so {len(given)} recorded rows of these blocks were not written. "
                f"Record whole blocks of {self.store.writer.block_size} rows."
            )
