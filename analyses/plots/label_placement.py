"""Where names stand beside points that may lie close together: never on each other, nor on a point.

A name stands above its point where there is room; otherwise further off in the direction with most room, and a
leader line joins the two. Places are found on a nominal page, since a figure's real size is known to a browser alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


_WIDTH, _HEIGHT = 480.0, 340.0  # pixels inside the axes of a figure as it is saved or shown in a report


_CHARACTER, _LINE, _POINT = 8.0, 15.0, 9.0  # width of a character, height of a line, radius to keep off a point


_ABOVE = 17.0  # of a name beside its own point


_TURNS = np.deg2rad([90, -90, 135, 45, -135, -45, 180, 0, 112, 68, -112, -68])


_REACHES = (_ABOVE, 28.0, 40.0, 54.0, 70.0, 90.0)


def place_names(x: Array, y: Array, names: Sequence[str], limits: tuple[float, float, float, float]) -> Array:
    """Centres of the names of points.

    Args:
        x, y: points, shape (points,), in units of the axes; NaN where there is none.
        names: one for each.
        limits: of the axes, (x0, x1, y0, y1).

    Returns:
        (points, 2) in units of the axes; NaN where the point is.

    >>> far = place_names(np.array([0.0, 1.0]), np.array([0.5, 0.5]), ["a", "b"], (-0.1, 1.1, 0, 1))
    >>> far.round(2).tolist()
    [[0.0, 0.55], [1.0, 0.55]]
    """
    x0, x1, y0, y1 = limits
    unit = np.array([(x1 - x0) / _WIDTH, (y1 - y0) / _HEIGHT])
    origin = np.array([x0, y0])
    points = (np.column_stack([x, y]) - origin) / unit
    halves = np.array([[len(name) * _CHARACTER / 2, _LINE / 2] for name in names]).reshape(-1, 2)
    placed = np.full_like(points, np.nan)
    shown = np.flatnonzero(np.isfinite(points).all(axis=1))
    # those in a crowd are placed last, around the names that have one place only
    order = sorted(shown, key=lambda i: (int((np.abs(points[shown] - points[i]).max(axis=1) < 30).sum()), i))
    for i in order:
        named, others = order[: order.index(i)], shown[shown != i]
        centres = np.concatenate([placed[named], points[others]])
        room = np.concatenate([halves[named], np.full((len(others), 2), _POINT)]) + halves[i]
        tried = points[i] + _away(halves[i, 0])
        placed[i] = tried[np.argmin(_costs(tried, points[i], halves[i], centres, room))]
    return np.asarray(placed * unit + origin)


def leaders(x: Array, y: Array, placed: Array, limits: tuple[float, float, float, float]) -> dict[str, Array]:
    """Lines from points to the names that stand away from them, as a table of segments (x0, y0, x1, y1)."""
    x0, x1, y0, y1 = limits
    unit = np.array([(x1 - x0) / _WIDTH, (y1 - y0) / _HEIGHT])
    points = np.column_stack([x, y])
    away = (placed - points) / unit
    far = np.hypot(*away.T) > _ABOVE + 1  # NaN is not
    begin = points[far]
    reach = np.hypot(*away[far].T)[:, None]
    end = begin + away[far] * (1 - (_LINE / 2) / reach) * unit
    return {"x0": begin[:, 0], "y0": begin[:, 1], "x1": end[:, 0], "y1": end[:, 1]}


def _away(half_width: float) -> Array:
    """Ways to go from a point, (ways, 2), the nearest first; further to the sides, where a name would reach back."""
    direction = np.column_stack([np.cos(_TURNS), np.sin(_TURNS)])
    beside = np.abs(direction[:, 0]) * max(0.0, half_width - _LINE / 2)
    reach = np.array(_REACHES)[:, None] + beside
    return np.asarray((reach[:, :, None] * direction).reshape(-1, 2))


def _costs(tried: Array, point: Array, half: Array, centres: Array, room: Array) -> Array:
    """Of each way: overlap with what is there and with the frame, then distance; the first of equals is taken."""
    overlap = np.clip(room - np.abs(tried[:, None] - centres), 0, None).prod(axis=2).sum(axis=1)
    frame = np.array([_WIDTH, _HEIGHT])
    outside = (np.clip(half - tried, 0, None) + np.clip(tried + half - frame, 0, None)).sum(axis=1)
    return np.asarray(50 * overlap + 50 * outside + np.hypot(*(tried - point).T).round(6))
