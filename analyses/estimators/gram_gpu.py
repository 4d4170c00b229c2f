"""Ridge and LDA on a GPU: the systems of probe_systems.py, each from its own matrix, in float64.

Counts, means and variances are small and come from the host; what grows with the square of the width (Gram matrices,
their sums, the systems) is made, measured and solved on the device and stays there. Rows travel in pieces. Written
against the array API alone, so that array-api-strict can hold it to what a device allows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from stratalens.analyses.estimators.backend import Backend
from stratalens.analyses.estimators.gram import PRODUCT_ROWS, Doubles, Rows
from stratalens.analyses.estimators.linear_systems import Systems

Array = Any  # of the backend's namespace, on its device


# Of the residual against the right-hand side, beyond which a matrix is taken for singular.
RESIDUAL = 1e-8


# Eigenvalues below this share of the largest are taken for zero, where a matrix is singular.
RANK = 1e-12


class DeviceGrams:
    """X.T @ X of every label's rows in a training set, on a device in float64.

    By subtraction of the cells that are left out, where they are fewer. Two sets of matrices are kept, that of all
    rows and that of the last training set: 16 d**2 bytes a label.

    Args:
        backend: whose device.
        rows: on the host.
    """

    def __init__(self, backend: Backend, rows: Rows) -> None:
        self.backend, self.rows = backend, rows
        self.xp = array_namespace(backend.asarray(np.zeros(1)))
        self.whole = [self._gram([rows.block(g)]) for g in range(rows.labels)]
        self.last: tuple[int, list[Array]] | None = None

    def of(self, k: int) -> list[Array]:
        """The matrices [shape: (d, d)] of training set k, one for each label."""
        sets = self.rows.cell_sets
        if self.last is None or not np.array_equal(sets[:, k], sets[:, self.last[0]]):
            self.last = None  # its matrices are let go before others are made
            self.last = k, [self._of_label(g, k) for g in range(self.rows.labels)]
        return self.last[1]

    def measure(self, k: int, classes: Doubles, scales: Doubles, centres: Doubles) -> tuple[Doubles, Doubles]:
        """As shrinkage.Measure says."""
        grams, (trace, square) = self.of(k), np.zeros((2, len(classes)))
        for c, labels in enumerate(classes):
            scale, centre = self.backend.asarray(scales[c]), self.backend.asarray(centres[c])
            scatter = sum_of([grams[int(g)] for g in np.flatnonzero(labels)]) * scale[:, None] * scale[None, :]
            scatter = scatter - centre[:, None] * centre[None, :]
            trace[c] = float(self.xp.linalg.trace(scatter))
            square[c] = float(self.xp.sum(scatter * scatter))
        return trace, square

    def _of_label(self, g: int, k: int) -> Array:
        cells = np.arange(len(self.rows.cell_label))[self.rows.cells_of(g)]
        held, left_out = (cells[self.rows.cell_sets[cells, k] == wanted] for wanted in (True, False))
        if not len(left_out):
            return self.whole[g]
        if len(left_out) <= len(held):
            return self.whole[g] - self._gram([self.rows.cell(int(c)) for c in left_out])
        return self._gram([self.rows.cell(int(c)) for c in held])

    def _gram(self, parts: list[slice]) -> Array:
        d = self.rows.X.shape[1]
        total = self.backend.asarray(np.zeros((d, d)))
        for part in parts:
            for start in range(part.start, part.stop, PRODUCT_ROWS):
                x = self.backend.asarray(self.rows.X[start : min(part.stop, start + PRODUCT_ROWS)])
                x = self.xp.astype(x, self.xp.float64, copy=False)
                total += x.T @ x
        return total


def solve_on_device(systems: Systems, grams: DeviceGrams) -> Doubles:
    """Solutions, (P, K, d) float64 on the host; of least squares and smallest norm where a matrix is singular."""
    n_pairs, n_sets, _ = systems.right.shape
    out = np.zeros(systems.right.shape)
    for k in range(n_sets):
        each = grams.of(k)
        for p in range(n_pairs):
            out[p, k] = _solve(grams, _matrix(systems, grams, each, p, k), systems.right[p, k])
    return out


def _matrix(systems: Systems, grams: DeviceGrams, each: list[Array], p: int, k: int) -> Array:
    """Sum of weight (x - mean) (x - mean)^T over the rows of both classes, and the diagonal."""
    asarray, xp = grams.backend.asarray, grams.xp
    diagonal = asarray(systems.diagonal[p, k])
    matrix = xp.eye(diagonal.shape[0], dtype=xp.float64, device=diagonal.device) * diagonal
    for side, sign in enumerate((-1, 1)):
        weight, count = systems.weight[side, p, k], systems.count[side, p, k]
        for g in np.flatnonzero(systems.sign[:, p] == sign):
            matrix += each[int(g)] * float(weight)
        centre = asarray(np.sqrt(weight * count) * systems.mean[side, p, k])
        matrix -= centre[:, None] * centre[None, :]
    return matrix


def _solve(grams: DeviceGrams, matrix: Array, right: Doubles) -> Doubles:
    """One system, scaled to a diagonal of ones; by its eigenvectors where it is singular."""
    xp, to_numpy = grams.xp, grams.backend.to_numpy
    diagonal = xp.linalg.diagonal(matrix)
    one = xp.ones_like(diagonal)
    scale = one / xp.sqrt(xp.where(diagonal > 0, diagonal, one))
    matrix = matrix * scale[:, None] * scale[None, :]
    wanted = grams.backend.asarray(right) * scale
    try:
        found = xp.linalg.solve(matrix, wanted[:, None])[:, 0]
    except np.linalg.LinAlgError:  # NumPy raises where CuPy returns what is not finite
        found = wanted * float("nan")
    residual = float(xp.sum((matrix @ found - wanted) ** 2))
    if not residual <= RESIDUAL**2 * float(xp.sum(wanted**2)):
        values, vectors = xp.linalg.eigh(matrix / scale[:, None] / scale[None, :])
        some = values > RANK * float(xp.max(values))
        inverse = xp.where(some, xp.ones_like(values) / xp.where(some, values, xp.ones_like(values)), values * 0.0)
        return np.asarray(to_numpy(vectors @ (inverse * (vectors.T @ grams.backend.asarray(right)))))
    return np.asarray(to_numpy(found * scale))


def sum_of(matrices: list[Array]) -> Array:
    """Their sum; one alone is not copied."""
    first, *others = matrices
    for other in others:
        first = first + other
    return first
