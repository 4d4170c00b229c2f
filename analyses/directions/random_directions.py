"""Directions without a meaning, as a null for interventions along a direction."""

from __future__ import annotations

from typing import Literal

import numpy as np

from stratalens.analyses.data.array_types import Array, Doubles, Floats

#: How random directions are drawn, with the words for it.
NULLS = {
    "covariance": "of the same length and from the covariance of the activations",
    "isotropic": "of the same length, isotropic",
    "orthogonal": "of the same length, from the covariance of the activations and orthogonal to the directions",
    "own": "of the same length, passed as null=",
}
NullKind = Literal["covariance", "isotropic", "orthogonal"]


def random_directions(
    activations: Floats, count: int, seed: int, kind: NullKind = "covariance", tested: Array | None = None
) -> Doubles:
    """Draw random unit vectors.

    A draw from the covariance is a random weighted sum of centred activations. With the same rows and seed, the weights
    are the same at every layer, so that a draw is one meaningless feature of the rows.

    Args:
        activations: float array of shape (rows, features).
        count: number of directions.
        seed: of the weights.
        kind: "covariance", "isotropic", or "orthogonal" (from the covariance, without the part along `tested`).
        tested: float array of shape (k, features), the directions that "orthogonal" avoids.

    Returns:
        float64 array of shape (count, features), unit rows; NaN where the activations do not vary.

    Example:
        >>> x = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 1.0]])
        >>> np.abs(random_directions(x, 2, seed=0)).tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    rng = np.random.default_rng(seed)
    rows, width = activations.shape
    if kind == "isotropic":
        drawn = rng.standard_normal((count, width))
    else:
        centred = activations.astype(np.float64) - activations.mean(axis=0, dtype=np.float64)
        drawn = rng.standard_normal((count, rows)) @ centred
        # A feature that is constant up to rounding has no variance.
        drawn[np.abs(drawn).max(axis=1) <= 1e-9 * max(float(np.abs(activations).max(initial=0)), 1e-30)] = 0
    if kind == "orthogonal" and tested is not None:
        usable = tested[np.isfinite(tested).all(axis=1)].astype(np.float64)
        basis = np.linalg.qr(usable.T)[0].T
        for _ in range(2):  # twice, for the rounding of the first
            drawn = drawn - (drawn @ basis.T) @ basis
    length = np.linalg.norm(drawn, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(length > 0, drawn / length, np.nan))
