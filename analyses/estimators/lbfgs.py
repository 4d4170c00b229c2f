"""L-BFGS for many convex problems at once, preconditioned, on numpy or cupy.

All problems of a slab (pairs x folds) advance together, so that one iteration is a few GEMMs with many columns instead
of thousands of matrix-vector products. One preconditioner, the curvature that all problems share, reduces the
iterations by a factor of ten to thirty. The solver stops on the gradient, like scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stratalens.analyses.data.array_types import Codes, Doubles, Mask
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.estimators.backend import namespace, to_numpy

Array = Any  # numpy.ndarray or cupy.ndarray

# Finished problems leave the batch when they are this share of it; leaving costs a copy.
REMOVAL_SHARE = 0.15
# The tolerance shrinks with a first gradient below this size, to a millionth at most.
SMALL_GRADIENT = 1e-3
# Iterations without a new smallest gradient after which rounding has stopped a problem.
MAX_STALLED = 12


class Objective(Protocol):
    """P convex problems, each at a point with D parameters, which the objective stores.

    Attributes:
        points: array of shape (P, D), the current points.
    """

    points: Array

    def gradient(self) -> Array:
        """Gradient at the current points, shape (P, D)."""
        ...

    def norm(self, gradient: Array) -> Array:
        """Size of a gradient (P, D) to compare with the tolerance, shape (P,)."""
        ...

    def precondition(self, vectors: Array) -> Array:
        """Apply an inverse curvature to (P, D) vectors; positive definite."""
        ...

    def set_direction(self, directions: Array) -> None:
        """Prepare a line search along (P, D) directions."""
        ...

    def slope(self, alpha: Array) -> tuple[Array, Array]:
        """First and second derivative along the directions at steps `alpha`, each of shape (P,)."""
        ...

    def move(self, alpha: Array) -> None:
        """Move the points by the steps of the last call of `slope`."""
        ...

    def select(self, mask: Array) -> None:
        """Remove the problems where `mask` (P,) is False."""
        ...


@dataclass(frozen=True)
class Minimum:
    """Last points of P problems.

    Attributes:
        points: array of shape (P, D).
        gradient: float64 array of shape (P,), size of the gradient at the points.
        n_iter: int64 array of shape (P,), iterations.
        converged: bool array of shape (P,), gradient within the tolerance.
    """

    points: Array
    gradient: Doubles
    n_iter: Codes
    converged: Mask


def minimise(
    objective: Objective, *, tol: float = 1e-6, max_iter: int = 1000, memory: int = 8, line_steps: int = 12
) -> Minimum:
    """Minimise P smooth convex problems together.

    L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5) with the objective's preconditioner as the
    initial inverse Hessian, scaled each time to the last curvature. The line search takes the full step if it halves
    the slope, and otherwise Newton steps on the line. These need no pass over the data, because the predictors are
    linear in the step.

    Args:
        objective: the problems; their points move.
        tol: a problem is finished when `objective.norm(gradient) <= tol`. If its first gradient is smaller than
            SMALL_GRADIENT, the tolerance is smaller by the same factor, because a gradient that is small at the start
            does not show that the minimum is near.
        max_iter: most iterations.
        memory: number of stored pairs of steps and gradient differences.
        line_steps: most evaluations in one line search.

    Returns:
        The points, with the size of the gradient at each; `converged` refers to this size alone.
    """
    gradient = objective.gradient()
    xp = namespace(gradient)
    n_problems = len(gradient)
    points = xp.array(objective.points)
    size = np.full(n_problems, np.inf)
    n_iter = np.full(n_problems, max_iter, dtype=np.int64)
    active = np.arange(n_problems)
    best = np.full(n_problems, np.inf)
    stalled = np.zeros(n_problems, dtype=np.int64)
    history: list[tuple[Array, Array, Array]] = []
    scale = xp.ones(n_problems, dtype=gradient.dtype)
    first = to_numpy(objective.norm(gradient)).astype(np.float64)
    goal = tol * np.clip(first / SMALL_GRADIENT, 1e-6, 1)

    for iteration in range(max_iter + 1):
        raise_if_cancelled()
        now = to_numpy(objective.norm(gradient)).astype(np.float64)
        stalled = np.where(now < best, 0, stalled + 1)
        best = np.minimum(now, best)
        done = (now <= goal[active]) | (stalled > MAX_STALLED) | ~np.isfinite(now)
        last = iteration == max_iter
        if last or done.all() or done.mean() >= REMOVAL_SHARE:
            leave = np.ones_like(done) if last else done
            points[xp.asarray(active[leave])] = objective.points[xp.asarray(leave)]
            size[active[leave]] = now[leave]
            n_iter[active[leave]] = iteration
            if leave.all():
                break
            stay = xp.asarray(~leave)
            objective.select(stay)
            active, best, stalled = active[~leave], best[~leave], stalled[~leave]
            gradient, scale = gradient[stay], scale[stay]
            history = [(s[stay], y[stay], r[stay]) for s, y, r in history]

        direction = -_two_loops(xp, objective, gradient, history, scale)
        descent = _dot(xp, gradient, direction)
        # Rounding can spoil a direction; the negative preconditioned gradient always descends.
        spoiled = ~(descent < 0)
        if bool(spoiled.any()):
            direction = xp.where(spoiled[:, None], -objective.precondition(gradient), direction)
            descent = _dot(xp, gradient, direction)
        objective.set_direction(direction)
        alpha = xp.ones(len(active), dtype=gradient.dtype)
        for trial in range(line_steps):
            slope, curvature = objective.slope(alpha)
            # Half of the slope is enough for a quasi-Newton step; late in the search any decrease is enough.
            steep = xp.abs(slope) > (0.5 if trial < line_steps // 2 else 0.95) * xp.abs(descent)
            if trial == line_steps - 1 or not bool(steep.any()):
                break
            newton = xp.maximum(alpha - slope / curvature, alpha * alpha.dtype.type(0.1))
            alpha = xp.where(steep, xp.minimum(newton, alpha * alpha.dtype.type(10)), alpha)
        objective.move(alpha)
        new_gradient = objective.gradient()
        step, change = direction * alpha[:, None], new_gradient - gradient
        product = _dot(xp, step, change)
        usable = product > 0
        rho = xp.where(usable, 1 / xp.where(usable, product, 1), 0)
        curved = _dot(xp, change, objective.precondition(change))
        scale = xp.where(usable & (curved > 0), product / xp.where(curved > 0, curved, 1), scale)
        history = [*history[-(memory - 1) :], (step, change, rho)]
        gradient = new_gradient
    return Minimum(points, size, n_iter, size <= goal)


def _two_loops(
    xp: Any, objective: Objective, gradient: Array, history: list[tuple[Array, Array, Array]], scale: Array
) -> Array:
    """Apply the estimated inverse Hessian to the gradient."""
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
