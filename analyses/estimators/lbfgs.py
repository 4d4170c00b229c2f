"""Many convex problems at once: a batched, preconditioned L-BFGS on numpy or cupy.

All problems of a slab (pairs x folds) move in step, so that each iteration is a handful of GEMMs with many
columns instead of thousands of matrix-vector products, and one preconditioner (the curvature that all of
them share) cuts the iterations by a factor of ten to thirty. It stops on the gradient, as scikit-learn does.
What is minimised lives in logistic.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stratalens.analyses.estimators.backend import namespace, to_numpy

Array = Any  # numpy.ndarray or cupy.ndarray


# Problems that are done leave the batch once they are this share of it (leaving costs a copy).
LEAVE_AT = 0.15


# Of a gradient at the start, below which the tolerance shrinks with it, to a millionth at most.
SMALL = 1e-3


# Iterations without a new smallest gradient after which a problem counts as stuck at rounding.
PATIENCE = 12


class Objective(Protocol):
    """P convex problems, each at a point with D parameters; it remembers where it stands."""

    def gradient(self) -> Array:
        """Gradient at the current points, shape (P, D)."""
        ...

    def size_of(self, gradient: Array) -> Array:
        """What is compared with the tolerance, shape (P,)."""
        ...

    def precondition(self, vectors: Array) -> Array:
        """An inverse curvature applied to (P, D) vectors; positive definite."""
        ...

    def look(self, directions: Array) -> None:
        """Get ready to move along (P, D) directions."""
        ...

    def slope(self, alpha: Array) -> tuple[Array, Array]:
        """First and second derivative along the directions at steps `alpha`, each shape (P,)."""
        ...

    def move(self, alpha: Array) -> None:
        """Move by the steps whose slope was asked for last."""
        ...

    def points(self) -> Array:
        """The current points, shape (P, D)."""
        ...

    def keep(self, mask: Array) -> None:
        """Drop the problems where `mask` (P,) is False."""
        ...


@dataclass(frozen=True)
class Minimum:
    """Where P problems ended.

    Attributes:
        points: [array-like, shape: (P, D)] the last points.
        gradient: [array-like, shape: (P,)] size of the gradient there.
        iterations: [array-like, shape: (P,)] int64.
        converged: [array-like, shape: (P,)] gradient within the tolerance.
    """

    points: Array
    gradient: npt.NDArray[np.float64]
    iterations: npt.NDArray[np.int64]
    converged: npt.NDArray[np.bool_]


def minimise(
    objective: Objective, *, tol: float = 1e-6, max_iter: int = 1000, memory: int = 8, line_steps: int = 12
) -> Minimum:
    """Minimise P smooth convex problems together.

    L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5) with the objective's
    preconditioner as the initial inverse Hessian, scaled each time to the last curvature seen. The line
    search takes the full step where it halves the slope, else Newton steps on the line, which cost no
    pass over the data because the predictors are linear in the step.

    Args:
        objective: the problems; it is moved.
        tol: a problem is done when `objective.size_of(gradient) <= tol`, or `tol` times the size at the start by
            SMALL where that is less: a gradient that is small from the beginning says nothing of being near.
        max_iter: most iterations.
        memory: pairs of steps and gradient differences that are kept.
        line_steps: most evaluations in one line search.

    Returns:
        The points, with the size of the gradient at each: convergence is a statement about that alone.
    """
    gradient = objective.gradient()
    xp = namespace(gradient)
    n_problems = len(gradient)
    points = xp.array(objective.points())
    size = np.full(n_problems, np.inf)
    iterations = np.full(n_problems, max_iter, dtype=np.int64)
    active = np.arange(n_problems)
    best = np.full(n_problems, np.inf)
    since = np.zeros(n_problems, dtype=np.int64)
    history: list[tuple[Array, Array, Array]] = []
    scale = xp.ones(n_problems, dtype=gradient.dtype)
    goal: npt.NDArray[np.float64] | None = None  # of each problem, known once its first gradient is measured

    for iteration in range(max_iter + 1):
        now = to_numpy(objective.size_of(gradient)).astype(np.float64)
        if goal is None:
            goal = tol * np.clip(now / SMALL, 1e-6, 1)
        since = np.where(now < best, 0, since + 1)
        best = np.minimum(now, best)
        done = (now <= goal[active]) | (since > PATIENCE) | ~np.isfinite(now)
        last = iteration == max_iter
        if last or done.all() or done.mean() >= LEAVE_AT:
            leave = np.ones_like(done) if last else done
            points[xp.asarray(active[leave])] = objective.points()[xp.asarray(leave)]
            size[active[leave]] = now[leave]
            iterations[active[leave]] = iteration
            if leave.all():
                break
            stay = xp.asarray(~leave)
            objective.keep(stay)
            active, best, since = active[~leave], best[~leave], since[~leave]
            gradient, scale = gradient[stay], scale[stay]
            history = [(s[stay], y[stay], r[stay]) for s, y, r in history]

        direction = -_two_loops(xp, objective, gradient, history, scale)
        down = _dot(xp, gradient, direction)
        # Rounding can spoil a direction; the preconditioned gradient always goes down.
        spoiled = ~(down < 0)
        if bool(spoiled.any()):
            direction = xp.where(spoiled[:, None], -objective.precondition(gradient), direction)
            down = _dot(xp, gradient, direction)
        objective.look(direction)
        alpha = xp.ones(len(active), dtype=gradient.dtype)
        for trial in range(line_steps):
            slope, curvature = objective.slope(alpha)
            # Half the slope gone is plenty for a quasi-Newton step; late in the search any decrease will do.
            steep = xp.abs(slope) > (0.5 if trial < line_steps // 2 else 0.95) * xp.abs(down)
            if trial == line_steps - 1 or not bool(steep.any()):
                break
            newton = xp.maximum(alpha - slope / curvature, alpha * alpha.dtype.type(0.1))
            alpha = xp.where(steep, xp.minimum(newton, alpha * alpha.dtype.type(10)), alpha)
        objective.move(alpha)
        moved = objective.gradient()
        step, change = direction * alpha[:, None], moved - gradient
        bend = _dot(xp, step, change)
        fine = bend > 0
        rho = xp.where(fine, 1 / xp.where(fine, bend, 1), 0)
        curved = _dot(xp, change, objective.precondition(change))
        scale = xp.where(fine & (curved > 0), bend / xp.where(curved > 0, curved, 1), scale)
        history = [*history[-(memory - 1) :], (step, change, rho)]
        gradient = moved
    return Minimum(points, size, iterations, size <= (0 if goal is None else goal))


def _two_loops(
    xp: Any, objective: Objective, gradient: Array, history: list[tuple[Array, Array, Array]], scale: Array
) -> Array:
    """The inverse Hessian's estimate applied to the gradient."""
    vector = gradient
    weights: list[Array] = []
    for step, change, rho in reversed(history):
        weight = rho * _dot(xp, step, vector)
        weights.append(weight)
        vector = vector - weight[:, None] * change
    vector = objective.precondition(vector) * scale[:, None]
    for (step, change, rho), weight in zip(history, reversed(weights), strict=True):
        vector = vector + (weight - rho * _dot(xp, change, vector))[:, None] * step
    return vector


def _dot(xp: Any, a: Array, b: Array) -> Array:
    return xp.einsum("pd,pd->p", a, b)
