"""Which positions of a forward pass an edit changes: all, counted from the end, or announced for each batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratalens.store.errors import InputError, join_names

_FROM_THE_END = re.compile(r"-[1-9][0-9]{0,8}")


class EditedPositions:
    """The positions that edits change.

    Args:
        positions: "all"; or one or more of "last", "-1", "-2", ...; or the names of positions that `announce` gives
            for every batch.

    Attributes:
        names: names of the positions; None for all.
    """

    def __init__(self, positions: str | int | Sequence[str | int]) -> None:
        listed = [positions] if isinstance(positions, str | int) else list(positions)
        names = tuple(str(name) for name in listed)
        if not names:
            raise InputError("positions is empty; name at least one, for example positions=('last',), or 'all'")
        if "all" in names and len(names) > 1:
            raise InputError("positions: 'all' means every token and must be the only position")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"positions names {join_names(map(repr, repeated))} more than once; name each once")
        self.names: tuple[str, ...] | None = None if names == ("all",) else names
        self._index: np.ndarray[Any, np.dtype[np.int64]] | None = None
        self._mask: Tensor | None = None
        self._may_be_padded = False

    @property
    def counts_from_the_end(self) -> bool:
        """Whether every position counts from the end of a sequence, so that no batch needs to be announced."""
        return all(name == "last" or _FROM_THE_END.fullmatch(name) for name in self.names or ())

    def announce(self, positions: Mapping[str, Any]) -> None:
        """Say where the named positions are in the next forward passes.

        Args:
            positions: {name: int array of shape (batch,)}, token indices in the sequences that the model runs,
                padding counted; -1 where a row does not have the position.

        Raises:
            InputError: a name is missing or unknown, or the arrays differ in length.
        """
        names = self.names or ()
        if missing := [name for name in names if name not in positions]:
            raise InputError(f"positions of the batch: {join_names(missing)} is missing; give {join_names(names)}")
        columns = [np.asarray(positions[name]).reshape(-1) for name in names]
        if any(column.dtype.kind not in "iu" for column in columns) or len({len(column) for column in columns}) > 1:
            raise InputError("positions of the batch must be int arrays of one length, one index for each row")
        self._index = np.stack(columns, axis=1).astype(np.int64) if columns else None

    def set_index(self, index: np.ndarray[Any, np.dtype[np.int64]] | None) -> None:
        """Take token indices of shape (batch, positions) for the next forward passes; -1 = missing."""
        self._index = index

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], pad_id: int | None) -> None:
        """Note the attention mask of a call of the model or of a block, and whether rows may be padded without one.

        Args:
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            pad_id: token id that the tokenizer pads with, or None.
        """
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._mask, self._may_be_padded = mask, False
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
            self._mask = None
            self._may_be_padded = len(ids) > 1 and pad_id is not None and bool((ids[:, -1] == pad_id).any())

    def select(self, value: Tensor, site: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """Find the activations to change.

        Args:
            value: activation of shape (batch, position, features...).
            site: name of the site, for messages.

        Returns:
            (row, position, number of the named position), int64 tensors of shape (n,); None for all.

        Raises:
            InputError: a position is outside the sequences, or the batch was not announced.
        """
        if self.names is None:
            return None
        index = self._index if self._index is not None else self._from_the_end(value)
        rows, length = value.shape[0], value.shape[1]
        if rows != len(index):
            raise InputError(
                f"site {site!r} has {rows} rows, but the positions of {len(index)} rows were announced; "
                "announce the positions of every batch"
            )
        if (index >= length).any():
            raise InputError(f"position {int(index.max())} is outside the {length} tokens that the model ran")
        row, column = np.nonzero(index >= 0)
        return (
            torch.from_numpy(row).to(value.device),
            torch.from_numpy(index[row, column]).to(value.device),
            torch.from_numpy(column).to(value.device),
        )

    def _from_the_end(self, value: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
        assert self.names is not None
        if not self.counts_from_the_end:
            named = [name for name in self.names if name != "last" and not _FROM_THE_END.fullmatch(name)]
            raise InputError(
                f"where {join_names(map(repr, named))} is in a batch is not known; announce it before every forward "
                "pass: with ... as steering: steering.batch({name: token indices of shape (batch,)})"
            )
        if self._may_be_padded:
            raise InputError(
                "the model ran rows that end in the padding token, without a mask, so their last tokens are not known; "
                "pass token ids with attention_mask="
            )
        rows, length = value.shape[:2]
        back = np.array([1 if name == "last" else -int(name) for name in self.names])
        mask = self._mask
        if mask is None or mask.shape[0] != rows or mask.shape[1] < length:
            index = np.broadcast_to(length - back, (rows, len(back))).copy()
        else:  # a mask of a cached sequence covers the earlier tokens too
            tokens = mask[:, mask.shape[1] - length :].cpu().numpy().astype(bool)
            end = length - np.argmax(tokens[:, ::-1], axis=1)
            start = np.argmax(tokens, axis=1)
            index = end[:, None] - back
            index[index < start[:, None]] = -1
        if length > 1 and (index < 0).any():
            row, column = np.argwhere(index < 0)[0]
            raise InputError(f"row {row} is too short for position {self.names[column]!r}")
        return np.where(index < 0, -1, index)
