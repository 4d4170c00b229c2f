"""Single rows in the plane of the groups, from one slab read block by block in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stratalens.analyses.data.array_types import Array, Codes, Mask
from stratalens.analyses.data.slabs import Slab
from stratalens.store.errors import InputError

MAX_FITTED = 2000  # rows of the fitting half, evenly spaced, on which a caller's axes are fitted
MAX_SAMPLE = 500  # rows of the fitting half that define the second axis of two groups
MEMORY_BYTES = 256 * 2**20  # a slab up to this size stays in memory between the two passes, a larger one is read twice


@dataclass(frozen=True)
class RowPlane:
    """Rows of held-out entities in the plane (w1, w2).

    Attributes:
        rows: int64 array of shape (n,), rows of the entity dim.
        codes: int64 array of shape (n,), group of each row.
        coordinate: float32 array of shape (n, 2), along w1 and w2, in activation units, not centred.
        axes: float64 array of shape (2, features), unit vectors w1 and w2, or two principal components.
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
    ordered: bool = True,
    fit: Callable[[Array, Codes], Array] | None = None,
) -> RowPlane:
    """Project the rows of one half of the entities into the plane fitted on the other half.

    For ordered groups w1 = unit(mean of last group - mean of first group), and w2 = first principal component of the
    group means without w1 (Krasheninnikov, Turner, Krueger 2025); its sign makes the middle group positive. For others
    the axes are the two principal components of the group means; of two groups, the line through their means and the
    widest direction of the rows across it.

    Args:
        slab: one stage, layer and token position.
        codes: int64 array of shape (entity,), group of every row; -1 = in no group, not used.
        units: int64 array of shape (entity,), entity of every row.
        count: number of groups, at least two.
        seed: of the choice of the fitting half.
        ordered: whether the groups have an order.
        fit: axes in place of those above: from activations of shape (n, features) and groups of shape (n,), both of
            at most `MAX_FITTED` rows of the fitting half, to axes of shape (2, features).

    Raises:
        InputError: a group has no entity in the fitting half, the first and the last centroid of ordered groups
            coincide, or all centroids do.
    """
    if slab.shape[1] != 1:
        raise InputError(f"the plane is of one token position, this data has {slab.shape[1]}; choose one of them")
    in_memory = list(_finite_blocks(slab)) if np.prod(slab.shape) * 4 <= MEMORY_BYTES else None
    fitting = choose_half(units, seed)
    sampled = np.zeros(len(codes), dtype=bool)
    if fit is not None:
        usable = slab.rows[fitting[slab.rows] & (codes[slab.rows] >= 0)]
        sampled[usable[:: max(1, -(-len(usable) // MAX_FITTED))]] = True
    fitted: list[tuple[Array, Codes]] = []

    def blocks() -> Iterator[tuple[Array, Array]]:
        yield from in_memory if in_memory is not None else _finite_blocks(slab)

    sums, sizes, finite = np.zeros((count, slab.shape[2])), np.zeros(count), 0
    sample = np.empty((0, slab.shape[2]), np.float32)
    for rows, values in blocks():
        if count == 2 and len(sample) < MAX_SAMPLE:
            sample = np.concatenate([sample, values[fitting[rows] & (codes[rows] >= 0)]])[:MAX_SAMPLE]
        finite += len(rows)
        if fit is not None:
            fitted.append((values[sampled[rows]], codes[rows][sampled[rows]]))
        member = (codes[rows][None] == np.arange(count)[:, None]) & fitting[rows][None]
        sums += member.astype(np.float32) @ values
        sizes += member.sum(axis=1)
    if (sizes == 0).any():
        raise InputError(
            f"{slab.where}: {int((sizes == 0).sum())} of {count} groups have no entity in the half that defines the "
            "axes; choose another seed, or a column with larger groups"
        )
    if fit is not None:
        axes = fit(np.concatenate([v for v, _ in fitted]), np.concatenate([c for _, c in fitted]))
    else:
        axes = (plane_axes if ordered else principal_axes)(sums / sizes[:, None], slab.where)
        if count == 2:
            axes[1] = widest_across(axes[0], sample)
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


def plane_axes(means: Array, where: str = "these groups") -> Array:
    """Compute w1 and w2 from group means.

    Args:
        means: array of shape (groups, features), in the order of the groups.
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


def principal_axes(means: Array, where: str = "these groups") -> Array:
    """Compute the two principal components of group means, the axes for groups without an order.

    With two groups the second axis is a zero vector.

    Args:
        means: array of shape (groups, features).
        where: description of the groups, for messages.

    Returns:
        float64 array of shape (2, features). The last group is not below the first one on axis 1, and the middle group
        is not negative on axis 2.

    Raises:
        InputError: all means are equal.

    Example:
        >>> means = np.array([[0.0, -1.0, 0.0], [4.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> np.abs(principal_axes(means)).round(6).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    centred = means - means.mean(0)
    _, lengths, components = np.linalg.svd(centred, full_matrices=False)
    if not lengths[0] > 0:
        raise InputError(f"{where}: all groups have the same mean, so there is no axis between them")
    axes = np.zeros((2, means.shape[1]))
    used = lengths[:2] > 1e-9 * lengths[0]
    axes[: len(used)][used] = components[:2][used]
    along = centred @ axes.T
    flip = [along[-1, 0] < along[0, 0], along[len(means) // 2, 1] < 0]
    return np.where(np.array(flip)[:, None], -axes, axes)


def widest_across(axis: Array, rows: Array) -> Array:
    """Return the unit vector orthogonal to `axis` along which rows vary most; zeros if they do not vary.

    >>> rows = np.array([[0.0, 2.0, 0.0], [9.0, -2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> np.abs(widest_across(np.array([1.0, 0.0, 0.0]), rows)).round(1).tolist()
    [0.0, 1.0, 0.0]
    """
    across = rows - rows.mean(0, dtype=np.float64)
    across = across - np.outer(across @ axis, axis)
    direction = np.linalg.eigh(across @ across.T)[1][:, -1] @ across  # few rows: their inner products suffice
    length = float(np.linalg.norm(direction))
    if not length > 0:
        return np.zeros_like(axis)
    largest = direction[np.abs(direction).argmax()]
    return np.asarray(direction / length * (1.0 if largest > 0 else -1.0))


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
