"""Statistics of the model's output, from logits at the few positions that need them.

The hidden state behind the final norm is caught, its needed rows go through the
output layer, and the other positions never see the vocabulary. That an
architecture can be taken apart so is tried once per model against its own
logits; where it cannot, the full logits are used. The formulas are in
statistics.py and losses.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.statistics import negative_log_likelihood, output_statistics
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.hooks import evaluation_mode

_LOSSES = ("loss", "running_loss", "answer_loss")


_CHUNK = 1 << 24  # logits held at a time (64 MiB in float32)


# Largest difference from the model's own logits, in units of their standard deviation.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Sequences:
    """What the output statistics have to know about one batch.

    Attributes:
        ids: token ids, (rows, positions) int64.
        start: first token of every row (0 unless padded on the left), (rows,).
        index: token index of the recorded positions, (rows, token), -1 = missing.
        prompt_end: index behind the prompt's last token, (rows,).
        answer_end: index behind the answer's last token; equal to prompt_end where there is none.
    """

    ids: NDArray[np.int64]
    start: NDArray[np.int64]
    index: NDArray[np.int64]
    prompt_end: NDArray[np.int64]
    answer_end: NDArray[np.int64]


class OutputHooks:
    """Output statistics of one model.

    Attributes:
        names: statistics to compute.
        split: whether the head is run on the needed rows only.
    """

    def __init__(self, adapter: Adapter, names: tuple[str, ...]) -> None:
        self.adapter = adapter
        self.names = names
        self.split = bool(names) and head_is_separable(adapter)
        self._hidden: Tensor | None = None
        self._handle: Any = None

    def attach(self) -> None:
        """Watch the final norm, where the head can be run apart."""
        if self.names and self.split and self.adapter.final_norm is not None:
            self._handle = self.adapter.final_norm.register_forward_hook(self._look)

    def detach(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._hidden = None

    def _look(self, module: Any, inputs: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output

    @property
    def ready(self) -> bool:
        """Whether the final norm has run since the last batch."""
        return self._hidden is not None

    def statistics(self, batch: Sequences, logits: Tensor | None = None) -> dict[str, Tensor]:
        """The named statistics as float32 (rows, token[, percentile]); answer_loss is (rows,).

        Args:
            batch: token ids and positions.
            logits: the model's own logits (rows, positions, vocab), needed where not `split`.
        """
        if not self.names:
            return {}
        source = self._hidden if self.split else logits
        assert source is not None
        flat = source.detach().reshape(-1, source.shape[-1])
        self._hidden = None
        positions = np.arange(batch.ids.shape[1])
        recorded = np.zeros(batch.ids.shape, dtype=bool)
        row, column = np.nonzero(batch.index >= 0)
        recorded[row, batch.index[row, column]] = True
        distributions = recorded if set(self.names) - set(_LOSSES) else np.zeros_like(recorded)
        predicts = self._predicts(batch, recorded, positions)
        needed = np.flatnonzero(distributions | predicts)
        losses = torch.full(batch.ids.shape, torch.nan, device=flat.device).reshape(-1)
        following = np.zeros_like(batch.ids)
        following[:, :-1] = batch.ids[:, 1:]
        found: dict[str, list[Tensor]] = {}
        for part in np.array_split(needed, max(1, -(-len(needed) * self._vocabulary() // _CHUNK))):
            rows = torch.from_numpy(part).to(flat.device)
            scores = (self.adapter.head(flat[rows]) if self.split else flat[rows]).float()  # type: ignore[union-attr]
            targets = np.flatnonzero(predicts.reshape(-1)[part])
            if len(targets):
                at = torch.from_numpy(targets).to(flat.device)
                token = torch.from_numpy(following.reshape(-1)[part[targets]]).to(flat.device)
                picked = scores if len(targets) == len(part) else scores[at]
                # position p holds the loss of token p, so it is written one further on
                losses[rows[at] + 1] = negative_log_likelihood(picked, token)
            kept = np.flatnonzero(distributions.reshape(-1)[part])
            if len(kept):
                at = torch.from_numpy(kept).to(flat.device)
                for name, value in output_statistics(scores if len(kept) == len(part) else scores[at]).items():
                    if name in self.names:
                        found.setdefault(name, []).append(value)
        return self._arrange(batch, found, distributions, losses.reshape(batch.ids.shape))

    def _vocabulary(self) -> int:
        return self.adapter.size("d_vocab") or 50_000

    def _predicts(self, batch: Sequences, recorded: NDArray[np.bool_], positions: Any) -> NDArray[np.bool_]:
        """Positions whose logits predict a token that some loss asks for."""
        needed = np.zeros_like(recorded)
        if "loss" in self.names:
            needed[:, :-1] |= recorded[:, 1:]
        if "running_loss" in self.names:
            needed |= positions < batch.index.max(axis=1)[:, None]
        needed &= positions >= batch.start[:, None]
        if "answer_loss" in self.names:
            behind = positions + 1
            needed |= (behind >= batch.prompt_end[:, None]) & (behind < batch.answer_end[:, None])
        return needed

    def _arrange(
        self, batch: Sequences, found: dict[str, list[Tensor]], distributions: NDArray[np.bool_], losses: Tensor
    ) -> dict[str, Tensor]:
        device = losses.device
        index = torch.from_numpy(np.maximum(batch.index, 0)).to(device)
        gone = torch.from_numpy(batch.index < 0).to(device)
        values: dict[str, Tensor] = {}
        if found:
            order = np.cumsum(distributions.reshape(-1)) - 1  # where each position's row landed
            place = torch.from_numpy(order.reshape(distributions.shape)).to(device).gather(1, index)
            for name, parts in found.items():
                value = torch.cat(parts)[place]
                values[name] = value.masked_fill_(gone.view(*gone.shape, *(1,) * (value.ndim - 2)), torch.nan)
        if "loss" in self.names:
            values["loss"] = losses.gather(1, index).masked_fill_(gone, torch.nan)
        if "running_loss" in self.names:
            start = torch.from_numpy(batch.start).to(device)[:, None]
            steps = index - start
            wide = torch.float32 if device.type == "mps" else torch.float64  # sums of long prompts keep their digits
            total = torch.nan_to_num(losses).to(wide).cumsum(1).gather(1, index)
            mean = (total / steps).float()
            values["running_loss"] = mean.masked_fill_(gone | (steps < 1), torch.nan)
        if "answer_loss" in self.names:
            at = torch.arange(losses.shape[1], device=device)
            first = torch.from_numpy(batch.prompt_end).to(device)[:, None]
            last = torch.from_numpy(batch.answer_end).to(device)[:, None]
            inside = (at >= first) & (at < last)
            values["answer_loss"] = losses.masked_fill(~inside, 0).sum(1) / inside.sum(1)  # NaN without an answer
        return values


def head_is_separable(adapter: Adapter) -> bool:
    """Whether final norm, then `adapter.head`, gave the model's own logits in the probing pass."""
    if adapter.dry_run_result is None or adapter.dry_run_result[1] is None:
        return False
    full, hidden = adapter.dry_run_result
    if hidden is None or hidden.shape[:2] != full.shape[:2]:
        return False
    with evaluation_mode(adapter.model):
        try:
            apart = adapter.head(hidden.reshape(-1, hidden.shape[-1]))
        except RuntimeError:  # something stands between norm and head that changes the width
            return False
    if apart is None or apart.shape != full.reshape(-1, full.shape[-1]).shape:
        return False
    own = full.reshape(apart.shape).float()
    error = (apart.float() - own).abs().max()
    return bool(error <= _TOLERANCE.get(full.dtype, 1e-4) * own.std().clamp_min(1e-3))
