"""Ridge, LDA and difference of means for all pairs and folds of a slab, from shared Gram matrices.

Each group's Gram matrix is taken once, and that of a fold is subtracted from it, so that cross-validation
costs no second pass over the rows: exactly the refits, not an approximation. Solved in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stratalens.analyses.logistic import LinearFit
from stratalens.store.errors import InputError

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
METHODS = ("ridge", "lda", "diffmeans")


@dataclass
class Moments:
    """n, mean and scatter around the mean of some rows, in coordinates shifted by the slab's mean.

    Attributes:
        n: rows.
        mean: [array-like, shape: (d,)] float64.
        scatter: [array-like, shape: (d, d)] sum of (x - mean)(x - mean)^T, float64; empty where not needed.
    """

    n: int
    mean: Doubles
    scatter: Doubles


def fit_closed_form(
    X: Floats,
    signs: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int64],
    method: str,
    *,
    alpha: float | Doubles = 10.0,
    standardize: bool = False,
) -> LinearFit:
    """Fit P x K two-class probes in closed form: P contrasts, each on K training sets.

    Args:
        X: [array-like, shape: (n, d)] float32 or float64.
        signs: [array-like, shape: (n, P, K)] int8 as from `training_signs`; the rows used by training set k must
            be few fewer than those of the last one for speed, not for correctness.
        labels: [array-like, shape: (n,)] a label of each row such that contrasts use whole labels.
        method: "ridge": least squares on -1 / +1 with penalty alpha |w|**2, unpenalised intercept (as
            scikit-learn's RidgeClassifier); "lda": class covariances each with Ledoit-Wolf shrinkage, weighted by
            the classes' shares (as LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")); "diffmeans":
            direction between the class means, threshold half-way.
        alpha: ridge penalty, one or one for each of the P x K fits.
        standardize: features scaled to unit variance over each fit's training rows (lda does so anyway).

    Returns:
        LinearFit with P * K probes, K fastest.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}; valid in closed form: {', '.join(METHODS)}")
    n_pairs, n_sets = signs.shape[1:]
    shift = X.mean(axis=0, dtype=np.float64)
    centred = X - shift.astype(X.dtype)
    coef = np.zeros((n_pairs, n_sets, X.shape[1]), dtype=X.dtype)
    intercept = np.zeros((n_pairs, n_sets))
    penalty = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (n_pairs * n_sets,)).reshape(n_pairs, n_sets)
    for k, source in _training_sets(centred, signs, labels, scatter=method != "diffmeans" or standardize):
        for p in range(n_pairs):
            sign = signs[:, p, k]
            if method == "ridge":
                w, b = _ridge(centred, sign, source, penalty[p, k], standardize)
            elif method == "lda":
                w, b = _lda(source.moments(sign < 0), source.moments(sign > 0), centred, sign)
            else:
                w, b = _diffmeans(centred, sign, source, standardize)
            coef[p, k] = w
            intercept[p, k] = b - w @ shift
    flat = n_pairs * n_sets
    return LinearFit(
        coef.reshape(flat, -1), intercept.ravel(), np.ones(flat, dtype=bool), np.zeros(flat, dtype=np.int64)
    )


def fit_order(
    X: Floats,
    inside: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int64],
    value: Doubles,
    *,
    alpha: float | Doubles = 10.0,
    standardize: bool = False,
) -> LinearFit:
    """Ridge regression of a number (the position in the order) on K training sets.

    Args:
        X: [array-like, shape: (n, d)].
        inside: [array-like, shape: (n, 1, K)] 1 = training row.
        labels: as in `fit_closed_form`.
        value: [array-like, shape: (n,)] what is predicted.
        alpha: penalty, one or one for each training set.
        standardize: as in `fit_closed_form`.
    """
    n_sets = inside.shape[2]
    shift = X.mean(axis=0, dtype=np.float64)
    centred = X - shift.astype(X.dtype)
    coef = np.zeros((n_sets, X.shape[1]), dtype=X.dtype)
    intercept = np.zeros(n_sets)
    penalty = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (n_sets,))
    for k, source in _training_sets(centred, inside, labels, scatter=True):
        member = inside[:, 0, k] != 0
        w, b = _ridge(centred, np.where(member, value, 0.0), source, penalty[k], standardize, member)
        coef[k] = w
        intercept[k] = b - w @ shift
    return LinearFit(coef, intercept, np.ones(n_sets, dtype=bool), np.zeros(n_sets, dtype=np.int64))


class _TrainingSet:
    """Moments of any union of labels within one training set, each computed once."""

    def __init__(self, X: Floats, labels: npt.NDArray[np.int64], member: npt.NDArray[np.bool_],
                 grams: dict[int, Floats]) -> None:  # fmt: skip
        self.X, self.labels, self.member, self.grams = X, labels, member, grams
        self.size = {g: int((member & (labels == g)).sum()) for g in np.unique(labels).tolist()}
        self.cache: dict[bytes, Moments] = {}

    def moments(self, rows: npt.NDArray[np.bool_]) -> Moments:
        """Of these rows: from the labels' Gram matrices where the rows are whole labels, else directly."""
        key = np.packbits(rows).tobytes()
        if key not in self.cache:
            n = int(rows.sum())
            mean = (rows.astype(self.X.dtype) @ self.X).astype(np.float64) / n
            found = np.unique(self.labels[rows]).tolist()
            scatter = np.empty((0, 0))
            if self.grams:
                if n == sum(self.size[g] for g in found):
                    scatter = np.zeros((self.X.shape[1],) * 2)
                    for g in found:
                        scatter += self.grams[g]
                else:
                    scatter = (self.X[rows].T @ self.X[rows]).astype(np.float64)
                scatter -= n * np.outer(mean, mean)
            self.cache[key] = Moments(n, mean, scatter)
        return self.cache[key]


def _training_sets(
    X: Floats, signs: npt.NDArray[np.int8], labels: npt.NDArray[np.int64], scatter: bool
) -> Iterator[tuple[int, _TrainingSet]]:
    """Each training set with its labels' Gram matrices, by subtraction from the last one, which holds all rows."""
    used = (signs != 0).any(axis=1)
    whole = {g: used[:, -1] & (labels == g) for g in np.unique(labels).tolist()} if scatter else {}
    total = {g: X[rows].T @ X[rows] for g, rows in whole.items()}
    for k in range(signs.shape[2]):
        grams = {}
        for g, rows in whole.items():
            out = rows & ~used[:, k]
            fewer = int(out.sum()) * 2 < int(rows.sum())
            inside = rows & used[:, k]
            grams[g] = total[g] - X[out].T @ X[out] if fewer else X[inside].T @ X[inside]
        yield k, _TrainingSet(X, labels, used[:, k], grams)


def _ridge(
    X: Floats, target: npt.NDArray[np.generic], source: _TrainingSet, alpha: float, standardize: bool,
    member: npt.NDArray[np.bool_] | None = None,
) -> tuple[Doubles, float]:  # fmt: skip
    rows = target != 0 if member is None else member
    all_rows = source.moments(rows)
    y = target[rows].astype(np.float64)
    response = (target.astype(X.dtype) @ X).astype(np.float64) - y.sum() * all_rows.mean
    system = all_rows.scatter.copy()
    scale = _deviation(all_rows) if standardize else np.ones(len(response))
    system[np.diag_indices_from(system)] += alpha * scale**2
    w = _solve(system, response)
    return w, float(y.mean() - w @ all_rows.mean)


def _diffmeans(X: Floats, sign: npt.NDArray[np.int8], source: _TrainingSet, standardize: bool) -> tuple[Doubles, float]:
    low, high = source.moments(sign < 0), source.moments(sign > 0)
    w = high.mean - low.mean
    if standardize:
        w = w / _deviation(source.moments(sign != 0)) ** 2
    return w, float(-w @ (high.mean + low.mean) / 2)


def _lda(low: Moments, high: Moments, X: Floats, sign: npt.NDArray[np.int8]) -> tuple[Doubles, float]:
    share = np.array([low.n, high.n]) / (low.n + high.n)
    covariance = share[0] * _shrunk(low, X, sign < 0) + share[1] * _shrunk(high, X, sign > 0)
    w = _solve(covariance, high.mean - low.mean)
    return w, float(-w @ (high.mean + low.mean) / 2 + np.log(share[1] / share[0]))


def _shrunk(moments: Moments, X: Floats, rows: npt.NDArray[np.bool_]) -> Doubles:
    """Covariance with Ledoit-Wolf shrinkage of the standardised features, scaled back (scikit-learn's "auto")."""
    n, d = moments.n, len(moments.mean)
    scale = _deviation(moments)
    standard = moments.scatter / n / (scale[:, None] * scale)
    weight = (1 / scale**2).astype(X.dtype)
    centre = moments.mean
    inside = X[rows]
    # |(x - mean) / scale|**2 of every row, without making the standardised rows
    length = (inside * inside) @ weight - 2 * (inside @ (centre / scale**2).astype(X.dtype))
    length = length.astype(np.float64) + float((centre**2 / scale**2).sum())
    trace = float(np.trace(standard))
    mu = trace / d
    square = float((standard**2).sum())
    beta = (float((length**2).sum()) / n - square) / (d * n)
    delta = (square - 2 * mu * trace + d * mu**2) / d
    beta = min(beta, delta)
    shrinkage = 0.0 if beta <= 0 else beta / delta
    standard *= 1 - shrinkage
    standard[np.diag_indices(d)] += shrinkage * mu
    return np.asarray(standard * (scale[:, None] * scale), dtype=np.float64)


def _deviation(moments: Moments) -> Doubles:
    """Standard deviation of each feature; 1 where it is constant."""
    variance = np.diagonal(moments.scatter) / moments.n
    constant = variance <= 64 * np.finfo(np.float32).eps * np.maximum(moments.mean**2, np.finfo(np.float64).tiny)
    return np.where(constant, 1.0, np.sqrt(np.where(constant, 1.0, variance)))


def _solve(matrix: Doubles, right: Doubles) -> Doubles:
    """Symmetric solve; least squares of smallest norm where the matrix is singular."""
    try:
        factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
    except linalg.LinAlgError:
        return np.asarray(linalg.lstsq(matrix, right)[0], dtype=np.float64)
    return np.asarray(linalg.cho_solve(factor, right, check_finite=False), dtype=np.float64)
