"""Logistic regression for many problems over the same rows: exact, batched, on numpy or cupy.

Minimises what scikit-learn's LogisticRegression minimises (L2 penalty, unpenalised intercept), to a smaller
gradient than its float32 lbfgs reaches, for all pairs and folds of a slab together. What makes it fast
without changing the answer: the slab is centred once (the intercept absorbs it), rotated to the row space
where there are fewer rows than features, and the Gram matrix that all problems share serves as the
preconditioner of a batched L-BFGS (lbfgs.py). Folds and scores live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.backend import Backend, resolve, to_numpy
from stratalens.analyses.fitting.lbfgs import Minimum, minimise
from stratalens.analyses.fitting.logistic_loss import BinaryObjective, curvature_factor
from stratalens.store.errors import InputError

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
    backend = backend or resolve("cpu")
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
