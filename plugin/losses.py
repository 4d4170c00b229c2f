"""Losses of the tokens of a prompt: negative log-probabilities, running means, answers.

What lives here: losses from logits and token ids. What does not: statistics of
the whole next-token distribution (`statistics.py`).

All losses are in nats, float32, and aligned with the token they are about: the
loss at position p is -log P(token p | tokens before p), read off the logits at
p - 1, and NaN at p = 0, about which the model says nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits turned into float32 at once, in values: bounds the memory of a call.
_TILE_CPU = 1 << 18
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


def token_losses(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Loss of every token, and its running mean.

        loss[p] = -log P(token p | tokens before p)         p >= 1
        running_loss[p] = mean of loss[1], ..., loss[p]     p >= 1

    Args:
        logits: shape (n, tokens, vocabulary), at every position of the
            sequence; those at the last position are not needed and may be left
            out (n, tokens - 1, vocabulary).
        ids: token ids, shape (n, tokens).
        mask: 1 on tokens and 0 on right padding, shape (n, tokens).

    Returns:
        `loss` and `running_loss`, float32 of shape (n, tokens); NaN at position
        0 and on padding.
    """
    count = ids.shape[1]
    loss = torch.full(ids.shape, torch.nan, dtype=torch.float32, device=logits.device)
    if count > 1:
        loss[:, 1:] = negative_log_likelihood(logits[:, : count - 1], ids[:, 1:])
    if mask is not None:
        loss = loss.masked_fill(mask == 0, torch.nan)
    return {"loss": loss, "running_loss": running_mean(loss)}


def running_mean(loss: Tensor) -> Tensor:
    """Mean of the losses at positions 1 .. p, for every p; NaN at 0 and where `loss` is NaN.

    Args:
        loss: shape (n, tokens), NaN at position 0 and on right padding.

    Returns:
        float32 of shape (n, tokens).
    """
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    total = torch.nan_to_num(loss.to(wide), nan=0.0, posinf=torch.inf).cumsum(dim=-1)
    count = torch.arange(loss.shape[-1], device=loss.device).clamp(min=1)
    return (total / count).float().masked_fill(loss.isnan(), torch.nan)


def answer_loss(loss: Tensor, lengths: Tensor | Any, answer_lengths: Tensor | Any) -> Tensor:
    """Mean loss of the answer's tokens, which stand right behind the prompt.

    Args:
        loss: per token, shape (n, tokens), of prompts with their answers.
        lengths: tokens of each prompt, shape (n,).
        answer_lengths: tokens of each answer, shape (n,).

    Returns:
        float32 of shape (n,); NaN where a row has no answer.
    """
    start = torch.as_tensor(lengths, device=loss.device).unsqueeze(-1)
    count = torch.as_tensor(answer_lengths, device=loss.device)
    place = torch.arange(loss.shape[-1], device=loss.device)
    inside = (place >= start) & (place < start + count.unsqueeze(-1))
    total = torch.where(inside, loss, 0.0).sum(dim=-1)
    return torch.where(count > 0, total / count, torch.nan)


def at_positions(values: Tensor, index: Tensor | Any) -> Tensor:
    """Values at chosen positions of each row, NaN where the index is -1.

    Args:
        values: shape (n, tokens), floating.
        index: token index, shape (n, positions), -1 = missing.

    Returns:
        Shape (n, positions).
    """
    where = torch.as_tensor(index, device=values.device)
    return values.gather(1, where.clamp(min=0)).masked_fill(where < 0, torch.nan)
