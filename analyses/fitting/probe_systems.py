"""Many linear systems whose matrices are scatters of shared rows: solved together, in float32 and yet exactly.

Ridge and LDA ask for M u = r with M = sum_i c_i (x_i - m)(x_i - m)^T + diagonal, for every pair of groups and
every fold. Conjugate gradients solve all of them side by side: their products with M are two products with the rows
themselves, in the dtype of the data, and the residual is taken in float64 until it is as small as asked, so that what
float32 has rounded is mended. Where pairs and folds are samples of the rows large enough to be alike, one Cholesky
factor of all rows is the preconditioner of them all; else each system has the factor of its own matrix, from the Gram
matrices of its groups in its fold. What the systems mean is in closed_form.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stratalens.analyses.fitting.label_rows import Doubles, Floats, Rows

# Of the residual, in the norm of the preconditioner, against the right-hand side; for data of each size of item.
TOLERANCE = {4: 5e-5, 8: 1e-10}
INNER = {4: 2e-3, 8: 1e-10}  # the same for products in the dtype of the data, before the residual is taken anew
REFINEMENTS = 5
MAX_ITERATIONS = 40
# First try of what is added to the factored matrix, in units of its diagonal, so that it stays positive definite.
JITTER = {4: 1e-7, 8: 1e-15}
FACTOR_BYTES = 2**28  # factors in memory at a time
ALIKE = 16.0  # largest condition number against the common factor: about twenty iterations

Precondition = Callable[[Doubles], Doubles]
Places = list[tuple[int, int]]


@dataclass(frozen=True)
class Systems:
    """P x K systems over shared rows; each class of a system is a union of labels.

    Attributes:
        rows: what they share.
        sign: [array-like, shape: (labels, P)] -1 or +1: the class of a label; 0: not in these systems.
        mean: [array-like, shape: (2, P, K, d)] that rows of the negative, positive class are centred on.
        count: [array-like, shape: (2, P, K)] rows of each class.
        right: [array-like, shape: (P, K, d)].
        weight: [array-like, shape: (2, P, K)] what a row of each class counts.
        diagonal: [array-like, shape: (P, K, d)] what is added.
    """

    rows: Rows
    sign: npt.NDArray[np.int8]
    mean: Doubles
    count: Doubles
    right: Doubles
    weight: Doubles
    diagonal: Doubles

    def solve(self) -> Doubles:
        """Solutions, (P, K, d) float64; of least squares and smallest norm where a matrix is singular."""
        n_pairs, n_sets, d = self.right.shape
        out = np.zeros((n_pairs, n_sets, d))
        alike = self._alike()
        left = [(p, k) for k in range(n_sets) for p in range(n_pairs) if not alike[p, k]]
        together = [(p, k) for k in range(n_sets) for p in range(n_pairs) if alike[p, k]]
        if together:
            task = _Task(self, together)
            found, done = task.solve(self._common_factor(together))
            out[task.pairs, task.sets] = found
            left += [place for place, solved in zip(together, done, strict=True) if not solved]
        left.sort(key=lambda place: place[1])
        room = max(1, FACTOR_BYTES // (d * d * self.rows.X.itemsize))
        grams_of: Callable[[int], Floats] | None = None
        for begin in range(0, len(left), room):
            task = _Task(self, left[begin : begin + room])
            grams_of = grams_of or self.rows.grams()
            found, done = task.solve(self._own_factors(task.places, grams_of))
            for s in np.flatnonzero(~done):
                found[s] = task.directly(int(s))
            out[task.pairs, task.sets] = found
        return out

    def _alike(self) -> npt.NDArray[np.bool_]:
        """Which systems have rows enough for their matrices to be like that of all rows, (P, K).

        Of n rows that are a share 1 - f of N random ones, the scatter has eigenvalues against that of all N within
        1 - (sqrt(f (1 - g)) -+ sqrt(g (1 - f)))**2 with g = d / N (Wachter, 1978), as long as n > d.
        """
        n, d = self.count.sum(axis=0), self.right.shape[2]
        total = float(self.rows.inside.any(axis=1).sum())
        lost, width = 1 - n / total, min(d / total, 1.0)
        a, b = np.sqrt(lost * (1 - width)), np.sqrt(width * (1 - lost))
        low, high = 1 - (a + b) ** 2, 1 - (a - b) ** 2
        scattered = (self.weight * self.count).sum(axis=0) > 0  # not where all is diagonal
        return np.asarray((n > d) & (high <= ALIKE * low) & scattered)

    def _common_factor(self, places: Places) -> Precondition:
        """From the scatter of all rows around their labels' means, with the mean diagonal of the systems."""
        rows, dtype, d = self.rows, self.rows.X.dtype, self.right.shape[2]
        pairs, sets = np.array(places).T
        size = (self.weight * self.count).sum(axis=0)[pairs, sets]
        diagonal = (self.diagonal[pairs, sets] / size[:, None]).mean(axis=0)
        matrix = np.zeros((d, d), dtype)
        for g in range(rows.labels):
            x = rows.X[rows.block(g)]
            x = x - x.mean(axis=0)
            matrix += x.T @ x
        matrix /= dtype.type(len(rows.X))
        inverse = _factored(matrix, diagonal, invert=True)
        if inverse.ndim == 1:
            return lambda vectors: vectors / (inverse * size[:, None])

        def apply(vectors: Doubles) -> Doubles:
            half = vectors.astype(dtype) @ inverse.T
            return np.asarray((half @ inverse) / size[:, None])

        return apply

    def _own_factors(self, places: Places, grams_of: Callable[[int], Floats]) -> Precondition:
        """From each system's own matrix."""
        dtype = self.rows.X.dtype
        factors, now, grams = [], -1, np.empty(0, dtype)
        for p, k in places:
            if k != now:
                now, grams = k, grams_of(k)
            matrix, spare = np.zeros_like(grams[0]), np.empty_like(grams[0])
            for side, sign in enumerate((-1, 1)):
                for g in np.flatnonzero(self.sign[:, p] == sign):
                    matrix += np.multiply(grams[g], dtype.type(self.weight[side, p, k]), out=spare)
            centre = np.sqrt(self.weight[:, p, k] * self.count[:, p, k])[:, None] * self.mean[:, p, k]
            matrix -= centre.T.astype(dtype) @ centre.astype(dtype)
            factors.append(_factored(matrix, self.diagonal[p, k]))
        potrs: Any = linalg.get_lapack_funcs("potrs", (factors[0],))

        def apply(vectors: Doubles) -> Doubles:
            out = np.empty_like(vectors)
            for s, (vector, factor) in enumerate(zip(vectors, factors, strict=True)):
                out[s] = potrs(factor, vector.astype(dtype), lower=1)[0] if factor.ndim == 2 else vector / factor
            return out

        return apply


class _Task:
    """Some of the systems, solved side by side."""

    def __init__(self, systems: Systems, places: Places) -> None:
        self.places, self.rows = places, systems.rows
        self.pairs, self.sets = np.array(places).T
        self.sign, self.right = systems.sign[:, self.pairs], systems.right[self.pairs, self.sets]
        self.mean = systems.mean[:, self.pairs, self.sets]
        self.weight = systems.weight[:, self.pairs, self.sets]
        self.diagonal = systems.diagonal[self.pairs, self.sets]
        self.inside = self.rows.inside[:, self.sets]

    def solve(self, precondition: Precondition) -> tuple[Doubles, npt.NDArray[np.bool_]]:
        """Solutions (S, d), and which of them came within the tolerance."""
        size = self.rows.X.itemsize
        product = self._products(self.rows.X)
        exact = product if size == 8 else self._products(self.rows.exact)
        found, residual = np.zeros_like(self.right), self.right
        now = _norm(self.right, precondition(self.right))
        goal = TOLERANCE[size] ** 2 * now
        done = now <= 0
        for _ in range(REFINEMENTS):
            wanted = np.maximum(np.sqrt(goal / np.where(now > 0, now, 1)) / 2, INNER[size])
            more, _ = conjugate_gradients(product, precondition, np.where(done[:, None], 0, residual), wanted)
            found += more
            residual = self.right - exact(found)
            now = _norm(residual, precondition(residual))
            done = now <= goal
            if done.all():
                break
        return found, done

    def _products(self, X: Floats) -> Callable[[Doubles], Doubles]:
        """Function that multiplies each matrix with its vector, (S, d), from the rows in their dtype."""
        parts = []
        for g in range(self.rows.labels):
            mine = np.flatnonzero(self.sign[g])
            if len(mine):
                here, side = self.rows.block(g), (self.sign[g, mine] > 0).astype(np.int64)
                count = (self.inside[here].T[mine] * self.weight[side, mine][:, None]).astype(X.dtype)
                parts.append((X[here], mine, side, count))

        def product(vectors: Doubles) -> Doubles:
            out: Doubles = self.diagonal * vectors
            centre = np.einsum("csd,sd->cs", self.mean, vectors)
            for x, mine, side, count in parts:
                along = vectors[mine].astype(x.dtype) @ x.T
                along -= centre[side, mine][:, None].astype(x.dtype)
                along *= count
                out[mine] += along @ x
            return out

        return product

    def directly(self, s: int) -> Doubles:
        """One system from its own matrix in float64."""
        matrix = np.diag(self.diagonal[s])
        for g in np.flatnonzero(self.sign[:, s]):
            here, side = self.rows.block(int(g)), int(self.sign[g, s] > 0)
            inside = self.rows.exact[here][self.inside[here, s]] - self.mean[side, s]
            matrix += self.weight[side, s] * (inside.T @ inside)
        try:
            factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return np.asarray(linalg.lstsq(matrix, self.right[s])[0], dtype=np.float64)
        return np.asarray(linalg.cho_solve(factor, self.right[s], check_finite=False), dtype=np.float64)


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


def _norm(residual: Doubles, preconditioned: Doubles) -> Doubles:
    return np.asarray(np.einsum("sd,sd->s", residual, preconditioned))


def _factored(matrix: Floats, diagonal: Doubles, invert: bool = False) -> Floats:
    """Lower Cholesky factor of matrix + diagonal (or its inverse); (d,) the diagonal alone where there is none.

    A little is added in proportion to the diagonal, which is the same as to a matrix scaled to a diagonal of ones.
    """
    lapack: Any = linalg.get_lapack_funcs
    potrf, trtri = lapack(("potrf", "trtri"), (matrix,))
    size = np.diagonal(matrix) + diagonal
    size = np.where(size > 0, size, 1)
    at, jitter = np.diag_indices_from(matrix), JITTER[matrix.itemsize]
    while jitter < 1:
        matrix[at] = (size * (1 + jitter)).astype(matrix.dtype)
        triangle, info = potrf(matrix.T, lower=1, clean=1)
        if info == 0:
            return np.asarray(trtri(triangle, lower=1, overwrite_c=1)[0] if invert else triangle)
        jitter *= 30
    return size
