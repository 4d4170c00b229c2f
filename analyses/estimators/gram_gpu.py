"""Gram matrices and linear systems of ridge and LDA on a GPU, each system from its own matrix, in float64.

Counts, means and variances are small and come from the host. Gram matrices, their sums and the systems grow with the
square of the width; they are computed and solved on the device and stay there. Rows travel in batches. The code uses
the array API alone, so that array-api-strict can check it without a GPU.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from stratalens.analyses.data.array_types import Doubles
from stratalens.analyses.estimators.backend import Backend
from stratalens.analyses.estimators.gram import PRODUCT_ROWS, Rows
from stratalens.analyses.estimators.linear_systems import Systems

Array = Any  # of the backend's namespace, on its device

# Largest residual, relative to the right-hand side; with a larger one the matrix counts as singular.
RESIDUAL_TOL = 1e-8
# Eigenvalues of a singular matrix below this share of the largest count as zero.
RANK_TOL = 1e-12


class DeviceGrams:
    """X.T @ X of every label's rows in a training set, on a device in float64.

    The class subtracts the cells outside the training set, or adds those inside if they are fewer. It stores the
    matrices of all rows and of the last training set: 16 d**2 bytes a label.

    Args:
        backend: of the device.
        rows: on the host.
    """

    def __init__(self, backend: Backend, rows: Rows) -> None:
        self.backend, self.rows = backend, rows
        self.xp = array_namespace(backend.asarray(np.zeros(1)))
        self.totals = [self._gram([rows.block(g)]) for g in range(rows.labels)]
        self.last: tuple[int, list[Array]] | None = None

    def of(self, k: int) -> list[Array]:
        """Matrices of training set k, each of shape (d, d), one for each label."""
        sets = self.rows.cell_sets
        if self.last is None or not np.array_equal(sets[:, k], sets[:, self.last[0]]):
            self.last = None  # frees its matrices before the next ones need memory
            self.last = k, [self._of_label(g, k) for g in range(self.rows.labels)]
        return self.last[1]

    def measure(self, k: int, classes: Doubles, scales: Doubles, centres: Doubles) -> tuple[Doubles, Doubles]:
        """Trace and squared Frobenius norm of the scaled scatter of each class in training set k.

        Args:
            k: training set.
            classes: float64 array of shape (C, labels), labels that make up each class.
            scales: float64 array of shape (C, d), scale of every feature.
            centres: float64 array of shape (C, d).

        Returns:
            (trace, square) of scale * (sum of x x^T) * scale - centre centre^T, each of shape (C,).
        """
        grams, (trace, square) = self.of(k), np.zeros((2, len(classes)))
        for c, labels in enumerate(classes):
            scale, centre = self.backend.asarray(scales[c]), self.backend.asarray(centres[c])
            total = functools.reduce(operator.add, [grams[int(g)] for g in np.flatnonzero(labels)])
            scatter = total * scale[:, None] * scale[None, :] - centre[:, None] * centre[None, :]
            trace[c] = float(self.xp.linalg.trace(scatter))
            square[c] = float(self.xp.sum(scatter * scatter))
        return trace, square

    def _of_label(self, g: int, k: int) -> Array:
        inside, outside = self.rows.sides(g, k)
        if not len(outside):
            return self.totals[g]
        if len(outside) <= len(inside):
            return self.totals[g] - self._gram([self.rows.cell(int(c)) for c in outside])
        return self._gram([self.rows.cell(int(c)) for c in inside])

    def _gram(self, ranges: list[slice]) -> Array:
        d = self.rows.X.shape[1]
        total = self.backend.asarray(np.zeros((d, d)))
        for rows in ranges:
            for start in range(rows.start, rows.stop, PRODUCT_ROWS):
                x = self.backend.asarray(self.rows.X[start : min(rows.stop, start + PRODUCT_ROWS)])
                x = self.xp.astype(x, self.xp.float64, copy=False)
                total += x.T @ x
        return total


def solve_on_device(systems: Systems, grams: DeviceGrams) -> Doubles:
    """Solve all systems on the device.

    Returns:
        float64 array of shape (P, K, d) on the host; the least-squares solution of smallest norm of a singular system.
    """
    n_pairs, n_sets, _ = systems.right.shape
    out = np.zeros(systems.right.shape)
    for k in range(n_sets):
        label_grams = grams.of(k)
        for p in range(n_pairs):
            out[p, k] = _solve(grams, _matrix(systems, grams, label_grams, p, k), systems.right[p, k])
    return out


def _matrix(systems: Systems, grams: DeviceGrams, label_grams: list[Array], p: int, k: int) -> Array:
    """Sum of weight (x - mean) (x - mean)^T over the rows of both classes, and the diagonal."""
    asarray, xp = grams.backend.asarray, grams.xp
    diagonal = asarray(systems.diagonal[p, k])
    matrix = xp.eye(diagonal.shape[0], dtype=xp.float64, device=diagonal.device) * diagonal
    for side, sign in enumerate((-1, 1)):
        weight, count = systems.weight[side, p, k], systems.count[side, p, k]
        for g in np.flatnonzero(systems.sign[:, p] == sign):
            matrix += label_grams[int(g)] * float(weight)
        centre = asarray(np.sqrt(weight * count) * systems.mean[side, p, k])
        matrix -= centre[:, None] * centre[None, :]
    return matrix


def _solve(grams: DeviceGrams, matrix: Array, right: Doubles) -> Doubles:
    """Solve one system, scaled to a diagonal of ones; a singular one by its eigenvectors."""
    xp, to_numpy = grams.xp, grams.backend.to_numpy
    diagonal = xp.linalg.diagonal(matrix)
    one = xp.ones_like(diagonal)
    scale = one / xp.sqrt(xp.where(diagonal > 0, diagonal, one))
    matrix = matrix * scale[:, None] * scale[None, :]
    scaled_right = grams.backend.asarray(right) * scale
    try:
        solution = xp.linalg.solve(matrix, scaled_right[:, None])[:, 0]
    except np.linalg.LinAlgError:  # NumPy raises; CuPy returns values that are not finite
        solution = scaled_right * float("nan")
    residual = float(xp.sum((matrix @ solution - scaled_right) ** 2))
    if not residual <= RESIDUAL_TOL**2 * float(xp.sum(scaled_right**2)):
        values, vectors = xp.linalg.eigh(matrix / scale[:, None] / scale[None, :])
        nonzero = values > RANK_TOL * float(xp.max(values))
        one = xp.ones_like(values)
        inverse = xp.where(nonzero, one / xp.where(nonzero, values, one), values * 0.0)
        return np.asarray(to_numpy(vectors @ (inverse * (vectors.T @ grams.backend.asarray(right)))))
    return np.asarray(to_numpy(solution * scale))
