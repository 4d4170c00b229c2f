"""Statistics of activations and of output distributions, in float32 where the tensor is.

What lives here: torch functions over the last dim of a tensor. What does not:
losses (`losses.py`), when any of this is called (`capture.py`), and what the
results are called in the store (`stratalens.store.format.schema`).

Moments are those of the population (divided by n). They are corrected two-pass
moments (Chan, Golub, LeVeque, "Algorithms for computing the sample variance",
The American Statistician 37, 1983): deviations from the mean as rounded to
float32, scaled to at most 1 so that their fourth powers neither overflow nor
vanish, then corrected for what the rounding of the mean left over.

On the CPU the statistics of a row do not depend, to the last bit, on the rows
computed beside it, so that batch size and resumed runs change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["ACTIVATION_STATISTICS", "PERCENTILES", "activation_statistics", "output_statistics"]


ACTIVATION_STATISTICS = ("l2", "l1", "mean", "std", "max", "min", "skewness", "kurtosis")


PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 97, 99)


# Values in a tile: on the CPU all intermediate results are made from a tile
# while it is in the cache, elsewhere it bounds their memory (128 MiB each).
_TILE_CPU = 1 << 17


_TILE_DEVICE = 1 << 25


_LEAST_SCALE = 2.0**-120  # its reciprocal is finite in float32


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
    width = x.shape[x.ndim - feature_ndim :].numel()
    found = _moments(x.detach().reshape(leading.numel(), width))
    return {name: found[i].reshape(leading) for i, name in enumerate(ACTIVATION_STATISTICS)}


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
    rows = logits.detach().reshape(leading.numel(), logits.shape[-1])
    names = ("entropy", "max_logprob", "logsumexp")
    # one walk over the logits: each tile is converted and read once from memory
    sums, distribution, percentile = _over_tiles(_of_logits, rows, 9 + 3 + len(PERCENTILES)).split_with_sizes(
        [9, 3, len(PERCENTILES)]
    )
    moments = _from_sums(sums, rows.shape[-1])
    found = {f"logit_{name}": moments[i].reshape(leading) for i, name in enumerate(ACTIVATION_STATISTICS)}
    found.update({name: distribution[i].reshape(leading) for i, name in enumerate(names)})
    found["logit_percentile"] = percentile.T.reshape(*leading, len(PERCENTILES))
    return found


def _over_tiles(function: Callable[[Tensor], Tensor], rows: Tensor, count: int) -> Tensor:
    """`function` of all rows (n, d), tile by tile, shape (count, n)."""
    on_cpu = rows.device.type == "cpu"
    size = max((_TILE_CPU if on_cpu else _TILE_DEVICE) // max(rows.shape[-1], 1), 2)
    found = torch.empty((count, len(rows)), dtype=torch.float32, device=rows.device)
    for start in range(0, len(rows), size):
        tile = rows[start : start + size].float()
        # torch sums a lone row in another order than one among others
        alone = on_cpu and len(tile) == 1
        result = function(tile.expand(2, -1).contiguous() if alone else tile)
        found[:, start : start + size] = result[:, : len(tile)]
    return found


def _moments(rows: Tensor) -> Tensor:
    """The activation statistics of (n, d) rows, shape (8, n), in their order."""
    return _from_sums(_over_tiles(_sums, rows, 9), rows.shape[-1])


def _sums(x: Tensor) -> Tensor:
    """One tile's maximum, minimum, mean, l1, scale and raw moments of the scaled deviations, shape (9, n)."""
    d = x.shape[-1]
    high, low, mean, l1 = x.amax(dim=-1), x.amin(dim=-1), x.mean(dim=-1), x.abs().sum(dim=-1)
    scale = torch.maximum(high - mean, mean - low).clamp_(min=_LEAST_SCALE)
    c = (x - mean.unsqueeze(-1)).mul_(scale.reciprocal().unsqueeze(-1))
    c2 = c * c
    r1 = c.mean(dim=-1)  # what the rounding of the mean left over: tiny
    return torch.stack([high, low, mean, l1, scale, r1, _dot(c, c) / d, _dot(c, c2) / d, _dot(c2, c2) / d])


def _from_sums(sums: Tensor, d: int) -> Tensor:
    """The activation statistics, shape (8, n).

    Only +, -, *, / and square roots: they round alike in vector and scalar
    code, so a row's place among the others changes nothing.
    """
    high, low, mean, l1, scale, r1, r2, r3, r4 = sums
    constant = high - low == 0
    # central moments from moments about a point that is off by r1
    square = r1 * r1
    m2 = (r2 - square).masked_fill_(constant, 0.0)
    m3 = r3 - 3 * r1 * r2 + 2 * r1 * square
    m4 = r4 - 4 * r1 * r3 + 6 * square * r2 - 3 * square * square
    mean = torch.where(constant, high, mean + r1 * scale)
    deviation = m2.sqrt()
    std = deviation * scale
    # sum x^2 = d (variance + mean^2): both terms positive, so nothing cancels; in units of the larger one
    unit = torch.maximum(std, mean.abs()).clamp_(min=_LEAST_SCALE)
    l2 = ((std / unit).square() + (mean / unit).square()).mul_(d).sqrt_() * unit
    undefined = m2 == 0
    skewness = (m3 / (m2 * deviation)).masked_fill_(undefined, torch.nan)
    kurtosis = (m4 / (m2 * m2) - 3).masked_fill_(undefined, torch.nan)
    return torch.stack([l2, l1, mean, std, high, low, skewness, kurtosis])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise dot products in full float32, shape (n,)."""
    if a.device.type == "cpu":
        # one pass without a product array; BLAS, untouched by torch's reduced-precision matmul settings
        return torch.from_numpy(np.vecdot(a.numpy(), b.numpy()))
    return (a * b).sum(dim=-1)


def _of_logits(z: Tensor) -> Tensor:
    """Sums, distribution and percentiles of (n, vocabulary) float32 logits, one below the other."""
    return torch.cat([_sums(z), _distribution(z), _percentiles(z)])


def _distribution(z: Tensor) -> Tensor:
    """Entropy, max_logprob and logsumexp of (n, vocabulary) float32 logits, shape (3, n)."""
    high = z.amax(dim=-1)
    # exp(-200) is 0 in float32: clamping changes no sum, and keeps 0 * -inf away
    shifted = (z - high.unsqueeze(-1)).clamp_(min=-200.0)
    p = shifted.exp()
    total = p.sum(dim=-1)
    log_total = total.log()
    entropy = log_total - _dot(p, shifted) / total
    return torch.stack([entropy, -log_total, high + log_total])


def _percentiles(z: Tensor) -> Tensor:
    """`PERCENTILES` of (n, d) float32 rows, shape (percentile, n)."""
    # NumPy sorts with vector instructions: 20 times torch's speed on the CPU at 49k values a row
    on_cpu = z.device.type == "cpu"
    ordered = torch.from_numpy(np.sort(z.numpy(), axis=-1)) if on_cpu else z.sort(dim=-1).values
    last = z.shape[-1] - 1
    where = np.asarray(PERCENTILES) / 100 * last
    below = np.floor(where).astype(np.int64)
    fraction = torch.as_tensor(where - below, dtype=torch.float32, device=z.device)
    a = ordered[:, torch.as_tensor(below, device=z.device)]
    b = ordered[:, torch.as_tensor(np.minimum(below + 1, last), device=z.device)]
    return torch.where(fraction == 0, a, a + (b - a) * fraction).T


# Logits turned into float32 at once, in values: bounds the memory of a call.
_LOSS_TILE_CPU = 1 << 22


_LOSS_TILE_DEVICE = 1 << 25


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
    size = max((_LOSS_TILE_CPU if rows.device.type == "cpu" else _LOSS_TILE_DEVICE) // max(rows.shape[-1], 1), 1)
    parts = []
    for tile, target in zip(torch.split(rows, size), torch.split(wanted, size), strict=True):
        z = tile.float()
        # differences from the maximum, so that a near-certain token keeps its digits
        high = z.amax(dim=-1, keepdim=True)
        z = z - high
        chosen = z.gather(-1, target).squeeze(-1)
        parts.append(z.exp_().sum(dim=-1).log_().sub_(chosen))
    return torch.cat(parts).reshape(shape) if parts else logits.new_empty(shape, dtype=torch.float32)
