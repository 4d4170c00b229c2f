"""Single rows in the plane (w1, w2), from one slab read block by block: memory is a few blocks, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.slabs import Slab
from stratalens.store.errors import InputError

KEEP = 256 * 2**20  # a slab up to this size is kept between the two passes, a larger one is read twice


@dataclass(frozen=True)
class RowPlane:
    """Rows that the plane was not made from, in that plane.

    Attributes:
        rows: [array-like, shape: (n,)] int64 rows of the entity dim.
        codes: [array-like, shape: (n,)] int64 group of each row.
        coordinate: [array-like, shape: (n, 2)] float32 along w1 and w2, activation units, not centred.
        axes: [array-like, shape: (2, F)] float64 unit vectors w1 and w2.
        centroid: [array-like, shape: (G, 2)] means of `coordinate`; NaN for a group without a row here.
        left_out: rows that were asked for, but have an activation that is not finite (a position they lack).
    """

    rows: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    coordinate: Array
    axes: Array
    centroid: Array
    left_out: int


def row_plane(
    slab: Slab, codes: npt.NDArray[np.int64], units: npt.NDArray[np.int64], count: int, seed: int
) -> RowPlane:
    """Project the rows of one half of the entities into the plane made from the other half.

    Args:
        slab: one stage, layer and token position.
        codes: [array-like, shape: (entity,)] group of every row; -1 = in none, not used.
        units: [array-like, shape: (entity,)] which entity every row is about.
        count: number of groups G, at least two.
        seed: which half of the entities the axes are made from.

    Raises:
        InputError: a group has no entity in the half that makes the axes, or the first and the last
            centroid coincide.

    w1 = unit(mean of last group - mean of first group); w2 = first principal component of the group
    means without w1 (Krasheninnikov, Turner, Krueger 2025), its sign such that the middle group is positive.
    """
    if slab.shape[1] != 1:
        raise InputError(f"the plane is of one token position, this data has {slab.shape[1]}; choose one of them")
    kept = list(_finite(slab)) if np.prod(slab.shape) * 4 <= KEEP else None
    first = half(units, seed)

    def blocks() -> Iterator[tuple[Array, Array]]:
        yield from kept if kept is not None else _finite(slab)

    sums, sizes, seen = np.zeros((count, slab.shape[2])), np.zeros(count), 0
    for rows, values in blocks():
        seen += len(rows)
        member = (codes[rows][None] == np.arange(count)[:, None]) & first[rows][None]
        sums += member.astype(np.float32) @ values
        sizes += member.sum(axis=1)
    if (sizes == 0).any():
        raise InputError(
            f"{slab.where}: {int((sizes == 0).sum())} of {count} groups have no entity in the half that makes the "
            "axes; take another seed, or a column with larger groups"
        )
    axes = plane_axes(sums / sizes[:, None], slab.where)
    shown: list[Array] = []
    points: list[Array] = []
    for rows, values in blocks():
        use = ~first[rows] & (codes[rows] >= 0)
        shown.append(rows[use])
        points.append(values[use] @ axes.T.astype(np.float32))
    index = np.concatenate([np.empty(0, np.int64), *shown]).astype(np.int64)
    coordinate = np.concatenate([np.empty((0, 2), np.float32), *points])
    group = codes[index]
    number = np.bincount(group, minlength=count)
    with np.errstate(invalid="ignore"):
        centroid = np.stack([np.bincount(group, coordinate[:, c], count) for c in (0, 1)], axis=1) / number[:, None]
    return RowPlane(index, group, coordinate, axes, centroid, len(slab.rows) - seen)


def plane_axes(means: Array, where: str = "these groups") -> Array:
    """w1 and w2, shape (2, F), of group means (G, F) in the order of the groups.

    >>> plane_axes(np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0], [4.0, 0.0, 0.0]])).round(6).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    w1 = means[-1] - means[0]
    length = np.linalg.norm(w1)
    if not length > 0:
        raise InputError(f"{where}: the first and the last group have the same mean, so there is no axis between them")
    w1 = w1 / length
    rest = means - means.mean(0)
    rest -= np.outer(rest @ w1, w1)
    w2 = np.linalg.svd(rest, full_matrices=False)[2][0]
    w2 = w2 - (w2 @ w1) * w1
    size = np.linalg.norm(w2)
    w2 = w2 / size if size > 0 else np.zeros_like(w2)
    return np.stack([w1, -w2 if rest[len(means) // 2] @ w2 < 0 else w2])


def half(units: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """True for rows of one half of the entities; all rows of an entity are on the same side."""
    count = int(units.max(initial=-1)) + 1
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
    return chosen[units]


def _finite(slab: Slab) -> Iterator[tuple[Array, Array]]:
    """Blocks (rows, values (n, F)) without the rows that lack this position."""
    for rows, values in slab.blocks():
        whole = np.isfinite(values[:, 0]).all(axis=-1)
        yield (rows, values[:, 0]) if whole.all() else (rows[whole], values[:, 0][whole])
