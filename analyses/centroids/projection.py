"""Geometry of group centroids from inner products alone: order, straightness, coordinates in the plane.

Array functions. All of them take Gram matrices of slot sums (see resample.py) for
many resamples at once, so that the width of the activations no longer matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratalens.analyses.centroids.resampling import Halves
from stratalens.analyses.data.array_types import Array

STATISTICS = ("r2", "rank_correlation", "kendall", "inner_rank_correlation", "exact_order")


@dataclass(frozen=True)
class Inner:
    """Inner products of centroids, each array (..., H, G, G): H splits, G groups.

    Attributes:
        axis: centroids of the axis part among themselves.
        cross: centroid of the axis part (rows) with centroids of the shown part (columns).
        shown: centroids of the shown part among themselves.
    """

    axis: Array
    cross: Array
    shown: Array


def gram(sums: Array) -> Array:
    """Gram matrices (..., S, S) in float64 of slot sums (..., S, F) in float32."""
    return np.asarray(np.matmul(sums, np.swapaxes(sums, -1, -2)), dtype=np.float64)


def inner_products(slot_gram: Array, counts: Array, halves: Halves, unit: bool = False) -> Inner:
    """Inner products of centroids of both parts of every split.

    Args:
        slot_gram: [array-like, shape: (B, G * C, G * C)] Gram matrices of slot sums.
        counts: [array-like, shape: (B, G * C)] rows in each slot.
        halves: the splits.
        unit: scale every centroid to unit length.
    """
    B, S, _ = slot_gram.shape
    C = halves.cells
    G, H = S // C, len(halves.axis)
    # (B, G, G', C * C): one product with all splits then gives every Gram matrix of centroids.
    pairs = np.ascontiguousarray(slot_gram.reshape(B, G, C, G, C).transpose(0, 1, 3, 2, 4)).reshape(-1, C * C)
    rows = counts.reshape(B, G, C)

    def part(left: Array, right: Array) -> Array:
        total = (pairs @ np.einsum("hc,hd->cdh", left, right).reshape(C * C, H)).reshape(B, G, G, H)
        n_left, n_right = rows @ left.T, rows @ right.T  # (B, G, H)
        with np.errstate(invalid="ignore", divide="ignore"):  # a bootstrap sample may leave a part without rows
            return np.asarray(np.moveaxis(total / (n_left[:, :, None] * n_right[:, None]), 3, 1))

    inner = Inner(part(halves.axis, halves.axis), part(halves.axis, halves.shown), part(halves.shown, halves.shown))
    if not unit:
        return inner
    with np.errstate(invalid="ignore", divide="ignore"):
        a, s = (1 / np.sqrt(np.einsum("...gg->...g", m)) for m in (inner.axis, inner.shown))
    return Inner(
        inner.axis * a[..., :, None] * a[..., None, :],
        inner.cross * a[..., :, None] * s[..., None, :],
        inner.shown * s[..., :, None] * s[..., None, :],
    )


def along_axis(inner: Inner, first: int, last: int) -> Array:
    """Coordinates of the shown centroids along w1 = unit(last - first) of the axis part, (..., H, G); centred."""
    k = inner.axis
    length = _axis_length(k, first, last)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (inner.cross[..., last, :] - inner.cross[..., first, :]) / length[..., None]
    return np.asarray(x - x.mean(axis=-1, keepdims=True))


def statistics(inner: Inner, first: int, last: int) -> dict[str, Array]:
    """Order and straightness, each averaged over the splits, shape (...).

    - r2: 1 - (squared distances of the shown centroids from their best line) / (total squared deviation),
      in full width: the largest eigenvalue of their centred Gram matrix over its trace;
    - rank_correlation, kendall: Spearman's and Kendall's between coordinate along w1 and group order;
    - inner_rank_correlation: Spearman's over the groups that the axis is not made from (NaN below two);
    - exact_order: share of the splits in which the order is exactly that of the groups.

    NaN where a part of a split has no rows or all points coincide.
    """
    x = along_axis(inner, first, last)
    G = x.shape[-1]
    steps = np.sign(x[..., None, :] - x[..., :, None])[..., *np.triu_indices(G, 1)]
    others = [g for g in range(G) if g not in (first, last)]
    found = {
        "r2": straightness(inner.shown),
        "rank_correlation": spearman(x),
        "kendall": steps.mean(axis=-1),
        "inner_rank_correlation": spearman(x[..., others]) if len(others) > 1 else np.full(x.shape[:-1], np.nan),
        "exact_order": (np.diff(x, axis=-1) > 0).all(axis=-1).astype(float),
    }
    undefined = ~np.isfinite(x).all(axis=-1)
    return {name: np.where(undefined, np.nan, values).mean(axis=-1) for name, values in found.items()}


def straightness(shown: Array) -> Array:
    """Share of the squared deviation of points that lies on their best line, from their Gram matrices (..., G, G)."""
    centred = _centre(shown)
    total = np.einsum("...gg->...", centred)
    usable = np.asarray(np.isfinite(centred).all(axis=(-1, -2)))
    largest = largest_eigenvalue(np.where(usable[..., None, None], centred, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(usable, largest / total, np.nan))


def spearman(x: Array) -> Array:
    """Spearman's correlation of the last axis with 0, 1, 2, ...; without ties."""
    G = x.shape[-1]
    ranks = np.argsort(np.argsort(x, axis=-1), axis=-1)
    return np.asarray(1 - 6 * ((ranks - np.arange(G)) ** 2).sum(axis=-1) / (G * (G * G - 1)))


def coordinates(inner: Inner, first: int, last: int) -> Array:
    """Coordinates (..., G, 2) of the shown centroids on w1 and w2, centred, averaged over the splits.

    w2 is the first principal component of the axis part's centroids without w1; its sign is such that the
    middle of the groups lies on its positive side.
    """
    x = along_axis(inner, first, last)
    a = _centre(inner.axis)
    length = _axis_length(inner.axis, first, last)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha = (a[..., :, last] - a[..., :, first]) / length  # axis part's own coordinates on w1
    rest = a - alpha[..., :, None] * alpha[..., None, :]
    bad = np.asarray(~np.isfinite(rest).all(axis=(-1, -2)))
    values, vectors = np.linalg.eigh(np.where(bad[..., None, None], 0, rest))
    weights, spread = vectors[..., -1], np.maximum(values[..., -1], 0)
    G = x.shape[-1]
    own = np.einsum("...gd,...d->...g", rest, weights)  # the axis part's coordinates on w2, times sqrt(spread)
    middle = own[..., [(G - 1) // 2, G // 2]].sum(axis=-1)
    # Without the mean of the axis part: centred rows of `cross`, and centred columns.
    cross = inner.cross - inner.cross.mean(axis=-2, keepdims=True)
    cross = cross - cross.mean(axis=-1, keepdims=True)
    y = np.einsum("...g,...gd->...d", weights, cross) - (weights * alpha).sum(-1)[..., None] * x
    with np.errstate(invalid="ignore", divide="ignore"):
        y = y / np.sqrt(spread)[..., None] * np.where(middle < 0, -1.0, 1.0)[..., None]
    return np.asarray(np.stack([x, y], axis=-1).mean(axis=-3))


def _centre(gram: Array) -> Array:
    gram = gram - gram.mean(axis=-1, keepdims=True)
    return np.asarray(gram - gram.mean(axis=-2, keepdims=True))


def _axis_length(k: Array, first: int, last: int) -> Array:
    """Length of last - first; NaN where they coincide, so that there is no axis."""
    square = np.asarray(k[..., last, last] - 2 * k[..., first, last] + k[..., first, first])
    return np.sqrt(np.where(square > 0, square, np.nan))


_BATCH = 2**17  # numbers in a batch of matrices, so that it stays in the cache


_STEPS = 100  # far more than a cluster of equal eigenvalues needs (about 30); others need 5


def largest_eigenvalue(matrices: Array) -> Array:
    """Largest eigenvalue of symmetric positive semi-definite matrices, to a few units of rounding of their trace.

    Householder reduction to tridiagonal form, then Laguerre's iteration on the pivots of λI - T from above, where
    it descends monotonically to the largest root and is backward stable (Parlett 1998, The Symmetric Eigenvalue
    Problem, 4 and 7).

    Args:
        matrices: [array-like, shape: (..., n, n)] float64, finite; only one triangle need be exact.

    Returns:
        (...) float64; 0 for a matrix without a positive trace.

    >>> largest_eigenvalue(np.array([[2.0, 1.0], [1.0, 2.0]])).round(12).tolist()
    3.0
    """
    n = matrices.shape[-1]
    flat = np.asarray(matrices, np.float64).reshape(-1, n * n)
    out = np.empty(len(flat))
    size = max(1, _BATCH // (n * n))
    for start in range(0, len(flat), size):
        batch = np.ascontiguousarray(flat[start : start + size].T).reshape(n, n, -1)  # matrices side by side
        trace = np.einsum("iib->b", batch)
        scale = np.where(trace > 0, trace, 1.0)
        diagonal, off = _tridiagonal(batch / scale)
        out[start : start + size] = np.where(trace > 0, _descend(diagonal, off) * scale, 0.0)
    return out.reshape(matrices.shape[:-2])


def _tridiagonal(a: Array) -> tuple[Array, Array]:
    """Diagonals (n, B) and squared off-diagonals (n - 1, B) of tridiagonal forms of matrices (n, n, B), overwritten."""
    n = len(a)
    diagonal, off = np.empty((n, a.shape[2])), np.empty((max(n - 1, 0), a.shape[2]))
    for k in range(n - 2):
        diagonal[k] = a[k, k]
        v, rest = a[k + 1 :, k], a[k + 1 :, k + 1 :]
        off[k] = (v * v).sum(axis=0)
        v[0] += np.copysign(np.sqrt(off[k]), v[0])
        length = (v * v).sum(axis=0)
        factor = 2 / np.where(length > 0, length, np.inf)
        w = (rest * v).sum(axis=1) * factor
        w -= factor / 2 * (w * v).sum(axis=0) * v
        update = v[:, None] * w
        rest -= update
        rest -= update.swapaxes(0, 1)
    for k in range(max(n - 2, 0), n):
        diagonal[k] = a[k, k]
    if n > 1:
        off[-1] = a[-1, -2] ** 2
    return diagonal, off


def _descend(diagonal: Array, off: Array) -> Array:
    """Largest eigenvalues of tridiagonal matrices of trace 1."""
    n = len(diagonal)
    found = np.empty(diagonal.shape[1])
    active = np.arange(len(found))
    x = np.full(len(found), 1 + 1e-6)  # the trace bounds it from above
    for _ in range(_STEPS):
        step = _laguerre(x, diagonal, off, n)
        done = ~(step > 4e-16)
        found[active[done]] = x[done]
        if done.all():
            return found
        keep = ~done
        active, x = active[keep], (x - step)[keep]
        if done.any():
            diagonal, off = diagonal[:, keep], off[:, keep]
    found[active] = x
    return found


def _laguerre(x: Array, diagonal: Array, off: Array, n: int) -> Array:
    """Laguerre's step down from x, by the pivots q of xI - T and their first two derivatives.

    Above the largest eigenvalue all pivots are positive; where one is not, rounding has carried x on to it or
    just across, and there is no step left to take.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        q, first, second = x - diagonal[0], np.ones_like(x), np.zeros_like(x)
        above, ratio = q > 0, first / q
        # p'/p and -(p'/p)' of the characteristic polynomial p, with one more root at 0: were all roots (nearly)
        # the same, the square root below would be nothing but rounding.
        slope, curve = 1 / x + ratio, 1 / (x * x) + ratio * ratio
        for i in range(1, n):
            share = off[i - 1] / (q * q)
            second = share * (second - 2 * first * ratio)
            first = 1 + share * first
            q = x - diagonal[i] - share * q
            above &= q > 0
            ratio = first / q
            slope += ratio
            curve += ratio * ratio - second / q
        root = np.sqrt(np.maximum(n * ((n + 1) * curve - slope * slope), 0))
        return np.where(above, (n + 1) / (slope + root), 0.0)
