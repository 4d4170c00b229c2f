"""Conjugate gradients for many systems side by side; what the systems are is in probe_systems.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stratalens.analyses.fitting.label_rows import Doubles

MAX_ITERATIONS = 40


def conjugate_gradients(
    product: Callable[[Doubles], Doubles],
    precondition: Callable[[Doubles], Doubles],
    right: Doubles,
    tol: float | Doubles = 1e-10,
    max_iter: int = MAX_ITERATIONS,
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Solve S symmetric positive definite systems side by side by preconditioned conjugate gradients.

    The flexible form (Polak and Ribiere's beta), as the preconditioner rounds in float32.

    Args:
        product: from (S, d) vectors to each system's matrix times its vector.
        precondition: the same for an approximate inverse.
        right: [array-like, shape: (S, d)].
        tol: on the residual relative to `right`, in the norm of the preconditioner; one, or one for each system.
        max_iter: most iterations.

    Returns:
        solutions (S, d) and whether each came within the tolerance (S,).

    >>> a = np.array([[2.0, 1.0], [1.0, 3.0]])
    >>> x, done = conjugate_gradients(lambda v: v @ a, lambda v: v, np.array([[3.0, 4.0]]))
    >>> x.round(6).tolist(), done.tolist()
    ([[1.0, 1.0]], [True])
    """
    found, residual = np.zeros_like(right), right.copy()
    ready = precondition(residual)
    direction = ready
    size = np.einsum("sd,sd->s", residual, ready)
    goal = np.square(tol) * size
    done = size <= goal
    for _ in range(max_iter):
        if done.all():
            break
        ahead = product(direction)
        curvature = np.einsum("sd,sd->s", direction, ahead)
        step = np.where(done | (curvature <= 0), 0, size / np.where(curvature > 0, curvature, 1))[:, None]
        found += step * direction
        before, residual = residual, residual - step * ahead
        ready = precondition(residual)
        new = np.einsum("sd,sd->s", residual, ready)
        gain = (new - np.einsum("sd,sd->s", before, ready)) / np.where(size > 0, size, 1)
        direction = ready + np.where(done, 0, gain)[:, None] * direction
        size = new
        done |= size <= goal
    return found, done
