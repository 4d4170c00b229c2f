"""Logistic regression: many two-class problems over shared rows at once, and softmax over all classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.estimators.backend import Backend, logistic_estimator, resolve_backend, to_numpy
from stratalens.analyses.estimators.lbfgs import Minimum, minimise
from stratalens.store.errors import InputError

Array = Any  # numpy.ndarray or cupy.ndarray
Integers = npt.NDArray[np.integer]

# Mean of p (1 - p) that the preconditioner assumes; the line search corrects it.
TYPICAL_VARIANCE = 0.2
# Elements (rows x problems) of the predictor matrix of one batch; more problems need several batches.
BATCH_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class LinearFit:
    """P linear probes: score = x @ coef + intercept, larger for the positive class.

    Attributes:
        coef: array of shape (P, d), in the dtype of the data.
        intercept: float64 array of shape (P,).
        converged: bool array of shape (P,), whether the largest component of the gradient of the mean loss
            is within the tolerance; methods in closed form are always converged.
        n_iter: int64 array of shape (P,), iterations; 0 in closed form.
    """

    coef: Floats
    intercept: Doubles
    converged: Mask
    n_iter: Codes


def fit_logistic(
    X: Floats,
    signs: Integers,
    *,
    C: float | Doubles = 0.1,
    standardize: bool = False,
    blocks: Integers | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    backend: Backend | None = None,
) -> LinearFit:
    """Fit P two-class logistic regressions over the same rows.

    Each one minimises sum(log(1 + exp(-s (x @ w + b)))) + |w|**2 / (2 C) over its rows with s != 0, like
    scikit-learn's LogisticRegression(C=C). Problems that do not converge in float32 are finished in float64.

    Args:
        X: float32 or float64 array of shape (n, d), activations; float64 is fitted in float64.
        signs: int8 array of shape (n, P): +1 = positive class, -1 = negative class, 0 = not a training row.
        C: inverse strength of the penalty, one or one for each problem.
        standardize: penalise the coefficients of features scaled to unit variance over each problem's own
            training rows; the returned coefficients are those of the unscaled features.
        blocks: int array of shape (n,), a label of each row such that a problem uses whole blocks, for speed.
        tol: on the largest component of the gradient of the mean loss.
        max_iter: most iterations.
        backend: where to compute; the CPU by default.

    Raises:
        InputError: a problem without training rows of both classes.

    Example:
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
        # With fewer rows than features, the coefficients are in the span of the rows: solve in that space.
        rotation, triangle = np.linalg.qr(centred.T)
        centred = np.ascontiguousarray(triangle.T)
    labels = np.zeros(len(used), dtype=np.int64) if blocks is None else np.asarray(blocks)[used]

    coef = np.zeros((n_problems, X.shape[1]), dtype=dtype)
    intercept = np.zeros(n_problems)
    converged = np.zeros(n_problems, dtype=bool)
    n_iter = np.zeros(n_problems, dtype=np.int64)
    for problems in _batches(signs[used], penalties):
        batch = ProblemBatch.of(
            backend,
            centred,
            signs[used][:, problems],
            penalties[problems],
            labels,
            scales=None if scales is None else scales[problems],
            rotated=rotation is not None,
        )
        minimum = batch.fit(tol, max_iter)
        points = to_numpy(minimum.points)
        w = points[:, :-1] if rotation is None else points[:, :-1] @ rotation.T
        coef[problems] = w
        intercept[problems] = points[:, -1].astype(np.float64) - w.astype(np.float64) @ mean
        converged[problems], n_iter[problems] = minimum.converged, minimum.n_iter
    return LinearFit(coef, intercept, converged, n_iter)


def fit_softmax(
    X: Floats,
    codes: Codes,
    inside: Mask,
    *,
    C: Doubles,
    backend: Backend,
    standardize: bool = False,
    tol: float = 1e-6,
    max_iter: int = 5000,
) -> LinearFit:
    """Fit K softmax regressions on K training sets, with a library's estimator.

    Args:
        X: array of shape (n, d).
        codes: int64 array of shape (n,), class of each row, 0 .. G - 1; every training set has every class.
        inside: bool array of shape (n, K), training rows.
        C: float64 array of shape (K,), inverse strengths of the penalty.
        backend: where to compute.
        standardize: scale features to unit variance over the training rows.
        tol: on the gradient.
        max_iter: most iterations.

    Returns:
        LinearFit whose coef and intercept are those of G * K probes, K fastest, with converged and n_iter of
        shape (K,).
    """
    n_sets, n_classes = inside.shape[1], int(codes.max()) + 1
    coef = np.zeros((n_classes, n_sets, X.shape[1]), dtype=X.dtype)
    intercept = np.zeros((n_classes, n_sets))
    n_iter = np.zeros(n_sets, dtype=np.int64)
    for k in range(n_sets):
        raise_if_cancelled()
        rows = np.flatnonzero(inside[:, k])
        train = X[rows].astype(np.float64)
        mean = train.mean(axis=0)
        scale = train.std(axis=0) if standardize else np.ones(X.shape[1])
        scale[scale == 0] = 1
        train -= mean
        train /= scale
        size = n_classes * X.shape[1]
        model = logistic_estimator(backend, C=float(C[k]), tol=tol, max_iter=max_iter, coefficients=size)
        model.fit(backend.asarray(train), backend.asarray(codes[rows]))
        w, b = to_numpy(model.coef_), to_numpy(model.intercept_)
        if len(w) == 1:  # for two classes, libraries return one direction; half of it is each class's score
            w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
        coef[:, k] = w / scale
        intercept[:, k] = b - (w / scale) @ mean
        n_iter[k] = int(np.max(to_numpy(np.asarray(model.n_iter_))))
    flat = n_classes * n_sets
    return LinearFit(coef.reshape(flat, -1), intercept.ravel(), n_iter < max_iter, n_iter)


def require_both_classes(signs: Integers) -> None:
    """Refuse problems whose training rows are all of one class.

    Raises:
        InputError: says how many problems, and which is the first.
    """
    empty = np.flatnonzero(~((signs > 0).any(axis=0) & (signs < 0).any(axis=0)))
    if len(empty):
        raise InputError(
            f"{len(empty)} of {signs.shape[1]} probes have training rows of one class only (first: problem "
            f"{int(empty[0])}); each needs rows of both. Use fewer folds, or another target or test selection"
        )


@dataclass(frozen=True)
class ProblemBatch:
    """Problems of one penalty that are solved together, with one preconditioner.

    Attributes:
        backend: where to compute.
        X: array of shape (n, d), centred rows.
        signs: integer array of shape (n, P).
        labels: int array of shape (n,), block of each row.
        count: float64 array of shape (P,), training rows.
        unit: float64 array of shape (P, d) or (P, 1), scale of the features.
        penalty: float64 array of shape (P, d) or (P, 1), coefficient of w_j**2 / 2 in the mean loss.
        rotated: whether the features are coordinates in the span of the rows.
    """

    backend: Backend
    X: Floats
    signs: Integers
    labels: Integers
    count: Doubles
    unit: Doubles
    penalty: Doubles
    rotated: bool

    @classmethod
    def of(
        cls,
        backend: Backend,
        X: Floats,
        signs: Integers,
        C: Doubles,
        labels: Integers,
        scales: Doubles | None = None,
        rotated: bool = False,
    ) -> ProblemBatch:
        """Build a batch from the rows that its problems use.

        Args:
            backend: where to compute.
            X: array of shape (n, d), centred rows.
            signs: integer array of shape (n, P).
            C: float64 array of shape (P,), inverse strengths of the penalty.
            labels: int array of shape (n,), block of each row.
            scales: float64 array of shape (P, d), scale of the features; None = 1.
            rotated: whether the features are coordinates in the span of the rows.
        """
        rows = (signs != 0).any(axis=1)
        if not rows.all():
            X, signs, labels = X[rows], signs[rows], labels[rows]
        count = (signs != 0).sum(axis=0).astype(np.float64)
        unit = np.ones((len(C), 1)) if scales is None else scales
        return cls(backend, X, signs, labels, count, unit, unit**2 / (C * count)[:, None], rotated)

    def fit(self, tol: float, max_iter: int) -> Minimum:
        """Minimise all problems in the dtype of the data, and finish those that do not converge in float64."""
        minimum = minimise(self.objective(self.X.dtype), tol=tol, max_iter=max_iter)
        if self.X.dtype == np.float32 and not minimum.converged.all():
            # Rounding stopped these problems; their features have very different sizes.
            remaining = np.flatnonzero(~minimum.converged)
            rest = replace(
                self,
                signs=self.signs[:, remaining],
                count=self.count[remaining],
                unit=self.unit[remaining],
                penalty=self.penalty[remaining],
            )
            exact = minimise(rest.objective(np.dtype(np.float64)), tol=tol, max_iter=max_iter)
            minimum.points[self.backend.xp.asarray(remaining)] = exact.points.astype(np.float32)
            minimum.converged[remaining] = exact.converged
            minimum.n_iter[remaining] += exact.n_iter
        return minimum

    def objective(self, dtype: np.dtype[Any]) -> BinaryObjective:
        """Build the objective of these problems on the backend's device."""
        xp = self.backend.xp
        X = xp.asarray(self.X.astype(dtype, copy=False))
        blocks = []
        for label in np.unique(self.labels):
            rows = np.flatnonzero(self.labels == label)
            signs = self.signs[rows]
            problems = np.flatnonzero((signs != 0).any(axis=0))
            block_signs = np.asfortranarray(signs[:, problems].astype(dtype))
            blocks.append((X[xp.asarray(rows)], xp.asarray(problems), xp.asarray(block_signs)))
        factor = curvature_factor(xp, X, self.penalty.mean(axis=0)).astype(dtype)
        count, penalty, unit = (xp.asarray(v.astype(dtype)) for v in (self.count, self.penalty, self.unit))
        return BinaryObjective(xp, blocks, count, penalty, factor, unit, self.rotated)


@dataclass(eq=False)
class BinaryObjective:
    """Mean logistic loss and penalty of P two-class problems.

    Args:
        xp: numpy or cupy.
        blocks: for each block of rows, X of shape (n_b, d), the problems (P_b,) that use these rows, and their signs
            of shape (n_b, P_b): +1 positive, -1 negative, 0 not a training row.
        count: array of shape (P,), training rows of each problem.
        penalty: array of shape (P, d) or (P, 1), coefficient of w_j**2 / 2 in the mean loss.
        factor: array of shape (d, d), F with F.T @ F the inverse curvature that all problems share.
        unit: array of shape (P, d) or (P, 1), scale of the features, the unit of the gradient's size.
        rotated: measure the gradient by its length, which bounds the largest component in any rotation.

    Attributes:
        points: array of shape (P, d + 1), coefficients, and the intercept in the last column.
    """

    xp: Any
    blocks: list[tuple[Array, Array, Array]]
    count: Array
    penalty: Array
    factor: Array
    unit: Array
    rotated: bool

    def __post_init__(self) -> None:
        self.points = self.xp.zeros((len(self.count), len(self.factor) + 1), dtype=self.factor.dtype)
        self.predictors = [self.xp.zeros(signs.shape, dtype=self.factor.dtype) for _, _, signs in self.blocks]
        self.residuals = self._residuals(self.predictors)

    def gradient(self) -> Array:
        """Gradient of the mean loss with the penalty; the last column is the intercept's."""
        xp = self.xp
        out = xp.zeros_like(self.points)
        for (x, problems, _), residual in zip(self.blocks, self.residuals, strict=True):
            out[problems, :-1] += residual.T @ x
            out[problems, -1] += residual.sum(axis=0)
        out /= self.count[:, None]
        out[:, :-1] += self.penalty * self.points[:, :-1]
        return out

    def norm(self, gradient: Array) -> Array:
        """Largest component, in units of each feature's scale; the length if the features are rotated."""
        scaled = gradient[:, :-1] / self.unit
        if self.rotated:
            return self.xp.maximum(self.xp.sqrt((scaled * scaled).sum(axis=1)), self.xp.abs(gradient[:, -1]))
        return self.xp.maximum(self.xp.abs(scaled).max(axis=1), self.xp.abs(gradient[:, -1]))

    def precondition(self, vectors: Array) -> Array:
        """Apply the shared inverse curvature."""
        # Two products with a factor, so that rounding keeps the result positive definite.
        out = self.xp.empty_like(vectors)
        out[:, :-1] = (vectors[:, :-1] @ self.factor.T) @ self.factor
        out[:, -1] = vectors[:, -1] / TYPICAL_VARIANCE
        return out

    def set_direction(self, directions: Array) -> None:
        """Compute the change of the predictors; they are linear in the step, so one pass is enough for a line."""
        self.directions = directions
        self.change = [x @ directions[problems, :-1].T + directions[problems, -1] for x, problems, _ in self.blocks]
        w, v = self.points[:, :-1], directions[:, :-1]
        self.cross = (self.penalty * w * v).sum(axis=1)
        self.square = (self.penalty * v * v).sum(axis=1)

    def slope(self, alpha: Array) -> tuple[Array, Array]:
        """First and second derivative along the line."""
        xp = self.xp
        self.new_predictors = [
            z + step * alpha[problems]
            for (_, problems, _), z, step in zip(self.blocks, self.predictors, self.change, strict=True)
        ]
        self.new_residuals = self._residuals(self.new_predictors)
        slope, curvature = xp.zeros_like(alpha), xp.zeros_like(alpha)
        for (_, problems, _), r, step in zip(self.blocks, self.new_residuals, self.change, strict=True):
            slope[problems] += xp.einsum("ij,ij->j", r, step)
            variance = xp.abs(r)
            variance -= variance * variance  # p (1 - p), and 0 for rows outside, whose residual is 0
            variance *= step
            curvature[problems] += xp.einsum("ij,ij->j", variance, step)
        return (
            slope / self.count + self.cross + alpha * self.square,
            curvature / self.count + self.square + xp.finfo(alpha.dtype).tiny,
        )

    def move(self, alpha: Array) -> None:
        """Move the points by the steps of the last call of `slope`."""
        self.points = self.points + self.directions * alpha[:, None]
        self.predictors, self.residuals = self.new_predictors, self.new_residuals

    def select(self, mask: Array) -> None:
        """Remove the problems where `mask` (P,) is False."""
        xp = self.xp
        number = xp.cumsum(mask) - 1
        blocks, predictors, residuals = [], [], []
        for (x, problems, signs), z, r in zip(self.blocks, self.predictors, self.residuals, strict=True):
            stay = mask[problems]
            if bool(stay.any()):
                columns = [xp.asfortranarray(matrix[:, stay]) for matrix in (signs, z, r)]
                blocks.append((x, number[problems[stay]], columns[0]))
                predictors.append(columns[1])
                residuals.append(columns[2])
        self.blocks, self.predictors, self.residuals = blocks, predictors, residuals
        self.points, self.count, self.penalty = self.points[mask], self.count[mask], self.penalty[mask]
        self.unit = self.unit[mask]

    def _residuals(self, predictors: list[Array]) -> list[Array]:
        """Derivative of the loss by the predictor: -s / (1 + exp(s z))."""
        xp = self.xp
        out = []
        for (_, _, signs), z in zip(self.blocks, predictors, strict=True):
            r = signs * z
            xp.minimum(r, 80, out=r)  # exp(80) is finite in float32, and 1 / (1 + exp(80)) is practically 0
            xp.exp(r, out=r)
            r += 1
            xp.divide(signs, r, out=r)
            xp.negative(r, out=r)
            out.append(r)
        return out


def curvature_factor(xp: Any, X: Array, penalty: Doubles) -> Array:
    """Factor F with F.T @ F close to the inverse of TYPICAL_VARIANCE * cov(X) + diag(penalty), shape (d, d) float64.

    The factor affects the speed alone, so the Gram matrix has the dtype of the data. Scaling to a unit diagonal keeps
    its rounding harmless where features differ widely in size.
    """
    curvature = (X.T @ X).astype(np.float64) * (TYPICAL_VARIANCE / len(X))
    diagonal = xp.arange(len(curvature))
    curvature[diagonal, diagonal] += xp.asarray(penalty)
    size = xp.sqrt(curvature[diagonal, diagonal])
    size = xp.where(size > 0, size, 1)
    curvature /= size[:, None] * size
    curvature[diagonal, diagonal] += 1e-5 if X.dtype == np.float32 else 1e-10
    return xp.linalg.inv(xp.linalg.cholesky(curvature)) / size


def _scales(X: Floats, signs: Integers) -> Doubles:
    """Standard deviation of every feature over each problem's training rows, 1 where it is constant, (P, d)."""
    member = (signs != 0).astype(X.dtype)
    count = member.sum(axis=0, dtype=np.float64)[:, None]
    mean = (member.T @ X).astype(np.float64) / count
    variance = (member.T @ (X * X)).astype(np.float64) / count - mean**2
    rounding = 64 * np.finfo(X.dtype).eps * (mean**2 + variance.clip(0))
    return np.where(variance > rounding, np.sqrt(variance.clip(0)), 1.0)


def _batches(signs: Integers, C: Doubles) -> list[Codes]:
    """Problems that are solved together: of one penalty, and with at most BATCH_ELEMENTS predictors."""
    out: list[Codes] = []
    for value in np.unique(C):
        same = np.flatnonzero(np.equal(C, value))
        elements = np.cumsum((signs[:, same] != 0).sum(axis=0))
        batch = elements // BATCH_ELEMENTS
        out.extend(same[batch == number] for number in np.unique(batch))
    return out
