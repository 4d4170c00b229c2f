"""Conjugate gradients for many systems side by side; what the systems are is in probe_systems.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stratalens.analyses.estimators.gram import Doubles, Floats, Rows

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


# Of the residual, in the norm of the preconditioner, against the right-hand side; for data of each size of item.
TOLERANCE = {4: 5e-5, 8: 1e-10}


DIRECTION = {4: 2e-5, 8: 1e-9}  # of the error against the solution, by their lengths: 1 - cos is half its square


FIRST = {4: 1e-5, 8: 5e-11}  # what is asked of products in the dtype of the data, before the residual is looked at


TINY = 1e-300


REFINEMENTS = 5


# First try of what is added to the factored matrix, in units of its diagonal, so that it stays positive definite.
JITTER = {4: 1e-7, 8: 1e-15}


FACTOR_BYTES = 2**28  # factors in memory at a time


SCATTERED = 1 / 16  # share of the scatter in a diagonal, below which it is all one how small it is


KIND = 4.0  # systems share a factor where their diagonals, against their scatters, are at most so many times as large


ALIKE = 16.0  # largest condition number against the common factor: about twenty iterations


Precondition = Callable[[Doubles], Doubles]


Places = list[tuple[int, int]]


# A matrix (rows, or a Gram matrix), the systems that it belongs to, and what its rows count in each of them.
_Part = tuple[Floats, npt.NDArray[np.intp], Floats]


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
        """Solutions, (P, K, d) float64; where a matrix is singular, one of those of least squares."""
        n_pairs, n_sets, d = self.right.shape
        out = np.zeros((n_pairs, n_sets, d))
        left = self._solve_alike(out)
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

    def _solve_alike(self, out: Doubles) -> Places:
        """Solve what a common factor helps with, into `out`; the places that are left, set by set."""
        ratio = self._ratio()
        # Rows do not matter where the diagonal outweighs even the largest eigenvalue, which the trace bounds.
        alike = (self._alike() | (ratio * 2 * len(self.rows.variance) <= 1)) & (self._size() > 0)
        kind = _kinds(ratio + SCATTERED)
        left = [(int(p), int(k)) for p, k in np.argwhere(~alike)]
        scatter = self._scatter() if alike.any() else np.empty(0)
        for value in np.unique(kind[alike]):
            places = [(int(p), int(k)) for p, k in np.argwhere(alike & (kind == value))]
            task = _Task(self, places)
            found, done = task.solve(self._common_factor(places, scatter))
            out[task.pairs, task.sets] = found
            left += [place for place, solved in zip(places, done, strict=True) if not solved]
        return sorted(left, key=lambda place: place[1])

    def _size(self) -> Doubles:
        """Trace of each matrix, roughly, (P, K)."""
        scattered = (self.weight * self.count).sum(axis=0) * self.rows.variance.sum()
        return np.asarray(scattered + self.diagonal.sum(axis=2))

    def _ratio(self) -> Doubles:
        """By how much the scatter outweighs the diagonal, (P, K); mean over features."""
        count = (self.weight * self.count).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            each = np.nan_to_num(count[..., None] * self.rows.variance / self.diagonal, nan=0.0)
            return np.asarray(each.mean(axis=2))

    def _alike(self) -> npt.NDArray[np.bool_]:
        """Which systems have rows enough for their matrices to be like that of all rows, (P, K).

        Of n rows that are a share 1 - f of N random ones, the scatter has eigenvalues against that of all N within
        1 - (sqrt(f (1 - g)) -+ sqrt(g (1 - f)))**2 with g = d / N (Wachter, 1978), as long as n > d.
        """
        n, d = self.count.sum(axis=0), self.right.shape[2]
        total = float(len(self.rows.X))
        lost, width = 1 - n / total, min(d / total, 1.0)
        a, b = np.sqrt(lost * (1 - width)), np.sqrt(width * (1 - lost))
        low, high = 1 - (a + b) ** 2, 1 - (a - b) ** 2
        return np.asarray((n > d) & (high <= ALIKE * low))

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

    def _common_factor(self, places: Places, scatter: Floats) -> Precondition:
        """From the scatter of all rows and the mean diagonal of these systems, each in units of its size."""
        pairs, sets = np.array(places).T
        size = self._size()[pairs, sets]
        share = ((self.weight * self.count).sum(axis=0)[pairs, sets] / size).mean()
        diagonal = (self.diagonal[pairs, sets] / size[:, None]).mean(axis=0)
        inverse = _factored(scatter * scatter.dtype.type(share), diagonal, invert=True)
        if inverse.ndim == 1:
            return lambda vectors: vectors / (inverse * size[:, None])

        def apply(vectors: Doubles) -> Doubles:
            half = vectors.astype(inverse.dtype) @ inverse.T
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
        self.strength = self.weight * systems.count[:, self.pairs, self.sets]
        self.diagonal = systems.diagonal[self.pairs, self.sets]

    def solve(self, precondition: Precondition) -> tuple[Doubles, npt.NDArray[np.bool_]]:
        """Solutions (S, d), and which of them came within the tolerance."""
        size = self.rows.X.itemsize
        product, exact = self._products(self.rows.label_grams), self._exactly
        found, residual = np.zeros_like(self.right), self.right
        now = _norm(self.right, precondition(self.right))
        goal = TOLERANCE[size] ** 2 * now
        done, wanted = now <= 0, np.full(len(now), FIRST[size])
        for _ in range(REFINEMENTS):
            more, _ = conjugate_gradients(product, precondition, np.where(done[:, None], 0, residual), wanted)
            found += more
            residual = self.right - exact(found)
            error = precondition(residual)  # nearly that of the solution
            now = _norm(residual, error)
            length, off = (np.maximum(np.einsum("sd,sd->s", v, v), TINY) for v in (found, error))
            share = np.minimum(goal / np.maximum(now, TINY), DIRECTION[size] ** 2 * length / off)
            done = share >= 1
            if done.all():
                break
            wanted = np.minimum(np.sqrt(share) / 2, 0.5)
        return found, done

    def _products(self, grams: Floats | None) -> Callable[[Doubles], Doubles]:
        """Function that multiplies each matrix with its vector, (S, d), in the dtype of the data.

        From the rows; or, where a label has more rows than features, from its Gram matrix and the cells that a
        training set leaves out (or holds, where these are fewer).
        """
        rows, dtype = self.rows, self.rows.X.dtype
        whole: list[_Part] = []
        some: list[_Part] = []
        for g in range(rows.labels):
            mine = np.flatnonzero(self.sign[g])
            if not len(mine):
                continue
            here, weight = rows.block(g), self._weight(g, mine)
            inside = rows.inside[here][:, self.sets[mine]]
            if grams is None or here.stop - here.start <= rows.X.shape[1]:
                some.append((rows.X[here], mine, (inside * weight).T.astype(dtype)))
                continue
            most = inside.mean(axis=0) > 0.5
            whole.append((grams[g], mine[most], weight[most, None].astype(dtype)))
            for c in np.flatnonzero(rows.cell_label == g):
                held = rows.cell_sets[c, self.sets[mine]]
                use = held != most
                if use.any():
                    factor = np.where(held, weight, -weight)[use, None]
                    some.append((rows.X[rows.cell(int(c))], mine[use], factor.astype(dtype)))

        def product(vectors: Doubles) -> Doubles:
            narrow, out = vectors.astype(dtype), np.zeros(vectors.shape, dtype)
            for gram, mine, factor in whole:
                out[mine] += (narrow[mine] @ gram) * factor
            for x, mine, factor in some:
                along = narrow[mine] @ x.T
                along *= factor
                out[mine] += along @ x
            return self._completed(vectors, out)

        return product

    def _exactly(self, vectors: Doubles) -> Doubles:
        """The same in float64, from the rows."""
        rows, out = self.rows, np.zeros_like(vectors)
        for g in range(rows.labels):
            mine = np.flatnonzero(self.sign[g])
            if len(mine):
                here = rows.block(g)
                x = rows.doubles(here)
                along = vectors[mine] @ x.T
                along *= rows.inside[here].T[self.sets[mine]]
                along *= self._weight(g, mine)[:, None]
                out[mine] += along @ x
        return self._completed(vectors, out)

    def _weight(self, label: int, systems: npt.NDArray[np.intp]) -> Doubles:
        """What a row of a label counts in each of these systems."""
        return np.asarray(self.weight[(self.sign[label, systems] > 0).astype(np.int64), systems])

    def _completed(self, vectors: Doubles, product: Floats) -> Doubles:
        """From the product with sums of x x^T to that with the matrix: what centring takes away, and the diagonal."""
        total: Doubles = self.diagonal * vectors + product
        for mean, amount in zip(self.mean, self.strength, strict=True):
            total -= (amount * np.einsum("sd,sd->s", mean, vectors))[:, None] * mean
        return total

    def directly(self, s: int) -> Doubles:
        """One system from its own matrix in float64."""
        matrix = np.diag(self.diagonal[s])
        for g in np.flatnonzero(self.sign[:, s]):
            here, side = self.rows.block(int(g)), int(self.sign[g, s] > 0)
            inside = self.rows.doubles(here)[self.rows.inside[here, self.sets[s]]] - self.mean[side, s]
            matrix += self.weight[side, s] * (inside.T @ inside)
        try:
            factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return np.asarray(linalg.lstsq(matrix, self.right[s])[0], dtype=np.float64)
        return np.asarray(linalg.cho_solve(factor, self.right[s], check_finite=False), dtype=np.float64)


def _kinds(ratio: Doubles) -> npt.NDArray[np.int64]:
    """Numbers, the same for ratios within a factor of KIND of the smallest that has the number."""
    kind, limit = np.zeros(ratio.shape, np.int64), KIND * ratio.min(initial=1)
    while (ratio > limit).any():
        kind[ratio > limit] += 1
        limit = KIND * ratio[ratio > limit].min()
    return kind


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
