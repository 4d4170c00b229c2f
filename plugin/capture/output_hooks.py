"""Losses and output statistics, from logits at the few positions that need them.

A hook keeps the output of the final norm. Only the rows that a statistic needs go through the output layer. A dry run
shows whether the output layer can run separately in this architecture; if not, the model's full logits are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.statistics import negative_log_likelihood, output_layer_loss, output_statistics
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.store.errors import InputError

_LOSSES = ("loss", "running_loss", "answer_loss", "entity_loss")
_CHUNK = 1 << 24  # logits in memory at a time (64 MiB in float32)
# Largest difference from the model's own logits, in units of their standard deviation.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Sequences:
    """The tokens of one batch, and the positions that output statistics refer to.

    Attributes:
        ids: token ids, int64 array of shape (sequences, positions).
        start: first token of every row, int64 array of shape (rows,); 0 unless padded on the left.
        index: token index of the recorded positions, int64 array of shape (rows, tokens); -1 = missing.
        prompt_end: index after the last token of the prompt, int64 array of shape (rows,).
        answer_end: index after the last token of the answer, int64 array of shape (rows,); `prompt_end` where a row
            has no answer.
        entity: token index of the first token of the entity and after its last one, int64 array of shape (rows, 2);
            both 0 where a row has no entity. None if `entity_loss` is not computed.
        lines: sequence of every row, int64 array of shape (rows,); None where each row is its own sequence.
    """

    ids: NDArray[np.int64]
    start: NDArray[np.int64]
    index: NDArray[np.int64]
    prompt_end: NDArray[np.int64]
    answer_end: NDArray[np.int64]
    entity: NDArray[np.int64] | None = None
    lines: NDArray[np.int64] | None = None

    def by_row(self) -> Sequences:
        """Return the same with the token ids of every row, where rows share a sequence."""
        return self if self.lines is None else replace(self, ids=self.ids[self.lines])

    def source(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places among all tokens of the sequences of places among all tokens of the rows."""
        if self.lines is None:
            return places
        line, position = np.divmod(places, self.ids.shape[1])
        sources: NDArray[np.int64] = self.lines[line] * self.ids.shape[1] + position
        return sources

    def entity_targets(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens of the entity that have a token before them, [first, stop) in each row."""
        if self.entity is None:
            return np.zeros_like(self.start), np.zeros_like(self.start)
        return np.maximum(self.entity[:, 0], self.start + 1), self.entity[:, 1]


class OutputHooks:
    """Output statistics of one model.

    Attributes:
        names: statistics to compute.
        split: whether the output layer runs on the needed rows only.
    """

    def __init__(self, adapter: Adapter, names: tuple[str, ...]) -> None:
        self.adapter = adapter
        self.names = names
        self.split = bool(names) and head_is_separable(adapter)
        self._hidden: Tensor | None = None
        self._handle: Any = None
        self.listens: Callable[[], bool] | None = None  # decides whether the hook keeps what it sees

    def attach(self) -> None:
        """Put a hook on the final norm where the output layer can run separately."""
        if self.split and self.adapter.final_norm is not None:
            self._handle = self.adapter.final_norm.register_forward_hook(self._keep_hidden)

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._hidden = None

    def abandon(self) -> None:
        """Drop what a forward pass that failed has left."""
        self._hidden = None

    def _keep_hidden(self, module: Any, inputs: Any, output: Any) -> None:
        if self.listens is not None and not self.listens():
            return
        self._hidden = output[0] if isinstance(output, tuple) else output

    @property
    def ready(self) -> bool:
        """Whether the final norm has run since the last batch."""
        return self._hidden is not None

    def statistics(self, batch: Sequences, logits: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the statistics of the batch that has just run.

        Args:
            batch: token ids and positions.
            logits: the model's own logits, tensor of shape (rows, positions, vocabulary); needed where not `split`.

        Returns:
            float32 tensors of shape (rows, tokens) by name; logit_percentile of shape (rows, tokens, percentiles),
            answer_loss and entity_loss of shape (rows,).

        Raises:
            InputError: the forward pass did not reach the final norm, or there are no logits.
        """
        if not self.names:
            return {}
        source = self._hidden if self.split else logits
        if source is None:
            raise InputError(
                "output statistics need the model's output, which this forward pass did not reach. Run the whole model."
            )
        flat = source.detach().reshape(-1, source.shape[-1])
        self._hidden = None
        batch = batch.by_row()
        recorded = np.zeros(batch.ids.shape, dtype=bool)
        row, column = np.nonzero(batch.index >= 0)
        recorded[row, batch.index[row, column]] = True
        distributions = recorded if set(self.names) - set(_LOSSES) else np.zeros_like(recorded)
        predicts = self._predicts(batch, recorded)
        losses = torch.full(batch.ids.shape, torch.nan, device=flat.device).reshape(-1)
        following = np.zeros_like(batch.ids)
        following[:, :-1] = batch.ids[:, 1:]
        needed = distributions | predicts
        layer = self.adapter.output_layer() if self.split else None
        if layer is not None:  # where only the loss is asked for, no row of logits is needed as a whole
            places = np.flatnonzero(predicts & ~distributions)
            at, source, token = (
                torch.from_numpy(x).to(flat.device)
                for x in (places, batch.source(places), following.reshape(-1)[places])
            )
            losses[at + 1] = output_layer_loss(flat[source], *layer, token, self.adapter.scale_logits)
            needed = distributions
        chunks: dict[str, list[Tensor]] = {}
        places = np.flatnonzero(needed)
        parts = -(-len(places) * self._vocabulary() // _CHUNK)
        for chunk in np.array_split(places, parts) if parts else ():
            rows = torch.from_numpy(chunk).to(flat.device)
            states = flat[torch.from_numpy(batch.source(chunk)).to(flat.device)]
            scores = (self.adapter.head(states) if self.split else states).float()  # type: ignore[union-attr]
            targets = np.flatnonzero(predicts.reshape(-1)[chunk])
            if len(targets):
                at = torch.from_numpy(targets).to(flat.device)
                token = torch.from_numpy(following.reshape(-1)[chunk[targets]]).to(flat.device)
                # Position p + 1 holds the loss of the token that position p predicts.
                losses[rows[at] + 1] = negative_log_likelihood(_take(scores, at), token)
            described = np.flatnonzero(distributions.reshape(-1)[chunk])
            if len(described):
                at = torch.from_numpy(described).to(flat.device)
                for name, value in output_statistics(_take(scores, at)).items():
                    if name in self.names:
                        chunks.setdefault(name, []).append(value)
        return self._arrange(batch, chunks, distributions, losses.reshape(batch.ids.shape))

    def _vocabulary(self) -> int:
        return self.adapter.size("d_vocab") or 50_000

    def _predicts(self, batch: Sequences, recorded: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mark the positions whose logits predict a token that some loss needs."""
        positions = np.arange(batch.ids.shape[1])
        needed = np.zeros_like(recorded)
        if "loss" in self.names:
            needed[:, :-1] |= recorded[:, 1:]
        if "running_loss" in self.names:
            needed |= positions < batch.index.max(axis=1)[:, None]
        if "entity_loss" in self.names:
            first, stop = batch.entity_targets()
            needed |= (positions + 1 >= first[:, None]) & (positions + 1 < stop[:, None])
        needed &= positions >= batch.start[:, None]
        if "answer_loss" in self.names:
            target = positions + 1
            needed |= (target >= batch.prompt_end[:, None]) & (target < batch.answer_end[:, None])
        return needed

    def _arrange(
        self, batch: Sequences, chunks: dict[str, list[Tensor]], distributions: NDArray[np.bool_], losses: Tensor
    ) -> dict[str, Tensor]:
        """Bring values in the order of positions into the shape of the recorded positions."""
        device = losses.device
        index = torch.from_numpy(np.maximum(batch.index, 0)).to(device)
        missing = torch.from_numpy(batch.index < 0).to(device)
        values: dict[str, Tensor] = {}
        if chunks:
            order = np.cumsum(distributions.reshape(-1)) - 1  # position -> its row in the chunks
            place = torch.from_numpy(order.reshape(distributions.shape)).to(device).gather(1, index)
            for name, tensors in chunks.items():
                value = torch.cat(tensors)[place]
                values[name] = value.masked_fill_(missing.view(*missing.shape, *(1,) * (value.ndim - 2)), torch.nan)
        if "loss" in self.names:
            values["loss"] = losses.gather(1, index).masked_fill_(missing, torch.nan)
        if "running_loss" in self.names:
            start = torch.from_numpy(batch.start).to(device)[:, None]
            steps = index - start
            wide = torch.float32 if device.type == "mps" else torch.float64  # sums of long prompts keep their digits
            total = torch.nan_to_num(losses).to(wide).cumsum(1).gather(1, index)
            mean = (total / steps).float()
            values["running_loss"] = mean.masked_fill_(missing | (steps < 1), torch.nan)
        if "answer_loss" in self.names:
            at = torch.arange(losses.shape[1], device=device)
            first = torch.from_numpy(batch.prompt_end).to(device)[:, None]
            last = torch.from_numpy(batch.answer_end).to(device)[:, None]
            inside = (at >= first) & (at < last)
            values["answer_loss"] = losses.masked_fill(~inside, 0).sum(1) / inside.sum(1)  # NaN without an answer
        if "entity_loss" in self.names:
            first_token, stop = (torch.from_numpy(edge).to(device)[:, None] for edge in batch.entity_targets())
            at = torch.arange(losses.shape[1], device=device)
            inside = (at >= first_token) & (at < stop)
            # In float64, so that the length of the padding does not change the rounding of the sum.
            wide = torch.float32 if device.type == "mps" else torch.float64
            total = losses.to(wide).masked_fill(~inside, 0).sum(1)
            values["entity_loss"] = (total / inside.sum(1)).float()  # NaN where no token of the entity has a loss
        return values


def _take(rows: Tensor, at: Tensor) -> Tensor:
    """Rows at these places, without a copy where they are all rows."""
    return rows if len(at) == len(rows) else rows[at]


def head_is_separable(adapter: Adapter) -> bool:
    """Compare the final norm followed by `adapter.head` with the model's own logits of the dry run."""
    if adapter.dry_run_result is None or adapter.dry_run_result[1] is None:
        return False
    logits, hidden = adapter.dry_run_result
    if hidden is None or hidden.shape[:2] != logits.shape[:2]:
        return False
    with evaluation_mode(adapter.model):
        try:
            separate = adapter.head(hidden.reshape(-1, hidden.shape[-1]))
        except RuntimeError:  # a layer between norm and head changes the width
            return False
    if separate is None or separate.shape != logits.reshape(-1, logits.shape[-1]).shape:
        return False
    expected = logits.reshape(separate.shape).float()
    error = (separate.float() - expected).abs().max()
    return bool(error <= _TOLERANCE.get(logits.dtype, 1e-4) * expected.std().clamp_min(1e-3))
