"""Negative log-probabilities of given tokens, in nats and float32.

What lives here: losses from logits and token ids. What does not: which
positions they belong to (`outputs.py`), and statistics of the whole next-token
distribution (`statistics.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Logits turned into float32 at once, in values: bounds the memory of a call.
_TILE_CPU = 1 << 22
_TILE_DEVICE = 1 << 25


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], from logits in any floating dtype.

    Args:
        logits: shape (..., vocabulary).
        targets: token ids, shape (...).

    Returns:
        float32 of shape (...), in nats.

    >>> round(negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])).item(), 4)
    1.3863
    """
    shape = targets.shape
    rows = logits.detach().reshape(-1, logits.shape[-1])
    wanted = targets.reshape(-1, 1)
    size = max((_TILE_CPU if rows.device.type == "cpu" else _TILE_DEVICE) // max(rows.shape[-1], 1), 1)
    parts = []
    for tile, target in zip(torch.split(rows, size), torch.split(wanted, size), strict=True):
        z = tile.float()
        # differences from the maximum, so that a near-certain token keeps its digits
        high = z.amax(dim=-1, keepdim=True)
        z = z - high
        chosen = z.gather(-1, target).squeeze(-1)
        parts.append(z.exp_().sum(dim=-1).log_().sub_(chosen))
    return torch.cat(parts).reshape(shape) if parts else logits.new_empty(shape, dtype=torch.float32)
