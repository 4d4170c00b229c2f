"""Many linear systems whose matrices are scatters of shared rows: solved together, in float32 and yet exactly.

Ridge and LDA ask for M u = r with M = sum_i c_i (x_i - m)(x_i - m)^T + diagonal, for every pair of groups and
every fold. Each matrix is put together from the Gram matrices of the groups in the fold and factored in the dtype
of the data; the factor is only the preconditioner of conjugate gradients in float64, whose products with M are two
products with the rows themselves, so that one or two of them mend whatever float32 has rounded. What the systems
mean is in closed_form.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

# Of the residual, in the norm of the preconditioner, against the right-hand side; for data of each size of item.
TOLERANCE = {4: 1e-4, 8: 1e-10}
MAX_ITERATIONS = 40
# First try of what is added to the factored matrix, whose diagonal is 1, so that rounding leaves it positive definite.
JITTER = {4: 1e-7, 8: 1e-15}
FACTOR_BYTES = 2**28  # factors in memory at a time


@dataclass(frozen=True)
class Rows:
    """Rows in blocks by label, and which of them each of K training sets holds.

    Attributes:
        X: [array-like, shape: (n, d)] shifted rows in the order of their labels, in the dtype of the data.
        exact: [array-like, shape: (n, d)] the same in float64.
        edges: [array-like, shape: (labels + 1,)] where each label begins.
        inside: [array-like, shape: (n, K)] bool.
    """

    X: Floats
    exact: Doubles
    edges: Codes
    inside: npt.NDArray[np.bool_]

    @property
    def labels(self) -> int:
        """Number of labels."""
        return len(self.edges) - 1

    def block(self, label: int) -> slice:
        """Rows of one label."""
        return slice(int(self.edges[label]), int(self.edges[label + 1]))

    def sums(self, power: int = 1) -> Doubles:
        """Sum of x**power over each label's rows in each training set, (labels, K, d) float64."""
        out = np.empty((self.labels, self.inside.shape[1], self.exact.shape[1]))
        for g in range(self.labels):
            here = self.block(g)
            weight = self.inside[here].astype(np.float64)
            out[g] = weight.T @ (self.exact[here] if power == 1 else self.exact[here] ** power)
        return out

    def grams(self) -> Callable[[int], Floats]:
        """Function of a training set that gives X.T @ X of each label's rows in it, (labels, d, d).

        By subtraction of the rows that are left out, where they are few. The array is the same one every time.
        """
        d = self.X.shape[1]
        whole = np.stack([self.X[self.block(g)].T @ self.X[self.block(g)] for g in range(self.labels)])
        out, left_out = np.empty_like(whole), np.empty((d, d), self.X.dtype)

        def of(k: int) -> Floats:
            for g in range(self.labels):
                rows, inside = self.X[self.block(g)], self.inside[self.block(g), k]
                if inside.all():
                    out[g] = whole[g]
                elif 2 * int(inside.sum()) > len(inside):
                    part = rows[~inside]
                    np.matmul(part.T, part, out=left_out)
                    np.subtract(whole[g], left_out, out=out[g])
                else:
                    part = rows[inside]
                    np.matmul(part.T, part, out=out[g])
            return out

        return of


@dataclass(frozen=True)
class Systems:
    """P x K systems over shared rows; each class of a system is a union of labels.

    Attributes:
        rows: what they share.
        sign: [array-like, shape: (labels, P)] -1 or +1: the class of a label; 0: not in these systems.
        mean: [array-like, shape: (2, P, K, d)] that rows of the negative, positive class are centred on.
        count: [array-like, shape: (2, P, K)] rows of each class.
        right: [array-like, shape: (P, K, d)].
        terms: function of a training set k and its labels' Gram matrices that gives what a row of each class counts
            (2, P), and the diagonal to add (P, d).
    """

    rows: Rows
    sign: npt.NDArray[np.int8]
    mean: Doubles
    count: Doubles
    right: Doubles
    terms: Callable[[int, Floats], tuple[Doubles, Doubles]]

    def solve(self) -> Doubles:
        """Solutions, (P, K, d) float64; of least squares and smallest norm where a matrix is singular."""
        n_pairs, n_sets, d = self.right.shape
        out = np.zeros((n_pairs, n_sets, d))
        grams_of, dtype = self.rows.grams(), self.rows.X.dtype
        batch = min(n_pairs, max(1, FACTOR_BYTES // (d * d * dtype.itemsize)))
        # Written over again for every training set: fresh memory would cost as much as the sums themselves.
        matrices, spare = np.empty((batch, d, d), dtype), np.empty((d, d), dtype)
        for k in range(n_sets):
            grams = grams_of(k)
            weight, diagonal = self.terms(k, grams)
            for begin in range(0, n_pairs, batch):
                pairs = np.arange(begin, min(begin + batch, n_pairs))
                task = _Task(self, k, pairs, weight[:, pairs], diagonal[pairs])
                out[pairs, k] = task.solve(grams, matrices, spare)
        return out


class _Task:
    """Some of the systems of one training set."""

    def __init__(self, systems: Systems, k: int, pairs: Codes, weight: Doubles, diagonal: Doubles) -> None:
        self.rows, self.sign = systems.rows, systems.sign[:, pairs]
        self.weight, self.diagonal = weight, diagonal
        self.mean, self.count = systems.mean[:, pairs, k], systems.count[:, pairs, k]
        self.right = systems.right[pairs, k]
        self.inside = self.rows.inside[:, k]

    def solve(self, grams: Floats, matrices: Floats, spare: Floats) -> Doubles:
        """Solutions (P, d), from the labels' Gram matrices; the other two are memory to work in."""
        factors = [self._factor(p, grams, matrices[p], spare) for p in range(len(self.right))]

        def precondition(vectors: Doubles) -> Doubles:
            return np.stack([factor(vector) for factor, vector in zip(factors, vectors, strict=True)])

        tol = TOLERANCE[self.rows.X.itemsize]
        found, converged = conjugate_gradients(self._product, precondition, self.right, tol)
        for p in np.flatnonzero(~converged):
            found[p] = self._directly(int(p))
        return found

    def _factor(self, p: int, grams: Floats, matrix: Floats, spare: Floats) -> Callable[[Doubles], Doubles]:
        """Function that applies the approximate inverse of one matrix, which is put together and factored in place."""
        dtype = matrix.dtype
        centre = np.sqrt(self.weight[:, p] * self.count[:, p])[:, None] * self.mean[:, p]
        centre = centre.astype(dtype)
        potrf, potrs, syrk = _routines(matrix)
        jitter = JITTER[dtype.itemsize]
        while jitter < 1:
            matrix[:] = 0
            for side, sign in enumerate((-1, 1)):
                mine = np.flatnonzero(self.sign[:, p] == sign)
                for g in mine:
                    matrix += np.multiply(grams[g], dtype.type(self.weight[side, p]), out=spare)
            syrk(-1, centre.T, beta=1, c=matrix.T, lower=1, overwrite_c=1)
            diagonal = np.diagonal(matrix) + self.diagonal[p]
            scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1))
            matrix *= scale.astype(dtype)[:, None]
            matrix *= scale.astype(dtype)
            matrix[np.diag_indices_from(matrix)] = (diagonal * scale**2 + jitter).astype(dtype)
            triangle, info = potrf(matrix.T, lower=1, clean=0, overwrite_a=1)
            if info == 0:
                break
            jitter *= 30
        else:
            return lambda vector: vector * scale**2

        def apply(vector: Doubles) -> Doubles:
            done, _ = potrs(triangle, (vector * scale).astype(dtype), lower=1, overwrite_b=1)
            return np.asarray(done * scale, dtype=np.float64)

        return apply

    def _product(self, vectors: Doubles) -> Doubles:
        """Each matrix times its vector, (P, d), from the rows."""
        out = self.diagonal * vectors
        centre = np.einsum("cpd,pd->cp", self.mean, vectors)
        for g in range(self.rows.labels):
            mine = np.flatnonzero(self.sign[g])
            if len(mine):
                x, side = self.rows.exact[self.rows.block(g)], (self.sign[g, mine] > 0).astype(np.int64)
                along = vectors[mine] @ x.T
                along -= centre[side, mine][:, None]
                along *= self.weight[side, mine][:, None] * self.inside[self.rows.block(g)]
                out[mine] += along @ x
        return out

    def _directly(self, p: int) -> Doubles:
        """One system from its own matrix in float64."""
        matrix = np.diag(self.diagonal[p])
        for g in np.flatnonzero(self.sign[:, p]):
            here, side = self.rows.block(int(g)), int(self.sign[g, p] > 0)
            inside = self.rows.exact[here][self.inside[here]] - self.mean[side, p]
            matrix += self.weight[side, p] * (inside.T @ inside)
        try:
            factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return np.asarray(linalg.lstsq(matrix, self.right[p])[0], dtype=np.float64)
        return np.asarray(linalg.cho_solve(factor, self.right[p], check_finite=False), dtype=np.float64)


def conjugate_gradients(
    product: Callable[[Doubles], Doubles],
    precondition: Callable[[Doubles], Doubles],
    right: Doubles,
    tol: float = 1e-10,
    max_iter: int = MAX_ITERATIONS,
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Solve S symmetric positive definite systems side by side by preconditioned conjugate gradients.

    The flexible form (Polak and Ribiere's beta), as the preconditioner rounds in float32.

    Args:
        product: from (S, d) vectors to each system's matrix times its vector.
        precondition: the same for an approximate inverse.
        right: [array-like, shape: (S, d)].
        tol: on the residual relative to `right`, in the norm of the preconditioner.
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
    goal = tol**2 * size
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


def _routines(matrix: Floats) -> tuple[Any, Any, Any]:
    lapack: Any = linalg.get_lapack_funcs
    blas: Any = linalg.get_blas_funcs
    return (*lapack(("potrf", "potrs"), (matrix,)), blas("syrk", (matrix,)))
