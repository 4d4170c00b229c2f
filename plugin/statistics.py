"""Statistics of activations and of output distributions, in float32 where the tensor is.

What lives here: torch functions over the last dim of a tensor. What does not:
losses (`losses.py`, offered here too), when any of this is called (`capture.py`), and what the
results are called in the store (`stratalens.store.schema`).

Moments are those of the population (divided by n). They are corrected two-pass
moments (Chan, Golub, LeVeque, "Algorithms for computing the sample variance",
The American Statistician 37, 1983): deviations from the mean as rounded to
float32, scaled to at most 1 so that their fourth powers neither overflow nor
vanish, then corrected for what the rounding of the mean left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from stratalens.losses import answer_loss, at_positions, negative_log_likelihood, running_mean, token_losses

__all__ = [
    "ACTIVATION_STATISTICS",
    "PERCENTILES",
    "activation_statistics",
    "answer_loss",
    "at_positions",
    "negative_log_likelihood",
    "output_statistics",
    "running_mean",
    "token_losses",
]

ACTIVATION_STATISTICS = ("l2", "l1", "mean", "std", "max", "min", "skewness", "kurtosis")
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 97, 99)

# Values in a tile: on the CPU all intermediate results are made from a tile
# while it is in the cache, elsewhere it bounds their memory (128 MiB each).
_TILE_CPU = 1 << 18
_TILE_DEVICE = 1 << 25


def activation_statistics(x: Tensor, feature_ndim: int = 1) -> dict[str, Tensor]:
    """Per-row statistics of activations over their last dims.

    With x_i the d values of a row, mu their mean and m_k the mean of
    (x_i - mu)^k:

        l2 = sqrt(sum x_i^2)        l1 = sum |x_i|
        mean = mu                   std = sqrt(m_2)
        max, min                    skewness = m_3 / m_2^1.5
                                    kurtosis = m_4 / m_2^2 - 3 (excess)

    as `scipy.stats.skew` and `scipy.stats.kurtosis` with bias=True. Skewness
    and kurtosis of a constant row are NaN, as there; its std is exactly 0.

    Args:
        x: activations, shape (..., features), any floating dtype, any device,
            any leading dims (stack layers for fewer, larger calls).
        feature_ndim: how many trailing dims are the features of one row.

    Returns:
        The eight statistics by name, float32, shape (...).

    >>> row = torch.tensor([[3.0, -4.0, 0.0, 1.0]])
    >>> found = activation_statistics(row)
    >>> round(found["l2"].item(), 4), found["l1"].item(), found["mean"].item(), found["max"].item()
    (5.099, 8.0, 0.0, 3.0)
    """
    leading = x.shape[: x.ndim - feature_ndim]
    stacked = _over_tiles(_moments, x.detach().reshape(leading.numel(), -1))
    return {name: stacked[i].reshape(leading) for i, name in enumerate(ACTIVATION_STATISTICS)}


def output_statistics(logits: Tensor) -> dict[str, Tensor]:
    """Statistics of next-token distributions, from logits z over the vocabulary.

    With P = softmax(z):

        logsumexp = log sum exp z_i          max_logprob = max z_i - logsumexp
        entropy = -sum P_i log P_i, in nats
        logit_max, _min, _mean, _std, _l1, _l2, _skewness, _kurtosis: of the
            logits themselves, as in `activation_statistics`
        logit_percentile: `PERCENTILES` of the logits, linearly interpolated as
            `numpy.percentile` does

    Entropy and logsumexp are taken after subtracting the maximum, which leaves
    sums of terms of one sign; a logit of -inf is a token of probability 0.

    Args:
        logits: shape (..., vocabulary), any floating dtype, any device.

    Returns:
        By name, float32 of shape (...); `logit_percentile` has shape
        (..., len(PERCENTILES)).

    >>> found = output_statistics(torch.zeros(1, 4))
    >>> round(found["entropy"].item(), 4), round(found["max_logprob"].item(), 4)
    (1.3863, -1.3863)
    """
    leading = logits.shape[:-1]
    rows = logits.detach().reshape(leading.numel(), -1)
    moments = _over_tiles(_moments, rows)
    found = {f"logit_{name}": moments[i].reshape(leading) for i, name in enumerate(ACTIVATION_STATISTICS)}
    entropy, max_logprob, logsumexp = (part.reshape(leading) for part in _over_tiles(_distribution, rows))
    found.update(entropy=entropy, max_logprob=max_logprob, logsumexp=logsumexp)
    percentile = _over_tiles(_percentiles, rows)
    found["logit_percentile"] = percentile.T.reshape(*leading, len(PERCENTILES))
    return found


def _over_tiles(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Results (statistic, row) of a function of tiles of rows."""
    parts = [function(tile) for tile in _tiles(rows)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _tiles(rows: Tensor) -> Iterator[Tensor]:
    count = (_TILE_CPU if rows.device.type == "cpu" else _TILE_DEVICE) // max(rows.shape[-1], 1)
    return iter(torch.split(rows, max(count, 1)))


def _moments(rows: Tensor) -> Tensor:
    """The activation statistics of (n, d) rows, shape (8, n), in their order."""
    x = rows.float()
    low, high = torch.aminmax(x, dim=-1)
    mean = x.mean(dim=-1)
    l1 = torch.linalg.vector_norm(x, ord=1, dim=-1)
    # the largest deviation; a constant row has none, also where its mean is rounded
    scale = torch.where(high > low, torch.maximum(high - mean, mean - low), 0.0)
    safe = torch.where(scale == 0, 1.0, scale)
    c = (x - mean.unsqueeze(-1)).div_(safe.unsqueeze(-1))
    r1 = c.mean(dim=-1)  # what the rounding of the mean left over: tiny
    c2 = c * c
    r2 = c2.mean(dim=-1)
    r3 = c.mul_(c2).mean(dim=-1)
    r4 = c2.mul_(c2).mean(dim=-1)
    # central moments from moments about a point that is off by r1
    square = r1 * r1
    m2 = torch.where(scale == 0, 0.0, r2 - square)
    m3 = r3 - 3 * r1 * r2 + 2 * r1 * square
    m4 = r4 - 4 * r1 * r3 + 6 * square * r2 - 3 * square * square
    mean = torch.where(scale == 0, high, mean + r1 * safe)
    deviation = m2.sqrt()
    std = deviation * safe
    # sum x^2 = n (variance + mean^2): both terms positive, nothing cancels and nothing overflows
    l2 = torch.hypot(std, mean) * x.shape[-1] ** 0.5
    skewness = m3 / (m2 * deviation)
    kurtosis = m4 / (m2 * m2) - 3
    undefined = m2 == 0
    nan = torch.nan
    return torch.stack(
        [l2, l1, mean, std, high, low, skewness.masked_fill(undefined, nan), kurtosis.masked_fill(undefined, nan)]
    )


def _distribution(rows: Tensor) -> Tensor:
    """Entropy, max_logprob and logsumexp of (n, vocabulary) logits, shape (3, n)."""
    high = rows.amax(dim=-1).float()
    # exp(-200) is 0 in float32: clamping changes no sum, and keeps 0 * -inf away
    z = (rows.float() - high.unsqueeze(-1)).clamp_(min=-200.0)
    p = z.exp()
    total = p.sum(dim=-1)
    log_total = total.log()
    entropy = log_total - p.mul_(z).sum(dim=-1) / total
    return torch.stack([entropy, -log_total, high + log_total])


def _percentiles(rows: Tensor) -> Tensor:
    """`PERCENTILES` of (n, d) rows, shape (percentile, n)."""
    if rows.device.type == "cpu":
        # NumPy sorts with vector instructions: 20 times torch's speed at 49k values a row
        ordered = torch.from_numpy(np.sort(rows.float().numpy(), axis=-1))
    else:
        ordered = torch.sort(rows.float(), dim=-1).values
    where = np.asarray(PERCENTILES) / 100 * (rows.shape[-1] - 1)
    below = np.floor(where).astype(np.int64)
    above = np.minimum(below + 1, rows.shape[-1] - 1)
    fraction = torch.as_tensor(where - below, dtype=torch.float32, device=rows.device)
    a = ordered[:, torch.as_tensor(below, device=rows.device)]
    b = ordered[:, torch.as_tensor(above, device=rows.device)]
    return torch.lerp(a, b, fraction).T
