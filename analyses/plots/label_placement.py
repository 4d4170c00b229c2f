"""Positions of point labels that overlap neither each other nor a point.

A label is placed above its point where there is room. Otherwise it is placed further away and a leader line
joins the two. Positions refer to a nominal page, because only the browser knows the real size of a figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# All sizes are in pixels of the nominal page: the area inside the axes of a saved figure or a report figure.
_WIDTH, _HEIGHT = 480.0, 340.0
_CHARACTER_WIDTH, _LINE_HEIGHT = 8.0, 15.0
_POINT_RADIUS = 9.0
_DISTANCE_ABOVE = 17.0  # from a point to the label directly above it
_DISTANCES = (_DISTANCE_ABOVE, 28.0, 40.0, 54.0, 70.0, 90.0)
_DIRECTIONS = np.deg2rad([90, -90, 135, 45, -135, -45, 180, 0, 112, 68, -112, -68])


def label_positions(x: Array, y: Array, names: Sequence[str], limits: tuple[float, float, float, float]) -> Array:
    """Return label centres of shape (points, 2) in axis units.

    Values are NaN where a point is NaN.

    >>> far = label_positions(np.array([0.0, 1.0]), np.array([0.5, 0.5]), ["a", "b"], (-0.1, 1.1, 0, 1))
    >>> far.round(2).tolist()
    [[0.0, 0.55], [1.0, 0.55]]
    """
    x0, x1, y0, y1 = limits
    pixel = np.array([(x1 - x0) / _WIDTH, (y1 - y0) / _HEIGHT])
    origin = np.array([x0, y0])
    points = (np.column_stack([x, y]) - origin) / pixel
    half_sizes = np.array([[len(name) * _CHARACTER_WIDTH / 2, _LINE_HEIGHT / 2] for name in names]).reshape(-1, 2)
    placed = np.full_like(points, np.nan)
    shown = np.flatnonzero(np.isfinite(points).all(axis=1))
    # Labels in crowded areas come last: they have more than one possible position.
    order = sorted(shown, key=lambda i: (int((np.abs(points[shown] - points[i]).max(axis=1) < 30).sum()), i))
    for i in order:
        labelled, others = order[: order.index(i)], shown[shown != i]
        centres = np.concatenate([placed[labelled], points[others]])
        clearance = np.concatenate([half_sizes[labelled], np.full((len(others), 2), _POINT_RADIUS)]) + half_sizes[i]
        candidates = points[i] + _candidate_offsets(half_sizes[i, 0])
        costs = _overlap_costs(candidates, points[i], half_sizes[i], centres, clearance)
        placed[i] = candidates[np.argmin(costs)]
    return np.asarray(placed * pixel + origin)


def leader_lines(x: Array, y: Array, labels: Array, limits: tuple[float, float, float, float]) -> dict[str, Array]:
    """Return lines from points to their distant labels, as a table of segments."""
    x0, x1, y0, y1 = limits
    pixel = np.array([(x1 - x0) / _WIDTH, (y1 - y0) / _HEIGHT])
    points = np.column_stack([x, y])
    offset = (labels - points) / pixel
    distant = np.hypot(*offset.T) > _DISTANCE_ABOVE + 1  # False for NaN
    start = points[distant]
    distance = np.hypot(*offset[distant].T)[:, None]
    end = start + offset[distant] * (1 - (_LINE_HEIGHT / 2) / distance) * pixel
    return {"x0": start[:, 0], "y0": start[:, 1], "x1": end[:, 0], "y1": end[:, 1]}


def _candidate_offsets(half_width: float) -> Array:
    """Return offsets from a point, nearest first.

    Sideways offsets add the width of the label.
    """
    direction = np.column_stack([np.cos(_DIRECTIONS), np.sin(_DIRECTIONS)])
    sideways = np.abs(direction[:, 0]) * max(0.0, half_width - _LINE_HEIGHT / 2)
    distance = np.array(_DISTANCES)[:, None] + sideways
    return np.asarray((distance[:, :, None] * direction).reshape(-1, 2))


def _overlap_costs(candidates: Array, point: Array, half_size: Array, centres: Array, clearance: Array) -> Array:
    """Return the cost of each candidate: overlap, then distance from the point."""
    overlap = np.clip(clearance - np.abs(candidates[:, None] - centres), 0, None).prod(axis=2).sum(axis=1)
    frame = np.array([_WIDTH, _HEIGHT])
    outside = np.clip(half_size - candidates, 0, None) + np.clip(candidates + half_size - frame, 0, None)
    distance = np.hypot(*(candidates - point).T).round(6)
    return np.asarray(50 * overlap + 50 * outside.sum(axis=1) + distance)
