"""Statistics of activations and of output distributions as torch functions, in float32 on the tensor's device.

On the CPU the statistics of a row are the same to the last bit whatever other rows the batch has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ACTIVATION_STATISTICS = ("l2", "l1", "mean", "std", "max", "min", "skewness", "kurtosis")
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 97, 99)

# Values in a tile. On the CPU a tile stays in the cache for all intermediate results; on a device it bounds their
# memory (128 MiB each).
_TILE_CPU = 1 << 17
_TILE_DEVICE = 1 << 25

_LEAST_SCALE = 2.0**-120  # its reciprocal is finite in float32


def activation_statistics(x: Tensor, feature_ndim: int = 1) -> dict[str, Tensor]:
    """Compute per-row statistics of activations over their last dims.

    With x_i the d values of a row, mu their mean and m_k the mean of (x_i - mu)^k:

        l2 = sqrt(sum x_i^2)        l1 = sum |x_i|
        mean = mu                   std = sqrt(m_2)
        max, min                    skewness = m_3 / m_2^1.5
                                    kurtosis = m_4 / m_2^2 - 3 (excess)

    Moments are those of the population (divided by n), as in `scipy.stats.skew` and `scipy.stats.kurtosis` with
    bias=True. Skewness and kurtosis of a constant row are NaN, as in scipy; its std is exactly 0.

    The method is the corrected two-pass algorithm of Chan, Golub, LeVeque, "Algorithms for computing the sample
    variance", The American Statistician 37, 1983. It scales the deviations from the float32 mean to at most 1, so that
    fourth powers neither overflow nor vanish, then corrects the rounding error of the mean.

    Args:
        x: tensor of shape (..., features), of any floating dtype and device. Stack layers in front for fewer, larger
            calls.
        feature_ndim: number of trailing dims that are the features of one row.

    Returns:
        The eight statistics by name, float32 tensors of shape (...).

    Example:
        >>> row = torch.tensor([[3.0, -4.0, 0.0, 1.0]])
        >>> result = activation_statistics(row)
        >>> round(result["l2"].item(), 4), result["l1"].item(), result["mean"].item(), result["max"].item()
        (5.099, 8.0, 0.0, 3.0)
    """
    leading = x.shape[: x.ndim - feature_ndim]
    width = x.shape[x.ndim - feature_ndim :].numel()
    moments = _moments(x.detach().reshape(leading.numel(), width))
    return {name: moments[i].reshape(leading) for i, name in enumerate(ACTIVATION_STATISTICS)}


def output_statistics(logits: Tensor) -> dict[str, Tensor]:
    """Compute statistics of next-token distributions from logits z over the vocabulary.

    With P = softmax(z):

        logsumexp = log sum exp z_i          max_logprob = max z_i - logsumexp
        entropy = -sum P_i log P_i, in nats
        logit_max, _min, _mean, _std, _l1, _l2, _skewness, _kurtosis: of the
            logits themselves, as in `activation_statistics`
        logit_percentile: `PERCENTILES` of the logits, linearly interpolated as
            in `numpy.percentile`

    The maximum is subtracted before entropy and logsumexp are computed, so that all terms of a sum have one sign. A
    logit of -inf is a token of probability 0.

    Args:
        logits: tensor of shape (..., vocabulary), of any floating dtype and device.

    Returns:
        float32 tensors of shape (...) by name; logit_percentile has shape (..., percentiles).

    Example:
        >>> result = output_statistics(torch.zeros(1, 4))
        >>> round(result["entropy"].item(), 4), round(result["max_logprob"].item(), 4)
        (1.3863, -1.3863)
    """
    leading = logits.shape[:-1]
    rows = logits.detach().reshape(leading.numel(), logits.shape[-1])
    names = ("entropy", "max_logprob", "logsumexp")
    # One walk over the logits: each tile is converted and read from memory once.
    sums, distribution, percentile = _over_tiles(_describe_logits, rows, 9 + 3 + len(PERCENTILES)).split_with_sizes(
        [9, 3, len(PERCENTILES)]
    )
    moments = _from_sums(sums, rows.shape[-1])
    values = {f"logit_{name}": moments[i].reshape(leading) for i, name in enumerate(ACTIVATION_STATISTICS)}
    values.update({name: distribution[i].reshape(leading) for i, name in enumerate(names)})
    values["logit_percentile"] = percentile.T.reshape(*leading, len(PERCENTILES))
    return values


def _over_tiles(function: Callable[[Tensor], Tensor], rows: Tensor, count: int) -> Tensor:
    """Apply `function` to all rows (n, d) tile by tile; the result has shape (count, n)."""
    on_cpu = rows.device.type == "cpu"
    size = max((_TILE_CPU if on_cpu else _TILE_DEVICE) // max(rows.shape[-1], 1), 2)
    results = torch.empty((count, len(rows)), dtype=torch.float32, device=rows.device)
    for start in range(0, len(rows), size):
        tile = rows[start : start + size].float()
        # torch sums a single row in another order than a row among others
        single = on_cpu and len(tile) == 1
        result = function(tile.expand(2, -1).contiguous() if single else tile)
        results[:, start : start + size] = result[:, : len(tile)]
    return results


def _moments(rows: Tensor) -> Tensor:
    """Compute the activation statistics of rows (n, d), shape (8, n), in their order."""
    return _from_sums(_over_tiles(_sums, rows, 9), rows.shape[-1])


def _sums(x: Tensor) -> Tensor:
    """Compute maximum, minimum, mean, l1, scale and raw moments of the scaled deviations of one tile, shape (9, n)."""
    d = x.shape[-1]
    high, low, mean, l1 = x.amax(dim=-1), x.amin(dim=-1), x.mean(dim=-1), x.abs().sum(dim=-1)
    scale = torch.maximum(high - mean, mean - low).clamp_(min=_LEAST_SCALE)
    c = (x - mean.unsqueeze(-1)).mul_(scale.reciprocal().unsqueeze(-1))
    c2 = c * c
    r1 = c.mean(dim=-1)  # rounding error of the mean, tiny
    return torch.stack([high, low, mean, l1, scale, r1, _dot(c, c) / d, _dot(c, c2) / d, _dot(c2, c2) / d])


def _from_sums(sums: Tensor, d: int) -> Tensor:
    """Compute the activation statistics from the sums of `_sums`, shape (8, n).

    Only +, -, *, / and square roots occur. They round equally in vector and scalar code, so the place of a row in the
    batch changes nothing.
    """
    high, low, mean, l1, scale, r1, r2, r3, r4 = sums
    constant = high - low == 0
    # Central moments, from moments about a point that is off by r1.
    square = r1 * r1
    m2 = (r2 - square).masked_fill_(constant, 0.0)
    m3 = r3 - 3 * r1 * r2 + 2 * r1 * square
    m4 = r4 - 4 * r1 * r3 + 6 * square * r2 - 3 * square * square
    mean = torch.where(constant, high, mean + r1 * scale)
    deviation = m2.sqrt()
    std = deviation * scale
    # sum x^2 = d (variance + mean^2). Both terms are positive, so nothing cancels. Units: the larger of the two.
    unit = torch.maximum(std, mean.abs()).clamp_(min=_LEAST_SCALE)
    l2 = ((std / unit).square() + (mean / unit).square()).mul_(d).sqrt_() * unit
    undefined = m2 == 0
    skewness = (m3 / (m2 * deviation)).masked_fill_(undefined, torch.nan)
    kurtosis = (m4 / (m2 * m2) - 3).masked_fill_(undefined, torch.nan)
    return torch.stack([l2, l1, mean, std, high, low, skewness, kurtosis])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute row-wise dot products in full float32, shape (n,)."""
    if a.device.type == "cpu":
        # One pass without a product array, in BLAS: torch's reduced-precision matmul settings do not apply.
        return torch.from_numpy(np.vecdot(a.numpy(), b.numpy()))
    return (a * b).sum(dim=-1)


def _describe_logits(z: Tensor) -> Tensor:
    """Compute sums, distribution and percentiles of float32 logits (n, vocabulary), stacked along the first axis."""
    return torch.cat([_sums(z), _distribution(z), _percentiles(z)])


def _distribution(z: Tensor) -> Tensor:
    """Compute entropy, max_logprob and logsumexp of float32 logits (n, vocabulary), shape (3, n)."""
    high = z.amax(dim=-1)
    # exp(-200) is 0 in float32: clamping changes no sum and avoids 0 * -inf.
    shifted = (z - high.unsqueeze(-1)).clamp_(min=-200.0)
    p = shifted.exp()
    total = p.sum(dim=-1)
    log_total = total.log()
    entropy = log_total - _dot(p, shifted) / total
    return torch.stack([entropy, -log_total, high + log_total])


def _percentiles(z: Tensor) -> Tensor:
    """Compute `PERCENTILES` of float32 rows (n, d), shape (percentiles, n)."""
    # NumPy sorts with vector instructions: 20 times the speed of torch on the CPU at 49k values a row.
    on_cpu = z.device.type == "cpu"
    ordered = torch.from_numpy(np.sort(z.numpy(), axis=-1)) if on_cpu else z.sort(dim=-1).values
    last = z.shape[-1] - 1
    where = np.asarray(PERCENTILES) / 100 * last
    below = np.floor(where).astype(np.int64)
    fraction = torch.as_tensor(where - below, dtype=torch.float32, device=z.device)
    a = ordered[:, torch.as_tensor(below, device=z.device)]
    b = ordered[:, torch.as_tensor(np.minimum(below + 1, last), device=z.device)]
    return torch.where(fraction == 0, a, a + (b - a) * fraction).T


# Logits in float32 at a time: many rows of a slice of the vocabulary, which on the CPU stay in the cache (16 MiB).
_SLICE_CPU = 1 << 22
_SLICE_DEVICE = 1 << 25
_SLICE_ROWS = 1024

# Logits converted to float32 at a time, which bounds the memory of a call.
_LOSS_TILE_CPU = 1 << 22
_LOSS_TILE_DEVICE = 1 << 25


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute -log softmax(logits)[target] from logits in any floating dtype.

    Args:
        logits: tensor of shape (..., vocabulary).
        targets: token ids, tensor of shape (...).

    Returns:
        float32 tensor of shape (...), in nats.

    Example:
        >>> round(negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])).item(), 4)
        1.3863
    """
    shape = targets.shape
    rows = logits.detach().reshape(-1, logits.shape[-1])
    columns = targets.reshape(-1, 1)
    size = max((_LOSS_TILE_CPU if rows.device.type == "cpu" else _LOSS_TILE_DEVICE) // max(rows.shape[-1], 1), 1)
    losses = []
    for tile, target in zip(torch.split(rows, size), torch.split(columns, size), strict=True):
        z = tile.float()
        # Differences from the maximum, so that a near-certain token keeps its digits.
        z = z - z.amax(dim=-1, keepdim=True)
        chosen = z.gather(-1, target).squeeze(-1)
        losses.append(z.exp_().sum(dim=-1).log_().sub_(chosen))
    return torch.cat(losses).reshape(shape) if losses else logits.new_empty(shape, dtype=torch.float32)


def output_layer_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale_logits: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> Tensor:
    """Compute -log softmax(scale_logits(hidden weight^T + bias))[target], slice by slice of the vocabulary.

    The logits of a row are never in memory as a whole. The normaliser is summed up over the slices, as in Milakov,
    Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867, 2018.

    Args:
        hidden: tensor of shape (n, d_model), the input of the output layer.
        weight: tensor of shape (vocabulary, d_model).
        bias: tensor of shape (vocabulary,), or None.
        targets: token ids, tensor of shape (n,).
        scale_logits: a function that changes each logit on its own.

    Returns:
        float32 tensor of shape (n,), in nats.

    Example:
        >>> hidden, weight = torch.ones(2, 3), torch.zeros(4, 3)
        >>> [round(loss, 4) for loss in output_layer_loss(hidden, weight, None, torch.tensor([2, 0])).tolist()]
        [1.3863, 1.3863]
    """
    on_cpu = hidden.device.type == "cpu"
    rows = _SLICE_ROWS if on_cpu else max(len(hidden), 1)
    width = max((_SLICE_CPU if on_cpu else _SLICE_DEVICE) // max(min(rows, len(hidden)), 1), 256)
    losses = []
    for x, target in zip(torch.split(hidden.detach(), rows), torch.split(targets, rows), strict=True):
        high = torch.full((len(x),), torch.finfo(torch.float32).min, device=x.device)
        total, chosen = torch.zeros_like(high), torch.zeros_like(high)
        for first in range(0, len(weight), width):
            slice_bias = None if bias is None else bias[first : first + width]
            z = scale_logits(torch.nn.functional.linear(x, weight[first : first + width], slice_bias)).float()
            column = target - first
            inside = (column >= 0) & (column < z.shape[-1])
            picked = z.gather(-1, column.clamp(0, z.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
            chosen = torch.where(inside, picked, chosen)
            highest = torch.maximum(high, z.amax(dim=-1))
            total = total * (high - highest).exp_() + z.sub_(highest.unsqueeze(-1)).exp_().sum(dim=-1)
            high = highest
        # The difference from the maximum first, so that a near-certain token keeps its digits.
        losses.append(total.log_().sub_(chosen - high))
    return torch.cat(losses) if losses else torch.empty(0, dtype=torch.float32, device=hidden.device)
