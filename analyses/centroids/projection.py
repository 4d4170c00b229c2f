"""Geometry of group centroids from inner products: order, straightness, coordinates in the plane.

All functions take Gram matrices of many resamples at once, so that their cost does not depend on the number of
features. `largest_eigenvalue` gives the straightness of many small Gram matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratalens.analyses.centroids.resampling import Halves
from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.cancellation import raise_if_cancelled

ORDER_STATISTICS = ("rank_correlation", "kendall", "inner_rank_correlation", "exact_order")
STATISTICS = ("r2", "rank_correlation", "kendall", "inner_rank_correlation", "exact_order")
BATCH_NUMBERS = 2**17  # numbers in a batch of matrices, so that it fits the processor's cache
MAX_STEPS = 100  # far more than a cluster of equal eigenvalues needs (about 30); others need 5


@dataclass(frozen=True)
class InnerProducts:
    """Inner products of centroids, each array of shape (..., splits, groups, groups).

    Attributes:
        axis: of the centroids of the fitting part.
        cross: of the centroids of the fitting part (rows) with those of the held-out part (columns).
        shown: of the centroids of the held-out part.
    """

    axis: Array
    cross: Array
    shown: Array


def gram(sums: Array) -> Array:
    """Gram matrices (..., slots, slots) in float64 of slot sums (..., slots, features) in float32."""
    return np.asarray(np.matmul(sums, np.swapaxes(sums, -1, -2)), dtype=np.float64)


def inner_products(slot_gram: Array, counts: Array, halves: Halves, unit: bool = False) -> InnerProducts:
    """Compute the inner products of the centroids of both parts of every split.

    Args:
        slot_gram: float64 array of shape (B, G * C, G * C), Gram matrices of slot sums (G groups, C cells).
        counts: array of shape (B, G * C), rows in each slot.
        halves: the splits.
        unit: scale every centroid to unit length.
    """
    B, S, _ = slot_gram.shape
    C = halves.cells
    G, H = S // C, len(halves.axis)
    # (B, G, G', C * C): one product with all splits then gives every Gram matrix of centroids.
    pairs = np.ascontiguousarray(slot_gram.reshape(B, G, C, G, C).transpose(0, 1, 3, 2, 4)).reshape(-1, C * C)
    rows = counts.reshape(B, G, C)

    def products(left: Array, right: Array) -> Array:
        total = (pairs @ np.einsum("hc,hd->cdh", left, right).reshape(C * C, H)).reshape(B, G, G, H)
        n_left, n_right = rows @ left.T, rows @ right.T  # (B, G, H)
        with np.errstate(invalid="ignore", divide="ignore"):  # a bootstrap sample may leave a part without rows
            return np.asarray(np.moveaxis(total / (n_left[:, :, None] * n_right[:, None]), 3, 1))

    axis, shown = products(halves.axis, halves.axis), products(halves.shown, halves.shown)
    cross = products(halves.axis, halves.shown)
    if not unit:
        return InnerProducts(axis, cross, shown)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, s = (1 / np.sqrt(np.einsum("...gg->...g", m)) for m in (axis, shown))
    return InnerProducts(
        axis * a[..., :, None] * a[..., None, :],
        cross * a[..., :, None] * s[..., None, :],
        shown * s[..., :, None] * s[..., None, :],
    )


def along_axis(inner: InnerProducts, first: int, last: int) -> Array:
    """Centred coordinates of the held-out centroids along w1 = unit(last - first), shape (..., splits, groups)."""
    length = _axis_length(inner.axis, first, last)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (inner.cross[..., last, :] - inner.cross[..., first, :]) / length[..., None]
    return np.asarray(x - x.mean(axis=-1, keepdims=True))


def statistics(inner: InnerProducts, first: int, last: int, ordered: bool = True) -> dict[str, Array]:
    """Compute order and straightness, each averaged over the splits.

    Args:
        inner: inner products of centroids.
        first: index of the first group of the axis.
        last: index of the last group of the axis.
        ordered: False computes r2 alone.

    Returns:
        Arrays of shape (...), NaN where a part of a split has no rows or all points coincide:
        r2: 1 - (squared distances of the held-out centroids from their best line) / (total squared deviation), in
        full width: the largest eigenvalue of their centred Gram matrix over its trace.
        rank_correlation, kendall: Spearman's and Kendall's between coordinate along w1 and group order.
        inner_rank_correlation: Spearman's over the groups that do not define the axis (NaN below two).
        exact_order: share of the splits whose order is exactly that of the groups.
    """
    if not ordered:
        return {"r2": straightness(inner.shown).mean(axis=-1)}
    x = along_axis(inner, first, last)
    G = x.shape[-1]
    steps = np.sign(x[..., None, :] - x[..., :, None])[..., *np.triu_indices(G, 1)]
    others = [g for g in range(G) if g not in (first, last)]
    each_split = {
        "r2": straightness(inner.shown),
        "rank_correlation": spearman(x),
        "kendall": steps.mean(axis=-1),
        "inner_rank_correlation": spearman(x[..., others]) if len(others) > 1 else np.full(x.shape[:-1], np.nan),
        "exact_order": (np.diff(x, axis=-1) > 0).all(axis=-1).astype(float),
    }
    undefined = ~np.isfinite(x).all(axis=-1)
    return {name: np.where(undefined, np.nan, values).mean(axis=-1) for name, values in each_split.items()}


def corrected_straightness(inner: InnerProducts, least: float = 0.0) -> Array:
    """Share of the squared deviation of the expected centroids along their best line, without the noise of centroids.

    The mean over the splits of the inner products of one part's centroids with the other part's is an unbiased estimate
    of those of the expected centroids, because the parts share no entity (as in the cross-validated distances of
    Walther et al., 2016, "Reliability of dissimilarity measures for multi-voxel pattern analysis"). Its largest
    eigenvalue over its trace is too large, by .1 in simulations, where most of the squared deviation is noise.

    Args:
        inner: inner products of centroids.
        least: smallest trace, as a share of the squared deviation of the held-out centroids.

    Returns:
        Array of shape (...), at most 1; NaN where the trace is smaller.
    """
    centred, observed = (_centred(products.mean(axis=-3)) for products in (inner.cross, inner.shown))
    trace = np.einsum("...gg->...", centred)
    undefined = ~np.isfinite(centred).all(axis=(-1, -2)) | ~(trace > least * np.einsum("...gg->...", observed))
    largest = np.linalg.eigvalsh(np.where(undefined[..., None, None], 0.0, centred))[..., -1]
    return np.where(undefined, np.nan, np.minimum(largest / np.where(undefined, 1, trace), 1))


def _centred(products: Array) -> Array:
    """Symmetric inner products (..., G, G) around the mean of the points."""
    products = (products + np.swapaxes(products, -1, -2)) / 2
    products = products - products.mean(axis=-1, keepdims=True)
    return np.asarray(products - products.mean(axis=-2, keepdims=True))


def inner_ranks(inner: InnerProducts, first: int, last: int) -> Array:
    """Mean rank over the splits of each group along w1, from 1, among the groups that do not define the axis.

    Returns:
        float64 array of shape (..., groups); NaN for the first and the last group, and where the axis is undefined.
    """
    x = along_axis(inner, first, last)
    others = [g for g in range(x.shape[-1]) if g not in (first, last)]
    out = np.full((*x.shape[:-2], x.shape[-1]), np.nan)
    ranks = 1.0 + np.argsort(np.argsort(x[..., others], axis=-1), axis=-1)
    undefined = ~np.isfinite(x).all(axis=-1, keepdims=True)
    out[..., others] = np.where(undefined, np.nan, ranks).mean(axis=-2)
    return out


def straightness(shown: Array) -> Array:
    """Share of the squared deviation of points along their best line, from their Gram matrices (..., G, G)."""
    centred = _centre(shown)
    total = np.einsum("...gg->...", centred)
    usable = np.asarray(np.isfinite(centred).all(axis=(-1, -2)))
    largest = largest_eigenvalue(np.where(usable[..., None, None], centred, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(usable, largest / total, np.nan))


def spearman(x: Array) -> Array:
    """Spearman's correlation of the last axis with 0, 1, 2, ..., for values without ties."""
    G = x.shape[-1]
    ranks = np.argsort(np.argsort(x, axis=-1), axis=-1)
    return np.asarray(1 - 6 * ((ranks - np.arange(G)) ** 2).sum(axis=-1) / (G * (G * G - 1)))


def coordinates(inner: InnerProducts, first: int, last: int) -> Array:
    """Centred coordinates (..., G, 2) of the held-out centroids on w1 and w2, averaged over the splits.

    w2 is the first principal component of the fitting part's centroids without w1. Its sign makes the middle of the
    groups positive.
    """
    x = along_axis(inner, first, last)
    a = _centre(inner.axis)
    length = _axis_length(inner.axis, first, last)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha = (a[..., :, last] - a[..., :, first]) / length  # coordinates of the fitting part on w1
    rest = a - alpha[..., :, None] * alpha[..., None, :]
    undefined = np.asarray(~np.isfinite(rest).all(axis=(-1, -2)))
    values, vectors = np.linalg.eigh(np.where(undefined[..., None, None], 0, rest))
    weights, spread = vectors[..., -1], np.maximum(values[..., -1], 0)
    G = x.shape[-1]
    own = np.einsum("...gd,...d->...g", rest, weights)  # coordinates of the fitting part on w2, times sqrt(spread)
    middle = own[..., [(G - 1) // 2, G // 2]].sum(axis=-1)
    # Centre the rows (fitting part) and the columns (held-out part).
    cross = inner.cross - inner.cross.mean(axis=-2, keepdims=True)
    cross = cross - cross.mean(axis=-1, keepdims=True)
    y = np.einsum("...g,...gd->...d", weights, cross) - (weights * alpha).sum(-1)[..., None] * x
    with np.errstate(invalid="ignore", divide="ignore"):
        y = y / np.sqrt(spread)[..., None] * np.where(middle < 0, -1.0, 1.0)[..., None]
    return np.asarray(np.stack([x, y], axis=-1).mean(axis=-3))


def principal_coordinates(inner: InnerProducts, reference: Array) -> Array:
    """Centred coordinates (..., G, 2) of the held-out centroids on two principal components, averaged over the splits.

    The components are those of the fitting part's centroids (between-group principal components). Held-out centroids
    are needed: in many dimensions the components separate even groups of pure noise if they are drawn with the rows
    that they were fitted on (Cardini, O'Higgins and Rohlf 2019, "Seeing distinct groups where there are none").

    Args:
        inner: inner products of centroids.
        reference: array of shape (G, 2) from `principal_reference`; every split is rotated or reflected within its
            plane towards it, because the signs of components are arbitrary.
    """
    a = _centre(inner.axis)
    undefined = np.asarray(~np.isfinite(a).all(axis=(-1, -2)))
    values, vectors = np.linalg.eigh(np.where(undefined[..., None, None], 0, a))
    spread, weights = np.sqrt(np.maximum(values[..., -2:], 0)), vectors[..., -2:]
    cross = inner.cross - inner.cross.mean(axis=-2, keepdims=True)
    cross = cross - cross.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = weights * np.where(spread > 1e-9 * spread[..., -1:], 1 / spread, 0)[..., None, :]
    shown = np.einsum("...gk,...gd->...dk", scaled, cross)
    fitted = weights * spread[..., None, :]
    left, _, right = np.linalg.svd(np.einsum("...gk,gl->...kl", fitted, reference))
    out = np.where(undefined[..., None, None], np.nan, shown @ (left @ right))
    return np.asarray(out.mean(axis=-3))


def principal_reference(inner: InnerProducts) -> Array:
    """Coordinates (G, 2) of all centroids on their two principal components, with reproducible signs.

    The last group is not below the first one on component 1, and the middle group is positive on component 2.
    """
    both = inner.axis + inner.shown
    values, vectors = np.linalg.eigh(np.nan_to_num(_centre(both.mean(axis=tuple(range(both.ndim - 2))) / 2)))
    out = (vectors * np.sqrt(np.maximum(values, 0)))[:, [-1, -2]]
    G = len(out)
    flip = np.array([out[-1, 0] < out[0, 0], out[[(G - 1) // 2, G // 2], 1].sum() < 0])
    return np.asarray(np.where(flip, -out, out))


def _centre(gram: Array) -> Array:
    gram = gram - gram.mean(axis=-1, keepdims=True)
    return np.asarray(gram - gram.mean(axis=-2, keepdims=True))


def _axis_length(axis: Array, first: int, last: int) -> Array:
    """Length of last - first; NaN where they coincide, so that there is no axis."""
    square = np.asarray(axis[..., last, last] - 2 * axis[..., first, last] + axis[..., first, first])
    return np.sqrt(np.where(square > 0, square, np.nan))


def largest_eigenvalue(matrices: Array) -> Array:
    """Largest eigenvalue of symmetric positive semi-definite matrices, exact to a few units of rounding of their trace.

    Householder reduction to tridiagonal form, then Laguerre's iteration on the pivots of λI - T from above, where
    it descends monotonically to the largest root and is backward stable (Parlett 1998, The Symmetric Eigenvalue
    Problem, 4 and 7).

    Args:
        matrices: float64 array of shape (..., n, n), finite; one exact triangle is enough.

    Returns:
        float64 array of shape (...); 0 for a matrix without a positive trace.

    Example:
        >>> largest_eigenvalue(np.array([[2.0, 1.0], [1.0, 2.0]])).round(12).tolist()
        3.0
    """
    n = matrices.shape[-1]
    flat = np.asarray(matrices, np.float64).reshape(-1, n * n)
    out = np.empty(len(flat))
    size = max(1, BATCH_NUMBERS // (n * n))
    for start in range(0, len(flat), size):
        raise_if_cancelled()
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
    largest = np.empty(diagonal.shape[1])
    active = np.arange(len(largest))
    x = np.full(len(largest), 1 + 1e-6)  # the trace bounds it from above
    for _ in range(MAX_STEPS):
        step = _laguerre(x, diagonal, off, n)
        done = ~(step > 4e-16)
        largest[active[done]] = x[done]
        if done.all():
            return largest
        keep = ~done
        active, x = active[keep], (x - step)[keep]
        if done.any():
            diagonal, off = diagonal[:, keep], off[:, keep]
    largest[active] = x
    return largest


def _laguerre(x: Array, diagonal: Array, off: Array, n: int) -> Array:
    """Laguerre's step down from x, by the pivots q of xI - T and their first two derivatives.

    Above the largest eigenvalue all pivots are positive. If one is not, rounding has moved x onto the eigenvalue or
    just below it, and no step remains.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        q, first, second = x - diagonal[0], np.ones_like(x), np.zeros_like(x)
        above, ratio = q > 0, first / q
        # p'/p and -(p'/p)' of the characteristic polynomial p, with an additional root at 0. If all roots were
        # (nearly) equal, the square root below would be only rounding error.
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
