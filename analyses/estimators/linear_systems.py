"""Many symmetric positive definite systems over shared rows: factors in common, refined by conjugate gradients.

A system is the weighted scatter of the rows of two classes plus a diagonal; ridge and LDA solve one for each pair and
training set. Conjugate gradients correct the error of a factor in the dtype of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask, Signs
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.estimators.gram import Rows

MAX_ITER = 40
MAX_REFINEMENTS = 5
TINY = 1e-300
FACTOR_BYTES = 2**28  # largest size of the factors in memory

# For data of 4 and of 8 bytes an item:
# Tolerance of the residual, in the norm of the preconditioner, relative to the right-hand side.
TOL = {4: 5e-5, 8: 1e-10}
# Tolerance of the length of the error relative to the solution; 1 - cos is half its square.
DIRECTION_TOL = {4: 2e-5, 8: 1e-9}
# Tolerance of the first conjugate gradients, in the dtype of the data, before the first exact residual.
FIRST_TOL = {4: 1e-5, 8: 5e-11}
# First multiple of the diagonal to add to a matrix, so that its factor stays positive definite.
JITTER = {4: 1e-7, 8: 1e-15}

# Systems share a factor if their ratios of scatter to diagonal differ by at most MAX_RATIO. Ratios well below
# NEGLIGIBLE_SCATTER count as equal.
NEGLIGIBLE_SCATTER = 1 / 16
MAX_RATIO = 4.0
# Largest condition number relative to the common factor; it means about twenty iterations.
MAX_CONDITION = 16.0

Precondition = Callable[[Doubles], Doubles]
Indices = list[tuple[int, int]]  # (pair, training set) of some systems
# A matrix (rows, or a Gram matrix), the systems that it belongs to, and the weight of its rows in each of them.
_Term = tuple[Floats, npt.NDArray[np.intp], Floats]


def conjugate_gradients(
    product: Callable[[Doubles], Doubles],
    precondition: Precondition,
    right: Doubles,
    tol: float | Doubles = 1e-10,
    max_iter: int = MAX_ITER,
) -> tuple[Doubles, Mask]:
    """Solve S symmetric positive definite systems together by preconditioned conjugate gradients.

    The flexible form (Polak and Ribiere's beta), because the preconditioner rounds in float32.

    Args:
        product: from (S, d) vectors to each system's matrix times its vector.
        precondition: the same for an approximate inverse.
        right: float64 array of shape (S, d).
        tol: on the residual relative to `right`, in the norm of the preconditioner; one, or one for each system.
        max_iter: most iterations.

    Returns:
        solutions: float64 array of shape (S, d), and
        converged: bool array of shape (S,), residual within the tolerance.

    Example:
        >>> a = np.array([[2.0, 1.0], [1.0, 3.0]])
        >>> x, converged = conjugate_gradients(lambda v: v @ a, lambda v: v, np.array([[3.0, 4.0]]))
        >>> x.round(6).tolist(), converged.tolist()
        ([[1.0, 1.0]], [True])
    """
    solution, residual = np.zeros_like(right), right.copy()
    preconditioned = precondition(residual)
    direction = preconditioned
    size = _dot(residual, preconditioned)
    goal = np.square(tol) * size
    done = size <= goal
    for _ in range(max_iter):
        raise_if_cancelled()
        if done.all():
            break
        image = product(direction)
        curvature = _dot(direction, image)
        step = np.where(done | (curvature <= 0), 0, size / np.where(curvature > 0, curvature, 1))[:, None]
        solution += step * direction
        previous, residual = residual, residual - step * image
        preconditioned = precondition(residual)
        new_size = _dot(residual, preconditioned)
        beta = (new_size - _dot(previous, preconditioned)) / np.where(size > 0, size, 1)
        direction = preconditioned + np.where(done, 0, beta)[:, None] * direction
        size = new_size
        done |= size <= goal
    return solution, done


@dataclass(frozen=True)
class Systems:
    """P x K systems over shared rows; each class of a system is a union of labels.

    Attributes:
        rows: the rows by label.
        sign: int8 array of shape (labels, P), class of a label, -1 or +1; 0 = not in these systems.
        mean: float64 array of shape (2, P, K, d), centres of the negative and the positive class.
        count: float64 array of shape (2, P, K), rows of each class.
        right: float64 array of shape (P, K, d), right-hand sides.
        weight: float64 array of shape (2, P, K), weight of a row of each class.
        diagonal: float64 array of shape (P, K, d), added to the scatters.
    """

    rows: Rows
    sign: Signs
    mean: Doubles
    count: Doubles
    right: Doubles
    weight: Doubles
    diagonal: Doubles

    def solve(self) -> Doubles:
        """Solve all systems.

        Returns:
            float64 array of shape (P, K, d); a least-squares solution where a matrix is singular.
        """
        n_pairs, n_sets, d = self.right.shape
        out = np.zeros((n_pairs, n_sets, d))
        remaining = self._solve_with_common_factors(out)
        size = max(1, FACTOR_BYTES // (d * d * self.rows.X.itemsize))
        grams_of: Callable[[int], Floats] | None = None
        for start in range(0, len(remaining), size):
            raise_if_cancelled()
            batch = _SystemBatch(self, remaining[start : start + size])
            grams_of = grams_of or self.rows.grams()
            solution, done = batch.solve(self._own_factors(batch.indices, grams_of))
            for s in np.flatnonzero(~done):
                solution[s] = batch.solve_directly(int(s))
            out[batch.pairs, batch.sets] = solution
        return out

    def _solve_with_common_factors(self, out: Doubles) -> Indices:
        """Solve systems with common factors, into `out`; return the remaining systems, by training set."""
        ratio = self._ratio()
        # Rows do not matter if the diagonal is larger than the largest eigenvalue, which the trace bounds.
        diagonal_dominates = ratio * 2 * len(self.rows.variance) <= 1
        common = (self._near_common_scatter() | diagonal_dominates) & (self._trace() > 0)
        group = _group_ratios(ratio + NEGLIGIBLE_SCATTER)
        remaining = [(int(p), int(k)) for p, k in np.argwhere(~common)]
        scatter = self._scatter() if common.any() else np.empty(0)
        for number in np.unique(group[common]):
            indices = [(int(p), int(k)) for p, k in np.argwhere(common & (group == number))]
            batch = _SystemBatch(self, indices)
            solution, done = batch.solve(self._common_factor(indices, scatter))
            out[batch.pairs, batch.sets] = solution
            remaining += [index for index, solved in zip(indices, done, strict=True) if not solved]
        return sorted(remaining, key=lambda index: index[1])

    def _trace(self) -> Doubles:
        """Approximate trace of each matrix, (P, K)."""
        scatter = (self.weight * self.count).sum(axis=0) * self.rows.variance.sum()
        return np.asarray(scatter + self.diagonal.sum(axis=2))

    def _ratio(self) -> Doubles:
        """Ratio of the scatter to the diagonal, mean over features, (P, K)."""
        count = (self.weight * self.count).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            each = np.nan_to_num(count[..., None] * self.rows.variance / self.diagonal, nan=0.0)
            return np.asarray(each.mean(axis=2))

    def _near_common_scatter(self) -> Mask:
        """Whether the rows of a system are enough for a scatter close to that of all rows, (P, K).

        For n rows that are a share 1 - f of N random rows, the eigenvalues of their scatter relative to that of all N
        are within 1 - (sqrt(f (1 - g)) -+ sqrt(g (1 - f)))**2 with g = d / N (Wachter, 1978), as long as n > d.
        """
        n, d = self.count.sum(axis=0), self.right.shape[2]
        total = float(len(self.rows.X))
        f, g = 1 - n / total, min(d / total, 1.0)
        a, b = np.sqrt(f * (1 - g)), np.sqrt(g * (1 - f))
        low, high = 1 - (a + b) ** 2, 1 - (a - b) ** 2
        return np.asarray((n > d) & (high <= MAX_CONDITION * low))

    def _scatter(self) -> Floats:
        """Mean outer product of all rows around their labels' means, (d, d)."""
        rows = self.rows
        grams, total = rows.label_grams, np.zeros((rows.X.shape[1],) * 2, rows.X.dtype)
        for g, mean in enumerate(rows.means):
            x = rows.X[rows.block(g)]
            if grams is None:
                x = x - mean.astype(x.dtype)
                total += x.T @ x
            else:
                total += grams[g]
        if grams is not None:
            middle = (rows.means * np.sqrt(np.diff(rows.edges))[:, None]).astype(total.dtype)
            total -= middle.T @ middle
        total /= total.dtype.type(len(rows.X))
        return total

    def _common_factor(self, indices: Indices, scatter: Floats) -> Precondition:
        """Preconditioner from the scatter of all rows and the mean diagonal of these systems, in units of traces."""
        pairs, sets = np.array(indices).T
        trace = self._trace()[pairs, sets]
        share = ((self.weight * self.count).sum(axis=0)[pairs, sets] / trace).mean()
        diagonal = (self.diagonal[pairs, sets] / trace[:, None]).mean(axis=0)
        inverse = _cholesky(scatter * scatter.dtype.type(share), diagonal, invert=True)
        if inverse.ndim == 1:
            return lambda vectors: vectors / (inverse * trace[:, None])

        def apply(vectors: Doubles) -> Doubles:
            half = vectors.astype(inverse.dtype) @ inverse.T
            return np.asarray((half @ inverse) / trace[:, None])

        return apply

    def _own_factors(self, indices: Indices, grams_of: Callable[[int], Floats]) -> Precondition:
        """Preconditioner from each system's own matrix."""
        dtype = self.rows.X.dtype
        factors, current, grams = [], -1, np.empty(0, dtype)
        for p, k in indices:
            if k != current:
                current, grams = k, grams_of(k)
            matrix, buffer = np.zeros_like(grams[0]), np.empty_like(grams[0])
            for side, sign in enumerate((-1, 1)):
                for g in np.flatnonzero(self.sign[:, p] == sign):
                    matrix += np.multiply(grams[g], dtype.type(self.weight[side, p, k]), out=buffer)
            centre = np.sqrt(self.weight[:, p, k] * self.count[:, p, k])[:, None] * self.mean[:, p, k]
            matrix -= centre.T.astype(dtype) @ centre.astype(dtype)
            factors.append(_cholesky(matrix, self.diagonal[p, k]))
        potrs: Any = linalg.get_lapack_funcs("potrs", (factors[0],))

        def apply(vectors: Doubles) -> Doubles:
            out = np.empty_like(vectors)
            for s, (vector, factor) in enumerate(zip(vectors, factors, strict=True)):
                out[s] = potrs(factor, vector.astype(dtype), lower=1)[0] if factor.ndim == 2 else vector / factor
            return out

        return apply


class _SystemBatch:
    """Some of the systems, S in number, that are solved together.

    Args:
        systems: all systems.
        indices: (pair, training set) of those to solve.
    """

    def __init__(self, systems: Systems, indices: Indices) -> None:
        self.indices, self.rows = indices, systems.rows
        self.pairs, self.sets = np.array(indices).T
        self.sign, self.right = systems.sign[:, self.pairs], systems.right[self.pairs, self.sets]
        self.mean = systems.mean[:, self.pairs, self.sets]
        self.weight = systems.weight[:, self.pairs, self.sets]
        self.class_weight = self.weight * systems.count[:, self.pairs, self.sets]
        self.diagonal = systems.diagonal[self.pairs, self.sets]

    def solve(self, precondition: Precondition) -> tuple[Doubles, Mask]:
        """Solutions (S, d), and whether each is within the tolerance (S,)."""
        itemsize = self.rows.X.itemsize
        product = self._rounded_product(self.rows.label_grams)
        solution, residual = np.zeros_like(self.right), self.right
        size = _dot(self.right, precondition(self.right))
        goal = TOL[itemsize] ** 2 * size
        done, tol = size <= 0, np.full(len(size), FIRST_TOL[itemsize])
        for _ in range(MAX_REFINEMENTS):
            correction, _ = conjugate_gradients(product, precondition, np.where(done[:, None], 0, residual), tol)
            solution += correction
            residual = self.right - self._exact_product(solution)
            error = precondition(residual)  # close to the error of the solution
            size = _dot(residual, error)
            length, error_length = (np.maximum(_dot(v, v), TINY) for v in (solution, error))
            allowed = DIRECTION_TOL[itemsize] ** 2 * length / error_length
            progress = np.minimum(goal / np.maximum(size, TINY), allowed)
            done = progress >= 1
            if done.all():
                break
            tol = np.minimum(np.sqrt(progress) / 2, 0.5)
        return solution, done

    def _rounded_product(self, grams: Floats | None) -> Callable[[Doubles], Doubles]:
        """Function that multiplies each matrix with its vector, (S, d), in the dtype of the data.

        It uses the rows. For a label with more rows than features it uses the Gram matrix of the label, minus the
        cells outside a training set; if the cells inside are fewer, it adds those instead.
        """
        rows, dtype = self.rows, self.rows.X.dtype
        gram_terms: list[_Term] = []
        row_terms: list[_Term] = []
        for g in range(rows.labels):
            systems = np.flatnonzero(self.sign[g])
            if not len(systems):
                continue
            block, weight = rows.block(g), self._weight(g, systems)
            inside = rows.inside[block][:, self.sets[systems]]
            if grams is None or block.stop - block.start <= rows.X.shape[1]:
                row_terms.append((rows.X[block], systems, (inside * weight).T.astype(dtype)))
                continue
            mostly_inside = inside.mean(axis=0) > 0.5
            gram_terms.append((grams[g], systems[mostly_inside], weight[mostly_inside, None].astype(dtype)))
            for c in np.flatnonzero(rows.cell_label == g):
                cell_inside = rows.cell_sets[c, self.sets[systems]]
                use = cell_inside != mostly_inside
                if use.any():
                    factor = np.where(cell_inside, weight, -weight)[use, None]
                    row_terms.append((rows.X[rows.cell(int(c))], systems[use], factor.astype(dtype)))

        def product(vectors: Doubles) -> Doubles:
            rounded, out = vectors.astype(dtype), np.zeros(vectors.shape, dtype)
            for gram, systems, factor in gram_terms:
                out[systems] += (rounded[systems] @ gram) * factor
            for x, systems, factor in row_terms:
                scores = rounded[systems] @ x.T
                scores *= factor
                out[systems] += scores @ x
            return self._add_centring_and_diagonal(vectors, out)

        return product

    def _exact_product(self, vectors: Doubles) -> Doubles:
        """Multiply each matrix with its vector, (S, d), in float64, from the rows."""
        rows, out = self.rows, np.zeros_like(vectors)
        for g in range(rows.labels):
            systems = np.flatnonzero(self.sign[g])
            if len(systems):
                block = rows.block(g)
                x = rows.as_float64(block)
                scores = vectors[systems] @ x.T
                scores *= rows.inside[block].T[self.sets[systems]]
                scores *= self._weight(g, systems)[:, None]
                out[systems] += scores @ x
        return self._add_centring_and_diagonal(vectors, out)

    def _weight(self, label: int, systems: npt.NDArray[np.intp]) -> Doubles:
        """Weight of a row of a label in each of these systems."""
        return np.asarray(self.weight[(self.sign[label, systems] > 0).astype(np.int64), systems])

    def _add_centring_and_diagonal(self, vectors: Doubles, product: Floats) -> Doubles:
        """Complete the product with sums of x x^T to the product with the matrices."""
        total: Doubles = self.diagonal * vectors + product
        for mean, weight in zip(self.mean, self.class_weight, strict=True):
            total -= (weight * _dot(mean, vectors))[:, None] * mean
        return total

    def solve_directly(self, s: int) -> Doubles:
        """Solve one system from its own matrix in float64."""
        matrix = np.diag(self.diagonal[s])
        for g in np.flatnonzero(self.sign[:, s]):
            block, side = self.rows.block(int(g)), int(self.sign[g, s] > 0)
            inside = self.rows.as_float64(block)[self.rows.inside[block, self.sets[s]]] - self.mean[side, s]
            matrix += self.weight[side, s] * (inside.T @ inside)
        try:
            factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return np.asarray(linalg.lstsq(matrix, self.right[s])[0], dtype=np.float64)
        return np.asarray(linalg.cho_solve(factor, self.right[s], check_finite=False), dtype=np.float64)


def _group_ratios(ratio: Doubles) -> Codes:
    """Group number of each ratio; ratios of a group are within a factor of MAX_RATIO of its smallest."""
    group, limit = np.zeros(ratio.shape, np.int64), MAX_RATIO * ratio.min(initial=1)
    while (ratio > limit).any():
        group[ratio > limit] += 1
        limit = MAX_RATIO * ratio[ratio > limit].min()
    return group


def _dot(a: Doubles, b: Doubles) -> Doubles:
    return np.asarray(np.einsum("sd,sd->s", a, b))


def _cholesky(matrix: Floats, diagonal: Doubles, invert: bool = False) -> Floats:
    """Lower Cholesky factor of matrix + diagonal, or its inverse; the diagonal alone, (d,), if there is no factor.

    The function adds a small multiple of the diagonal until the matrix is positive definite.
    """
    lapack: Any = linalg.get_lapack_funcs
    potrf, trtri = lapack(("potrf", "trtri"), (matrix,))
    size = np.diagonal(matrix) + diagonal
    size = np.where(size > 0, size, 1)
    on_diagonal, jitter = np.diag_indices_from(matrix), JITTER[matrix.itemsize]
    while jitter < 1:
        matrix[on_diagonal] = (size * (1 + jitter)).astype(matrix.dtype)
        triangle, info = potrf(matrix.T, lower=1, clean=1)
        if info == 0:
            return np.asarray(trtri(triangle, lower=1, overwrite_c=1)[0] if invert else triangle)
        jitter *= 30
    return size
