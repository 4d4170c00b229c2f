"""The mean logistic loss of many two-class problems over shared rows, as the batched minimiser wants it.

Works on numpy and cupy alike. Who asks for it is in logistic.py, who minimises it in lbfgs.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.estimators.backend import Backend, logistic_estimator, resolve_backend, to_numpy
from stratalens.analyses.estimators.lbfgs import Minimum, minimise
from stratalens.store.errors import InputError

Array = Any  # numpy.ndarray or cupy.ndarray


# Mean of p (1 - p) that the preconditioner assumes; the line search corrects it.
TYPICAL_VARIANCE = 0.2


class BinaryObjective:
    """P two-class problems, mean logistic loss + penalty, as lbfgs.Objective wants it.

    Args:
        blocks: (X [shape: (n_b, d)], problems [shape: (P_b,)] that use these rows, signs [shape: (n_b, P_b)],
            +1 positive, -1 negative, 0 not in the training rows).
        count: [array-like, shape: (P,)] training rows of each problem.
        penalty: [array-like, shape: (P, d)] or (P, 1): coefficient of w_j**2 / 2 in the mean loss.
        factor: [array-like, shape: (d, d)] F with F.T @ F the inverse curvature that all share.
        unit: [array-like, shape: (P, d)] or (P, 1): scale of the features, that the gradient is measured in.
        rotated: measure the gradient by its length, which bounds the largest component in any rotation.
    """

    def __init__(
        self, xp: Any, blocks: list[tuple[Array, Array, Array]], count: Array, penalty: Array, factor: Array,
        unit: Array, rotated: bool,
    ) -> None:  # fmt: skip
        self.xp, self.blocks, self.count, self.penalty = xp, blocks, count, penalty
        self.factor, self.unit, self.rotated = factor, unit, rotated
        dtype = factor.dtype
        self.at = xp.zeros((len(count), factor.shape[0] + 1), dtype=dtype)
        self.predictors = [xp.zeros(signs.shape, dtype=dtype) for _, _, signs in blocks]
        self.residuals = self._residuals(self.predictors)

    def gradient(self) -> Array:
        """Of the mean loss with the penalty; the last column is the intercept's."""
        xp = self.xp
        out = xp.zeros_like(self.at)
        for (x, problems, _), residual in zip(self.blocks, self.residuals, strict=True):
            out[problems, :-1] += residual.T @ x
            out[problems, -1] += residual.sum(axis=0)
        out /= self.count[:, None]
        out[:, :-1] += self.penalty * self.at[:, :-1]
        return out

    def size_of(self, gradient: Array) -> Array:
        """Largest component, in units of each feature's scale (or the length, where rotated)."""
        scaled = gradient[:, :-1] / self.unit
        if self.rotated:
            return self.xp.maximum(self.xp.sqrt((scaled * scaled).sum(axis=1)), self.xp.abs(gradient[:, -1]))
        return self.xp.maximum(self.xp.abs(scaled).max(axis=1), self.xp.abs(gradient[:, -1]))

    def precondition(self, vectors: Array) -> Array:
        """The shared inverse curvature; twice a factor, so that rounding keeps it positive definite."""
        out = self.xp.empty_like(vectors)
        out[:, :-1] = (vectors[:, :-1] @ self.factor.T) @ self.factor
        out[:, -1] = vectors[:, -1] / TYPICAL_VARIANCE
        return out

    def look(self, directions: Array) -> None:
        """Predictors are linear: one pass over the data serves the whole line."""
        self.along = directions
        self.change = [x @ directions[problems, :-1].T + directions[problems, -1] for x, problems, _ in self.blocks]
        w, v = self.at[:, :-1], directions[:, :-1]
        self.cross = (self.penalty * w * v).sum(axis=1)
        self.square = (self.penalty * v * v).sum(axis=1)

    def slope(self, alpha: Array) -> tuple[Array, Array]:
        """Derivatives along the line."""
        xp = self.xp
        self.ahead = [
            z + step * alpha[problems]
            for (_, problems, _), z, step in zip(self.blocks, self.predictors, self.change, strict=True)
        ]
        self.residuals_ahead = self._residuals(self.ahead)
        slope, curvature = xp.zeros_like(alpha), xp.zeros_like(alpha)
        for (_, problems, _), r, step in zip(self.blocks, self.residuals_ahead, self.change, strict=True):
            slope[problems] += xp.einsum("ij,ij->j", r, step)
            size = xp.abs(r)
            size -= size * size  # p (1 - p), and 0 for rows outside, where the residual is 0
            size *= step
            curvature[problems] += xp.einsum("ij,ij->j", size, step)
        return (
            slope / self.count + self.cross + alpha * self.square,
            curvature / self.count + self.square + xp.finfo(alpha.dtype).tiny,
        )

    def move(self, alpha: Array) -> None:
        """Take over what the last slope has computed."""
        self.at = self.at + self.along * alpha[:, None]
        self.predictors, self.residuals = self.ahead, self.residuals_ahead

    def points(self) -> Array:
        """Coefficients, and the intercept in the last column."""
        return self.at

    def keep(self, mask: Array) -> None:
        """Drop the problems that are done."""
        xp = self.xp
        number = xp.cumsum(mask) - 1
        blocks, predictors, residuals = [], [], []
        for (x, problems, signs), z, r in zip(self.blocks, self.predictors, self.residuals, strict=True):
            stay = mask[problems]
            if bool(stay.any()):
                blocks.append((x, number[problems[stay]], _columns(xp, signs, stay)))
                predictors.append(_columns(xp, z, stay))
                residuals.append(_columns(xp, r, stay))
        self.blocks, self.predictors, self.residuals = blocks, predictors, residuals
        self.at, self.count, self.penalty = self.at[mask], self.count[mask], self.penalty[mask]
        self.unit = self.unit[mask]

    def _residuals(self, predictors: list[Array]) -> list[Array]:
        """Derivative of the loss by the predictor: -s / (1 + exp(s z))."""
        xp = self.xp
        out = []
        for (_, _, signs), z in zip(self.blocks, predictors, strict=True):
            r = signs * z
            xp.minimum(r, 80, out=r)  # exp(80) is finite in float32, and 1 / (1 + exp(80)) is 0 to any purpose
            xp.exp(r, out=r)
            r += 1
            xp.divide(signs, r, out=r)
            xp.negative(r, out=r)
            out.append(r)
        return out


def curvature_factor(xp: Any, X: Array, penalty: npt.NDArray[np.float64]) -> Array:
    """F with F.T @ F close to the inverse of TYPICAL_VARIANCE * cov(X) + diag(penalty), shape (d, d) float64.

    Only speed depends on it, so the Gram matrix is taken in the dtype of the data; scaling to a unit diagonal
    keeps its rounding harmless where features differ widely in size.
    """
    curvature = (X.T @ X).astype(np.float64) * (TYPICAL_VARIANCE / len(X))
    at = xp.arange(len(curvature))
    curvature[at, at] += xp.asarray(penalty)
    size = xp.sqrt(curvature[at, at])
    size = xp.where(size > 0, size, 1)
    curvature /= size[:, None] * size
    curvature[at, at] += 1e-5 if X.dtype == np.float32 else 1e-10
    return xp.linalg.inv(xp.linalg.cholesky(curvature)) / size


def _columns(xp: Any, matrix: Array, mask: Array) -> Array:
    return xp.asfortranarray(matrix[:, mask])


# Elements (rows x problems) of the predictor matrix of one batch; larger sets of problems go in several.
BATCH_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class LinearFit:
    """P linear probes: score = x @ coef + intercept, larger for the positive class.

    Attributes:
        coef: [array-like, shape: (P, d)] in the dtype of the data.
        intercept: [array-like, shape: (P,)] float64.
        converged: [array-like, shape: (P,)] whether the largest component of the gradient of the mean loss
            came within the tolerance; methods in closed form are always converged.
        iterations: [array-like, shape: (P,)] int64; 0 in closed form.
    """

    coef: npt.NDArray[np.floating]
    intercept: npt.NDArray[np.float64]
    converged: npt.NDArray[np.bool_]
    iterations: npt.NDArray[np.int64]


def fit_logistic(
    X: npt.NDArray[np.floating],
    signs: npt.NDArray[np.integer],
    *,
    C: float | npt.NDArray[np.float64] = 0.1,
    standardize: bool = False,
    blocks: npt.NDArray[np.integer] | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    backend: Backend | None = None,
) -> LinearFit:
    """Fit P two-class logistic regressions over the same rows.

    Each minimises sum(log(1 + exp(-s (x @ w + b)))) + |w|**2 / (2 C) over its rows with s != 0, as
    scikit-learn's LogisticRegression(C=C) does. Problems that float32 cannot bring within the tolerance are
    finished in float64.

    Args:
        X: [array-like, shape: (n, d)] activations, float32 or float64 (float64 is fitted in float64).
        signs: [array-like, shape: (n, P)] int8: +1 = positive class, -1 = negative, 0 = not a training row.
        C: inverse strength of the penalty, one or one for each problem.
        standardize: penalise the coefficients of features scaled to unit variance over each problem's own
            training rows; the coefficients that come back are those of the unscaled features.
        blocks: [array-like, shape: (n,)] a label of each row such that a problem uses whole blocks, for speed.
        tol: on the largest component of the gradient of the mean loss.
        max_iter: most iterations.
        backend: where to compute; the CPU by default.

    Raises:
        InputError: a problem without training rows of both classes.

    >>> X = np.random.default_rng(0).normal(size=(200, 5)).astype("f4")
    >>> fit = fit_logistic(X, np.where(X[:, :1] > 0, 1, -1).astype("i1"), C=1.0)
    >>> bool(fit.converged.all()), int(fit.coef[0].argmax())
    (True, 0)
    """
    backend = backend or resolve_backend("cpu")
    require_both_classes(signs)
    n_problems = signs.shape[1]
    dtype = np.float64 if X.dtype == np.float64 else np.float32
    used = np.flatnonzero((signs != 0).any(axis=1))
    mean = X[used].mean(axis=0, dtype=np.float64)
    centred = X[used] - mean.astype(dtype)
    scales = _scales(centred, signs[used]) if standardize else None
    penalties = np.broadcast_to(np.asarray(C, dtype=np.float64), (n_problems,))
    rotation = None
    if scales is None and len(used) < X.shape[1]:
        # Fewer rows than features: the coefficients lie in the span of the rows, so look only there.
        rotation, triangle = np.linalg.qr(centred.T)
        centred = np.ascontiguousarray(triangle.T)
    labels = np.zeros(len(used), dtype=np.int64) if blocks is None else np.asarray(blocks)[used]

    coef = np.zeros((n_problems, X.shape[1]), dtype=dtype)
    intercept = np.zeros(n_problems)
    converged = np.zeros(n_problems, dtype=bool)
    iterations = np.zeros(n_problems, dtype=np.int64)
    for batch in _batches(signs[used], penalties):
        task = _Batch(backend, centred, signs[used][:, batch], penalties[batch], labels,
                      None if scales is None else scales[batch], rotation is not None)  # fmt: skip
        found = task.fit(tol, max_iter)
        point = to_numpy(found.points)
        w = point[:, :-1] if rotation is None else point[:, :-1] @ rotation.T
        coef[batch] = w
        intercept[batch] = point[:, -1].astype(np.float64) - w.astype(np.float64) @ mean
        converged[batch], iterations[batch] = found.converged, found.iterations
    return LinearFit(coef, intercept, converged, iterations)


def require_both_classes(signs: npt.NDArray[np.integer]) -> None:
    """Refuse problems whose training rows hold one class only.

    Raises:
        InputError: how many, and which is the first.
    """
    empty = np.flatnonzero(~((signs > 0).any(axis=0) & (signs < 0).any(axis=0)))
    if len(empty):
        raise InputError(
            f"{len(empty)} of {signs.shape[1]} probes have training rows of one class only (first: problem "
            f"{int(empty[0])}); each needs rows of both. Use fewer folds, or another target or test selection"
        )


class _Batch:
    """Problems with about the same penalty, and the preconditioner that they share."""

    def __init__(
        self, backend: Backend, X: npt.NDArray[np.floating], signs: npt.NDArray[np.integer],
        C: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], scales: npt.NDArray[np.floating] | None,
        rotated: bool,
    ) -> None:  # fmt: skip
        rows = (signs != 0).any(axis=1)
        if not rows.all():
            X, signs, labels = X[rows], signs[rows], labels[rows]
        self.backend, self.X, self.signs, self.labels, self.rotated = backend, X, signs, labels, rotated
        self.count = (signs != 0).sum(axis=0).astype(np.float64)
        self.unit = np.ones((len(C), 1)) if scales is None else scales
        self.penalty = self.unit**2 / (C * self.count)[:, None]

    def fit(self, tol: float, max_iter: int) -> Minimum:
        found = minimise(self.objective(self.X.dtype), tol=tol, max_iter=max_iter)
        if self.X.dtype == np.float32 and not found.converged.all():
            # Rounding stopped them (features of very different sizes): the same again in float64.
            left = np.flatnonzero(~found.converged)
            rest = _Batch.__new__(_Batch)
            rest.__dict__.update(self.__dict__)
            rest.signs, rest.count = self.signs[:, left], self.count[left]
            rest.penalty, rest.unit = self.penalty[left], self.unit[left]
            exact = minimise(rest.objective(np.dtype(np.float64)), tol=tol, max_iter=max_iter)
            found.points[self.backend.xp.asarray(left)] = exact.points.astype(np.float32)
            found.converged[left] = exact.converged
            found.iterations[left] += exact.iterations
        return found

    def objective(self, dtype: np.dtype[Any]) -> BinaryObjective:
        xp = self.backend.xp
        X = xp.asarray(self.X.astype(dtype, copy=False))
        factor = curvature_factor(xp, X, self.penalty.mean(axis=0))
        blocks = []
        for label in np.unique(self.labels):
            rows = np.flatnonzero(self.labels == label)
            signs = self.signs[rows]
            problems = np.flatnonzero((signs != 0).any(axis=0))
            blocks.append(
                (
                    X[xp.asarray(rows)],
                    xp.asarray(problems),
                    xp.asarray(np.asfortranarray(signs[:, problems].astype(dtype))),
                )
            )
        return BinaryObjective(
            xp, blocks, xp.asarray(self.count.astype(dtype)), xp.asarray(self.penalty.astype(dtype)),
            factor.astype(dtype), xp.asarray(self.unit.astype(dtype)), self.rotated,
        )  # fmt: skip


def _scales(X: npt.NDArray[np.floating], signs: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Standard deviation of every feature over each problem's training rows, 1 where it is constant, (P, d)."""
    member = (signs != 0).astype(X.dtype)
    count = member.sum(axis=0, dtype=np.float64)[:, None]
    mean = (member.T @ X).astype(np.float64) / count
    variance = (member.T @ (X * X)).astype(np.float64) / count - mean**2
    rounding = 64 * np.finfo(X.dtype).eps * (mean**2 + variance.clip(0))
    return np.where(variance > rounding, np.sqrt(variance.clip(0)), 1.0)


def _batches(signs: npt.NDArray[np.integer], C: npt.NDArray[np.float64]) -> list[npt.NDArray[np.int64]]:
    """Problems that are solved together: one penalty each, and no more than memory likes."""
    out: list[npt.NDArray[np.int64]] = []
    for value in np.unique(C):
        same = np.flatnonzero(np.equal(C, value))
        size = np.cumsum((signs[:, same] != 0).sum(axis=0))
        parts = size // BATCH_ELEMENTS
        out.extend(same[parts == part] for part in np.unique(parts))
    return out


def fit_softmax(
    X: npt.NDArray[np.floating],
    codes: npt.NDArray[np.int64],
    inside: npt.NDArray[np.bool_],
    *,
    C: npt.NDArray[np.float64],
    backend: Backend,
    standardize: bool = False,
    tol: float = 1e-6,
    max_iter: int = 5000,
) -> LinearFit:
    """Fit K softmax regressions on K training sets.

    Args:
        X: [array-like, shape: (n, d)].
        codes: [array-like, shape: (n,)] class of each row, 0 .. G - 1; every training set holds every class.
        inside: [array-like, shape: (n, K)] training rows.
        C: [array-like, shape: (K,)] inverse penalties.
        backend: where.
        standardize: features scaled to unit variance over the training rows.
        tol: on the gradient.
        max_iter: most iterations.

    Returns:
        LinearFit whose coef and intercept hold G * K probes, K fastest, and whose converged and iterations are (K,).
    """
    n_sets, n_classes = inside.shape[1], int(codes.max()) + 1
    coef = np.zeros((n_classes, n_sets, X.shape[1]), dtype=X.dtype)
    intercept = np.zeros((n_classes, n_sets))
    iterations = np.zeros(n_sets, dtype=np.int64)
    for k in range(n_sets):
        rows = np.flatnonzero(inside[:, k])
        train = X[rows].astype(np.float64)
        mean = train.mean(axis=0)
        scale = train.std(axis=0) if standardize else np.ones(X.shape[1])
        scale[scale == 0] = 1
        train -= mean
        train /= scale
        model: Any = logistic_estimator(backend, C=float(C[k]), tol=tol, max_iter=max_iter)
        model.fit(backend.asarray(train), backend.asarray(codes[rows]))
        w, b = to_numpy(model.coef_), to_numpy(model.intercept_)
        if len(w) == 1:  # two classes: libraries give one direction, the classes' scores are its halves
            w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
        coef[:, k] = w / scale
        intercept[:, k] = b - (w / scale) @ mean
        iterations[k] = int(np.max(to_numpy(np.asarray(model.n_iter_))))
    flat = n_classes * n_sets
    return LinearFit(coef.reshape(flat, -1), intercept.ravel(), iterations < max_iter, iterations)
