"""Geometry of group centroids from inner products alone: order, straightness, coordinates in the plane.

Array functions. All of them take Gram matrices of slot sums (see resample.py) for
many resamples at once, so that the width of the activations no longer matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratalens.analyses.geometry.eigenvalues import largest_eigenvalue
from stratalens.analyses.geometry.resample import Halves
from stratalens.analyses.labels import Array

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
