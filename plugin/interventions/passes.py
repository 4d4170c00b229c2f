"""Edited forward passes over one batch, which reuse what a clean pass has computed.

all         every pass runs whole sequences through all blocks
blocks      the blocks below the intervention return what they returned in the clean pass
positions   also the tokens before the first edited one are left out; their keys and values are those of the clean
            pass. Several interventions run in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.interventions.block_outputs import BlockOutputs
from stratalens.plugin.interventions.edit_hooks import Intervention
from stratalens.plugin.interventions.edited_positions import EditedPositions
from stratalens.plugin.interventions.edits import Edit, Stacked
from stratalens.plugin.interventions.output_readers import Reader
from stratalens.plugin.interventions.prefix_cache import PrefixCache, PrefixRecorder
from stratalens.plugin.models.adapters import Adapter
from stratalens.store.errors import InputError

Ids = NDArray[np.int64]
Way = Literal["all", "blocks", "positions"]
#: All ways, the slowest first.
WAYS: tuple[Way, ...] = ("all", "blocks", "positions")
#: Largest difference between a pass with cached tokens and a whole one, in units of the outcome or of its size.
TOLERANCE = 1e-4
_TOKENS_CPU = 1024  # tokens in a pass of several interventions; more are no faster
_TOKENS_CUDA = 16384
_FEW_TOKENS = 2  # a mean prefix that is shorter saves nothing


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences that run together.

    Attributes:
        sequences: their numbers, int64 array of shape (n,).
        ids: int64 tensor of shape (n, position), padded on the right.
        mask: int64 tensor of the same shape, 1 on tokens.
        index: index of the edited positions, int64 array of shape (n, positions), -1 = missing; None for all.
    """

    sequences: Ids
    ids: Tensor
    mask: Tensor
    index: Ids | None


@dataclass(frozen=True, eq=False)
class NamedEdit:
    """An edit of one layer, with what it does in words, for messages."""

    edit: Edit
    what: str


@dataclass(frozen=True, eq=False)
class _Suffix:
    """The tokens of a batch from the first edited or read one on.

    Attributes:
        start: position of the first one of each sequence, int64 array of shape (n,).
        columns: position of each token, int64 array of shape (n, length), inside the batch.
        mask: int64 tensor of shape (n, length), 1 on tokens that are needed.
        before: position of each token of the prefix, int64 tensor of shape (n, prefix), which ends before the start.
        prefix: int64 tensor of the same shape, 1 on tokens.
    """

    start: Ids
    columns: Ids
    mask: Tensor
    before: Tensor
    prefix: Tensor


class Passes:
    """Clean and edited forward passes of one model.

    Args:
        adapter: the model.
        reader: what judges a pass; its hooks are on the model.
        hooks: edited hook point of each layer.
        positions: names of the edited positions.
        width: features of the edited activations.
    """

    def __init__(
        self,
        adapter: Adapter,
        reader: Reader,
        hooks: dict[int | None, str],
        positions: tuple[str, ...],
        width: int,
    ) -> None:
        self._adapter, self._reader, self._hooks = adapter, reader, hooks
        self._positions, self._width = positions, width
        self._below = BlockOutputs(adapter, hooks)
        self._suffix: _Suffix | None = None
        self._prefix: PrefixCache | None = None
        self.way: Way = "all"
        self.difference = 0.0

    @cached_property
    def ways(self) -> tuple[Way, ...]:
        """Ways that this model and this outcome may allow, the fastest first."""
        ways: list[Way] = ["all"]
        if self._reader.one_pass and any(self._below.can_skip(layer) for layer in self._hooks):
            ways.insert(0, "blocks")
        exact = self._adapter.dtype in (torch.float32, torch.float64)
        if self._reader.one_pass and exact and self._adapter.can_cache and self._positions != ("all",):
            ways.insert(0, "positions")
        return tuple(ways)

    def choose(self, batch: Batch, edits: dict[int | None, list[NamedEdit]], fastest: Way) -> None:
        """Take the fastest way whose scores agree with those of whole passes.

        Args:
            batch: a few sequences, the shortest and the longest ones.
            edits: some edits of each layer.
            fastest: do not try faster ways than this one.

        Raises:
            InputError: an edit makes an activation NaN or infinite.
        """
        candidates = [way for way in self.ways if self.ways.index(way) >= _rank(self.ways, fastest)]
        layers = list(edits)
        self.way = "all"
        if candidates == ["all"] or not layers:
            return
        self.start(batch, layers)
        whole = {layer: self.scores(batch, layer, edits[layer]) for layer in layers}
        for way in candidates:
            self.way, self.difference = way, 0.0
            if way == "all" or self._agrees(batch, edits, whole):
                return

    def _agrees(
        self, batch: Batch, edits: dict[int | None, list[NamedEdit]], whole: dict[int | None, NDArray[np.float64]]
    ) -> bool:
        """Whether the present way gives the scores of whole passes."""
        try:
            self.start(batch, list(edits))
            if self.way == "positions" and self._prefix is None:
                return False
            if self.way == "blocks" and not any(self._below.ready(layer) for layer in edits):
                return False
            for layer, expected in whole.items():
                scores = self.scores(batch, layer, edits[layer])
                if self.way == "blocks":
                    if not np.array_equal(scores, expected):
                        return False
                    continue
                difference = np.abs(scores - expected)
                if not (difference <= TOLERANCE * np.maximum(np.abs(expected), 1)).all():
                    return False
                self.difference = max(self.difference, float(difference.max()))
        except Exception:  # whatever a model says that takes no cache of this form
            return False
        return True

    def start(self, batch: Batch, layers: Sequence[int | None]) -> None:
        """Run the clean pass of a batch, and keep what interventions at these layers reuse."""
        self._suffix = self._prefix = None
        self._below.clear()
        if self.way == "all":
            return
        device = self._adapter.device
        if self.way == "positions":
            self._suffix = self._suffix_of(batch)
        if self._suffix is None:
            with self._below.recorded(layers):
                self._adapter.run(batch.ids.to(device), batch.mask.to(device), self._reader.output)
            return
        recorder = PrefixRecorder(self._adapter)
        rows = torch.arange(len(batch.ids), device=device)[:, None]
        columns = torch.from_numpy(self._suffix.columns).to(device)
        with self._below.recorded(layers, keep=lambda value: value[rows, columns]):
            recorder.run(batch.ids.to(device), batch.mask.to(device), self._reader.output)
        self._prefix = recorder.prefix(self._suffix.before.to(device), self._suffix.prefix.to(device))

    def _suffix_of(self, batch: Batch) -> _Suffix | None:
        """The tokens that edits change, and those after them; None where hardly any come before."""
        span = self._reader.span(batch.sequences)
        if span is None or batch.index is None:
            return None
        first, stop = span
        missing = batch.ids.shape[1]
        start = np.minimum(np.where(batch.index >= 0, batch.index, missing).min(axis=1), first)
        if start.mean() < _FEW_TOKENS:
            return None
        wanted = start[:, None] + np.arange(int((stop - start).max()))
        needed = wanted < stop[:, None]
        # Padded on the left, for models that count the tokens between two others. At least one token of each prefix is
        # padding, so that every batch runs what the first one has checked.
        length = int(start.max()) + 1
        before = np.arange(length) - length + start[:, None]
        return _Suffix(
            start,
            np.minimum(wanted, batch.ids.shape[1] - 1),
            torch.from_numpy(needed.astype(np.int64)),
            torch.from_numpy(before.clip(0)),
            torch.from_numpy((before >= 0).astype(np.int64)),
        )

    def scores(self, batch: Batch, layer: int | None, edits: Sequence[NamedEdit]) -> NDArray[np.float64]:
        """Judge edits of one layer, after `start`.

        Returns:
            float64 array of shape (edits, n).

        Raises:
            InputError: an edit makes an activation NaN or infinite.
        """
        if self._prefix is not None:
            return np.concatenate([self._suffix_scores(batch, layer, group) for group in self._groups(edits)])
        return np.stack([self._whole_scores(batch, layer, edit) for edit in edits])

    def _whole_scores(self, batch: Batch, layer: int | None, edit: NamedEdit) -> NDArray[np.float64]:
        with self._edited(layer, edit, batch.index):
            if self.way == "all" or not self._below.ready(layer):
                return self._reader.measure(self._run, batch.sequences, batch.ids, batch.mask)
            with self._below.replayed(layer):
                return self._reader.measure(self._run, batch.sequences, batch.ids, batch.mask)

    def _suffix_scores(self, batch: Batch, layer: int | None, edits: Sequence[NamedEdit]) -> NDArray[np.float64]:
        suffix, prefix, copies = self._suffix, self._prefix, len(edits)
        assert suffix is not None
        assert prefix is not None
        assert batch.index is not None
        device = self._adapter.device
        rows = torch.arange(len(batch.ids))[:, None]
        ids = batch.ids[rows, torch.from_numpy(suffix.columns)].repeat(copies, 1).to(device)
        mask = suffix.mask.repeat(copies, 1).to(device)
        index = np.where(batch.index >= 0, batch.index - suffix.start[:, None], -1)
        edit = edits[0] if copies == 1 else NamedEdit(Stacked([e.edit for e in edits], len(batch.ids)), "a dose")
        try:
            with self._edited(layer, edit, np.tile(index, (copies, 1))):
                if self._below.ready(layer):
                    with self._below.replayed(layer, copies):
                        result = prefix.run(ids, mask, self._reader.output)
                else:
                    result = prefix.run(ids, mask, self._reader.output)
                scores = self._reader.score(
                    result, np.tile(batch.sequences, copies), batch.ids.repeat(copies, 1), np.tile(suffix.start, copies)
                )
        except InputError:
            if copies == 1:
                raise
            return np.concatenate([self._suffix_scores(batch, layer, [single]) for single in edits])  # names the dose
        return scores.reshape(copies, len(batch.ids))

    def _groups(self, edits: Sequence[NamedEdit]) -> Iterator[Sequence[NamedEdit]]:
        """Edits that run in one pass."""
        assert self._suffix is not None
        tokens = _TOKENS_CUDA if self._adapter.device.type == "cuda" else _TOKENS_CPU
        size = max(1, tokens // self._suffix.columns.size)
        for first in range(0, len(edits), size):
            yield edits[first : first + size]

    def _run(self, ids: Tensor, mask: Tensor) -> object:
        device = self._adapter.device
        return self._adapter.run(ids.to(device), mask.to(device), self._reader.output)

    def clean_scores(self, batch: Batch) -> NDArray[np.float64]:
        """Judge a batch without an intervention, float64 array of shape (n,)."""
        return self._reader.measure(self._run, batch.sequences, batch.ids, batch.mask)

    def _edited(self, layer: int | None, edit: NamedEdit, index: Ids | None) -> Intervention:
        positions = EditedPositions(self._positions)
        positions.set_index(index)
        return Intervention(self._adapter, {self._hooks[layer]: edit.edit}, positions, self._width, edit.what)

    def clear(self) -> None:
        """Drop what is kept of the last batch."""
        self._below.clear()
        self._suffix = self._prefix = None


def _rank(ways: tuple[Way, ...], fastest: Way) -> int:
    """Number of ways that are faster than the fastest allowed one."""
    return next(i for i, way in enumerate(ways) if WAYS.index(way) <= WAYS.index(fastest))
