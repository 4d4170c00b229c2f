"""Recorder: hooks inside a `with`, for your own training or evaluation loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stratalens.plugin.capture.stage_recording import StageRecording
from stratalens.plugin.capture.store import RecordingStore
from stratalens.plugin.models.adapters import ForwardFunction, adapt
from stratalens.plugin.models.user_hooks import user_hooks
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError


class Recorder:
    """A context manager that records one stage of a store while the caller runs the model.

    The hooks are on the model only inside the `with`. They return None and leave your own hooks in place. Training
    mode, gradients and flags stay as the caller sets them.

    Without positions, the recorder compares the token ids of each batch with those of the table, and finds the
    positions in them: the ids without padding must begin with those of the table, and more may follow.

    Of `generate`, the pass over the prompt is recorded, for `generate` of the hooked model and of the Hugging Face
    model in it. Several recorders may be on one model: a pass belongs to those that have announced a batch. Passes of
    this package, such as those of `capture`, are not recorded.

    At one hook point, hooks run in the order in which they were added. A hook that you add before the `with` changes
    what is recorded there, and the stage keeps the names of such hook points as `user_hooks` in its provenance. A hook
    that you add inside changes what later layers record, but not the value at its own hook point; a warning says so.

    Args:
        model: the stage's hooked model.
        writer: the store, from `create_store`.
        stage: name of the stage.
        order: its place in training order; by default after the last stage of the store, or as the store has it.
        forward: as in `create_store`; only the dry run of your own HookedRootModule needs it.
        allow_same_weights: accept weights that another stage has too.

    Raises:
        InputError: more than two blocks of rows are open at once, a row is announced twice or never, the model runs
            other ids than those of the table, or the model does not fit the store.
        MismatchError: the stage was recorded with other weights, or with other hooks on the model.

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
        self._recording: StageRecording | None = None

    def __enter__(self) -> Self:
        hooked_model = self.store.hooked_model(self.adapter, self.stage)
        hooks = user_hooks(self.adapter)
        writer = self.store.writer.stage(
            self.stage,
            order=self._resolve_order(),
            fingerprint=weights_fingerprint(self.adapter),
            provenance={"user_hooks": hooks} if hooks else None,
            allow_same_weights=self._allow_same_weights,
        )
        recording = StageRecording(self.store, self.stage, hooked_model, writer)
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

        After a pass that raised an exception, the same rows can be announced again, in any batches.

        Args:
            rows: table row of every sequence of the batch, int array of shape (batch,).
            positions: {name: token index of every sequence, int array of shape (batch,)}, counted in the sequences
                that the model receives, padding included; -1 = missing. None takes the positions of the table: the
                recorder finds the prompts in the token ids, after padding on the left that the attention mask marks,
                and refuses other ids.
            tokens: token ids, tensor of shape (batch, position). The recorder needs them where it does not see them,
                because the model is not called as `model(tokens, attention_mask=mask)`.
            attention_mask: 1 on tokens, 0 on padding; None means no padding.

        Raises:
            InputError: rows or positions are invalid, recorded already, or in too many blocks; the token ids are not
                those of the table; or the recorder is not inside its `with`.
        """
        self._open().announce(rows, positions, None if tokens is None else (tokens, attention_mask))

    def discard_batch(self) -> None:
        """Give up the announced batch, whose rows can then be announced again.

        A forward pass that raises an exception does so by itself.
        """
        self._open().discard_batch()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the forward passes inside out, such as those of an evaluation."""
        recording = self._open()
        recording.pauses += 1
        try:
            yield
        finally:
            recording.pauses -= 1

    def _open(self) -> StageRecording:
        if self._recording is None or self._recording.ended:
            raise InputError("this recorder is not recording. Call rec.batch(...) inside `with Recorder(...) as rec:`.")
        return self._recording

    def pending_rows(self) -> NDArray[np.int64]:
        """List the table rows of this stage that are not recorded yet."""
        return np.empty(0, dtype=np.int64) if self._recording is None else self._recording.pending_rows()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._recording is not None:
            self._recording.end(kind, error, trace)
