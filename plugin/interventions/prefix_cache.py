"""Keys and values of the tokens before an intervention, from a clean pass, for passes over the tokens after them.

A causal model computes the same for these tokens whatever is changed after them. The caches are fixed: a forward pass
reads them and adds nothing. One row of the cache serves several copies of its row in the batch, each with another
intervention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from stratalens.plugin.models.adapters import Adapter, BridgeAdapter


def _append(prefix: Tensor, new: Tensor, dim: int) -> Tensor:
    """Join the new tokens of several copies of the rows to the prefix of each row, in one copy."""
    rows = prefix.shape[0]
    copies = new.shape[0] // rows
    wide = prefix.expand(copies, *prefix.shape)
    return torch.cat([wide, new.reshape(copies, rows, *new.shape[1:])], dim=dim).flatten(0, 1)


class _FixedLayer(DynamicLayer):
    """One block of a cache of Transformers that stays as it is."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._prefix = keys, values
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the prefix and of the new tokens."""
        return _append(self._prefix[0], key_states, -2), _append(self._prefix[1], value_states, -2)


class _FixedEntry:
    """One block of a cache of HookedTransformer that stays as it is; it remembers the tokens it saw last."""

    def __init__(self, keys: Tensor, values: Tensor, copies: int) -> None:
        self._keys, self._values = keys, values
        self.seen: tuple[Tensor | None, Tensor | None] = (None, None)
        rows, *rest = keys.shape
        self.past_keys = keys.new_empty(()).expand(rows * copies, *rest)  # HookedTransformer reads its shape

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the prefix and of the new tokens."""
        self.seen = new_keys, new_values
        return _append(self._keys, new_keys, -3), _append(self._values, new_values, -3)


class _FixedEntries:
    """A cache of HookedTransformer that stays as it is."""

    def __init__(self, entries: list[_FixedEntry], mask: Tensor) -> None:
        self.entries, self.mask = entries, mask

    def __getitem__(self, block: int) -> _FixedEntry:
        return self.entries[block]

    def append_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """Return the mask of the prefix and of the new tokens."""
        return torch.cat([self.mask, attention_mask.to(self.mask.device)], dim=-1)


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """Keys and values of the first tokens of every row.

    Attributes:
        adapter: the model.
        blocks: keys and values of every block, in the shapes of this kind of model.
        mask: int64 tensor of shape (rows, length), 1 on the tokens that come before the first changed one.
    """

    adapter: Adapter
    blocks: list[tuple[Tensor, Tensor]]
    mask: Tensor

    def run(self, ids: Tensor, mask: Tensor, output: Any) -> Any:
        """Run the tokens after the prefix.

        Args:
            ids: int64 tensor of shape (copies * rows, position).
            mask: int64 tensor of the same shape, 1 on tokens.
            output: as for `Adapter.run`.
        """
        copies = len(ids) // len(self.mask)
        prefix = self.mask.repeat(copies, 1)
        if isinstance(self.adapter, BridgeAdapter):
            cache = DynamicCache()
            cache.layers = [_FixedLayer(keys, values) for keys, values in self.blocks]
            return self.adapter.run(ids, torch.cat([prefix, mask], dim=1), output, cache=cache)
        entries = [_FixedEntry(keys, values, copies) for keys, values in self.blocks]
        return self.adapter.run(ids, mask, output, cache=_FixedEntries(entries, prefix))


class PrefixRecorder:
    """Records keys and values in a clean pass.

    Args:
        adapter: a model that can take a cache.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._cache: Any = None

    def run(self, ids: Tensor, mask: Tensor, output: Any) -> Any:
        """Run whole sequences, as `Adapter.run`, and keep their keys and values."""
        if isinstance(self._adapter, BridgeAdapter):
            self._cache = DynamicCache()
        else:
            cfg = self._adapter.cfg
            heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
            empty = torch.empty(len(ids), 0, heads, cfg.d_head, dtype=self._adapter.dtype, device=ids.device)
            entries = [_FixedEntry(empty, empty, 1) for _ in range(cfg.n_layers)]
            self._cache = _FixedEntries(entries, mask[:, :0])
        return self._adapter.run(ids, mask, output, cache=self._cache)

    def prefix(self, columns: Tensor, mask: Tensor) -> PrefixCache:
        """Select keys and values of the last pass.

        Args:
            columns: position of each token of the prefix, int64 tensor of shape (rows, length).
            mask: int64 tensor of the same shape, 1 on the tokens that count.

        Raises:
            ValueError: a block keeps something else than the keys and values of every token.
        """
        blocks: list[tuple[Tensor, Tensor]] = []
        if isinstance(self._adapter, BridgeAdapter):
            pairs, dim, at = [(layer.keys, layer.values) for layer in self._cache.layers], 2, columns[:, None, :, None]
        else:
            pairs, dim, at = [entry.seen for entry in self._cache.entries], 1, columns[:, :, None, None]
        for keys, values in pairs:
            if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
                raise ValueError("a block without keys and values")
            blocks.append((keys.take_along_dim(at, dim), values.take_along_dim(at, dim)))
        self._cache = None
        if len(blocks) != self._adapter.n_layers:
            raise ValueError("a block without keys and values")
        return PrefixCache(self._adapter, blocks, mask)
