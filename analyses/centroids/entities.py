"""Single rows in a plane of group means, from one slab read block by block in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stratalens.analyses.data.array_types import Array, Codes, Mask
from stratalens.analyses.data.slabs import Slab
from stratalens.store.errors import InputError

MAX_SAMPLE = 500  # rows of the fitting half that define the second axis of two groups
MEMORY_BYTES = 256 * 2**20  # a slab up to this size stays in memory between the two passes, a larger one is read twice


@dataclass(frozen=True)
class RowPlane:
    """Rows of held-out entities in a plane of group means.

    Attributes:
        rows: int64 array of shape (n,), rows of the entity dim.
        codes: int64 array of shape (n,), group of each row.
        coordinate: float32 array of shape (n, 2), along the two axes, in activation units, not centred.
        axes: float64 array of shape (2, features), unit vectors.
        centroid: float64 array of shape (groups, 2), means of `coordinate`; NaN for a group without rows here.
        left_out: number of rows in use with an activation that is not finite (a missing position).
    """

    rows: Codes
    codes: Codes
    coordinate: Array
    axes: Array
    centroid: Array
    left_out: int


def row_plane(
    slab: Slab,
    codes: Codes,
    units: Codes,
    count: int,
    seed: int,
    axes_of: Callable[[Array, Array, str], Array] | None = None,
) -> RowPlane:
    """Project the rows of one half of the entities into the plane fitted on the other half.

    Args:
        slab: one stage, layer and token position.
        codes: int64 array of shape (entity,), group of every row; -1 = in no group, not used.
        units: int64 array of shape (entity,), entity of every row.
        count: number of groups, at least two.
        seed: of the choice of the fitting half.
        axes_of: function of group means (groups, features), a sample of rows of the fitting half (n, features) and a
            description of the place; returns the axes. None = `plane_axes`.

    Raises:
        InputError: a group has no entity in the fitting half, or the centroids define no axis.
    """
    if slab.shape[1] != 1:
        raise InputError(f"the plane is of one token position, this data has {slab.shape[1]}; choose one of them")
    in_memory = list(_finite_blocks(slab)) if np.prod(slab.shape) * 4 <= MEMORY_BYTES else None
    fitting = choose_half(units, seed)

    def blocks() -> Iterator[tuple[Array, Array]]:
        yield from in_memory if in_memory is not None else _finite_blocks(slab)

    sums, sizes, finite = np.zeros((count, slab.shape[2])), np.zeros(count), 0
    sample = np.empty((0, slab.shape[2]), np.float32)
    for rows, values in blocks():
        if len(sample) < MAX_SAMPLE:
            usable = fitting[rows] & (codes[rows] >= 0)
            sample = np.concatenate([sample, values[usable][: MAX_SAMPLE - len(sample)]])
        finite += len(rows)
        member = (codes[rows][None] == np.arange(count)[:, None]) & fitting[rows][None]
        sums += member.astype(np.float32) @ values
        sizes += member.sum(axis=1)
    if (sizes == 0).any():
        raise InputError(
            f"{slab.where}: {int((sizes == 0).sum())} of {count} groups have no entity in the half that defines the "
            "axes; choose another seed, or a column with larger groups"
        )
    axes = (axes_of or plane_axes)(sums / sizes[:, None], sample, slab.where)
    held_out: list[Array] = []
    points: list[Array] = []
    for rows, values in blocks():
        use = ~fitting[rows] & (codes[rows] >= 0)
        held_out.append(rows[use])
        points.append(values[use] @ axes.T.astype(np.float32))
    index = np.concatenate([np.empty(0, np.int64), *held_out]).astype(np.int64)
    coordinate = np.concatenate([np.empty((0, 2), np.float32), *points])
    group = codes[index]
    size = np.bincount(group, minlength=count)
    with np.errstate(invalid="ignore"):
        centroid = np.stack([np.bincount(group, coordinate[:, c], count) for c in (0, 1)], axis=1) / size[:, None]
    return RowPlane(index, group, coordinate, axes, centroid, len(slab.rows) - finite)


def plane_axes(means: Array, rows: Array | None = None, where: str = "these groups") -> Array:
    """Compute the axes w1 and w2 of ordered groups from their means.

    w1 = unit(mean of last group - mean of first group). w2 = first principal component of the group means without w1
    (Krasheninnikov, Turner, Krueger 2025); its sign makes the middle group positive.

    Args:
        means: array of shape (groups, features), in the order of the groups.
        rows: not used.
        where: description of the groups, for messages.

    Returns:
        float64 array of shape (2, features).

    Raises:
        InputError: the first and the last mean are equal.

    Example:
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


def principal_axes(means: Array, rows: Array, where: str = "these groups") -> Array:
    """Compute the first two principal axes of group means, for groups without an order.

    Two groups have one such axis. The second one is then the widest direction of the rows across it.

    Args:
        means: array of shape (groups, features).
        rows: array of shape (n, features), sample of the rows.
        where: description of the groups, for messages.

    Returns:
        float64 array of shape (2, features); the entry of largest size of each axis is positive.

    Raises:
        InputError: all means are equal.

    Example:
        >>> means = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
        >>> principal_axes(means, means).round(6).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    centred = means - means.mean(0)
    _, size, vectors = np.linalg.svd(centred, full_matrices=False)
    if not size[0] > 1e-12 * max(float(np.abs(means).max()), 1e-300):
        raise InputError(f"{where}: all groups have the same mean, so there is no axis between them")
    first = vectors[0]
    if len(means) > 2 and size[1] > 1e-9 * size[0]:
        second = vectors[1]
    else:
        across = rows - rows.mean(0, dtype=np.float64)
        across = across - np.outer(across @ first, first)
        second = np.linalg.eigh(across @ across.T)[1][:, -1] @ across  # few rows: the small Gram matrix suffices
        length = float(np.linalg.norm(second))
        second = second / length if length > 0 else np.zeros_like(first)
    axes = np.stack([first, second])
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    return axes * np.where(signs < 0, -1.0, 1.0)[:, None]


def choose_half(units: Codes, seed: int) -> Mask:
    """Choose one half of the entities at random: True for all of their rows."""
    count = int(units.max(initial=-1)) + 1
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
    return chosen[units]


def _finite_blocks(slab: Slab) -> Iterator[tuple[Array, Array]]:
    """Blocks (rows, values of shape (n, features)) without the rows that miss this position."""
    for rows, values in slab.blocks():
        finite = np.isfinite(values[:, 0]).all(axis=-1)
        yield (rows, values[:, 0]) if finite.all() else (rows[finite], values[:, 0][finite])
