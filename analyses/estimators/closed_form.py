"""Probes in closed form: ridge, LDA with Ledoit-Wolf shrinkage, and the difference of class means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import linalg

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Signs
from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.estimators.backend import Backend
from stratalens.analyses.estimators.gram import Rows
from stratalens.analyses.estimators.gram_gpu import DeviceGrams, solve_on_device
from stratalens.analyses.estimators.linear_systems import Systems
from stratalens.analyses.estimators.logistic import LinearFit
from stratalens.store.errors import InputError

METHODS = ("ridge", "lda", "diffmeans")

# Coefficients (P, K, d) of the shifted rows and intercepts (P, K).
Coefficients = tuple[Doubles, Doubles]
# From a training set, the labels that make up each class (C, labels), a scale of every feature and a centre (both
# (C, d)): trace and squared Frobenius norm of scale * (sum of x x^T) * scale - centre centre^T, both (C,).
Measure = Callable[[int, Doubles, Doubles, Doubles], tuple[Doubles, Doubles]]


def fit_closed_form(
    X: Floats,
    signs: Signs,
    labels: Codes,
    method: str,
    *,
    value: Doubles | None = None,
    alpha: float | Doubles = 10.0,
    standardize: bool = False,
    backend: Backend | None = None,
) -> LinearFit:
    """Fit P x K two-class probes in closed form: P contrasts, each on K training sets.

    Args:
        X: float32 or float64 array of shape (n, d).
        signs: int8 array of shape (n, P, K), as from `training_signs`: the last training set contains all rows.
        labels: int64 array of shape (n,), a label of each row such that contrasts use whole labels, for speed.
        method: "ridge": least squares on -1 / +1 with penalty alpha |w|**2, unpenalised intercept (as
            scikit-learn's RidgeClassifier); "lda": class covariances each with Ledoit-Wolf shrinkage, weighted by
            the classes' shares (as LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")); "diffmeans":
            direction between the class means, with the threshold half-way.
        value: float64 array of shape (n,), for "ridge" a number to predict instead of -1 / +1, such as the position in
            an order; the same in all rows of a label, and P is 1.
        alpha: ridge penalty, one or one for each of the P x K fits.
        standardize: scale features to unit variance over each fit's training rows; lda always does.
        backend: where to compute Gram matrices and solve systems; the CPU by default.

    Returns:
        LinearFit with P * K probes, K fastest.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}; valid in closed form: {', '.join(METHODS)}")
    penalty = np.broadcast_to(np.asarray(alpha, dtype=np.float64), signs.shape[1] * signs.shape[2])
    penalty = penalty.reshape(signs.shape[1:])
    value_of_label = {} if value is None else {int(c): float(value[labels == c][0]) for c in np.unique(labels)}

    def fit(x: Floats, targets: Signs, codes: Codes, alphas: Doubles) -> Coefficients:
        sums = _ClassSums(x, targets, codes)
        if method == "ridge":
            values = None if value is None else np.array([value_of_label[int(code)] for code in sums.names])
            return _ridge(sums, alphas, standardize, backend, values)
        return _lda(sums, backend) if method == "lda" else _diffmeans(sums, standardize)

    rotate = method == "ridge" and not standardize and _is_host(backend)
    return _fit_contrasts(X, signs, labels, penalty, fit, rotate)


def _fit_contrasts(
    X: Floats,
    signs: Signs,
    labels: Codes,
    penalty: Doubles,
    fit: Callable[[Floats, Signs, Codes, Doubles], Coefficients],
    rotate: bool,
) -> LinearFit:
    """Fit contrasts that use whole labels together, and others one by one.

    With `rotate`, contrasts with fewer rows than features are fitted in the span of their rows.
    """
    n_pairs, n_sets = signs.shape[1:]
    used = np.flatnonzero(signs.any(axis=(1, 2)))
    if len(used) < len(X):
        X, signs, labels = X[used], signs[used], labels[used]
    shift = X.mean(axis=0)  # any vector near the mean is enough, because the intercepts account for it
    centred = X - shift
    coef, intercept = np.zeros((n_pairs, n_sets, X.shape[1])), np.zeros((n_pairs, n_sets))
    fewest_rows = min((signs != 0).any(axis=2).sum(axis=0).min(initial=len(X)), len(X))
    together = _use_whole_labels(signs, labels) and (n_pairs == 1 or not (rotate and fewest_rows < X.shape[1]))
    for chosen in [slice(None)] if together else [slice(p, p + 1) for p in range(n_pairs)]:
        for sets in [slice(None)] if together else _consistent_sets(signs[:, chosen]):
            raise_if_cancelled()
            targets = signs[:, chosen, sets]
            rows = slice(None) if together else np.flatnonzero(targets.any(axis=(1, 2)))
            targets, codes = targets[rows], labels[rows]
            if not together and not _use_whole_labels(targets, codes):
                codes = targets.max(axis=(1, 2)).astype(np.int64)
            x = centred[rows]
            if rotate and len(x) < X.shape[1]:
                basis, triangle = np.linalg.qr(x.T)
                w, b = fit(np.ascontiguousarray(triangle.T), targets, codes, penalty[chosen, sets])
                w = w @ basis.T.astype(np.float64)
            else:
                w, b = fit(x, targets, codes, penalty[chosen, sets])
            coef[chosen, sets], intercept[chosen, sets] = w, b - w @ shift.astype(np.float64)
    flat = n_pairs * n_sets
    converged, n_iter = np.ones(flat, dtype=bool), np.zeros(flat, dtype=np.int64)
    return LinearFit(coef.reshape(flat, -1).astype(X.dtype), intercept.ravel(), converged, n_iter)


def _use_whole_labels(signs: Signs, labels: Codes) -> bool:
    """Whether each contrast puts all rows of a label, among those in use, into one class, or none of them."""
    inside = np.asarray(signs.any(axis=1))
    for code in np.unique(labels):
        block = signs[labels == code]
        low, high = block.min(axis=(0, 2)), block.max(axis=(0, 2))
        if (low * high < 0).any():
            return False
        contrasts = (low + high) != 0
        if not ((block[:, contrasts] != 0) == inside[labels == code][:, None, :]).all():
            return False
    return True


def _consistent_sets(signs: Signs) -> list[slice]:
    """All training sets together if no row changes its class between them, otherwise each one separately."""
    if (signs.min(axis=(1, 2)) * signs.max(axis=(1, 2)) < 0).any():
        return [slice(k, k + 1) for k in range(signs.shape[2])]
    return [slice(None)]


class _ClassSums:
    """Counts, sums and means of each class of each fit, negative class first.

    Args:
        X: array of shape (n, d), shifted rows.
        signs: int8 array of shape (n, P, K).
        labels: int64 array of shape (n,).

    Attributes:
        names: labels, sorted.
        rows: the rows by label.
        sign: int8 array of shape (labels, P), class of each label; 0 = not in this contrast.
        member: float64 array of shape (2, P, labels), 1.0 for the labels that make up each class.
        label_count: float64 array of shape (labels, K).
        label_sum: float64 array of shape (labels, K, d).
        count: float64 array of shape (2, P, K).
        sum: float64 array of shape (2, P, K, d).
        mean: float64 array of shape (2, P, K, d).
    """

    def __init__(self, X: Floats, signs: Signs, labels: Codes) -> None:
        self.names, codes = np.unique(labels, return_inverse=True)
        self.rows = Rows.of(X, codes, np.asarray(signs.any(axis=1)))
        ordered = signs[self.rows.order]
        blocks = [self.rows.block(g) for g in range(self.rows.labels)]
        self.sign = np.array([np.sign(ordered[b].sum(axis=(0, 2), dtype=np.int64)) for b in blocks], dtype=np.int8)
        self.member = np.stack([self.sign.T < 0, self.sign.T > 0]).astype(np.float64)
        self.label_count = np.array([self.rows.inside[b].sum(axis=0) for b in blocks], dtype=np.float64)
        self.label_sum = self.rows.sums()
        self.count = self.member @ self.label_count
        self.sum = np.tensordot(self.member, self.label_sum, 1)
        self.mean = self.sum / np.maximum(self.count, 1)[..., None]

    def deviation(self, pooled: bool) -> Doubles:
        """Standard deviation of each feature, 1 where it is constant: (P, K, d) if pooled, else (2, P, K, d)."""
        squares = np.tensordot(self.member, self.rows.sums(squared=True), 1)
        sums, count = self.sum, self.count
        if pooled:
            squares, sums, count = squares.sum(axis=0), sums.sum(axis=0), count.sum(axis=0)
        count = np.maximum(count, 1)[..., None]
        mean = sums / count
        variance = squares / count - mean**2
        rounding = 64 * np.finfo(np.float32).eps * np.maximum(mean**2, np.finfo(np.float64).tiny)
        constant = variance <= rounding
        return np.where(constant, 1.0, np.sqrt(np.where(constant, 1.0, variance)))


def _ridge(
    sums: _ClassSums, penalty: Doubles, standardize: bool, backend: Backend | None, value: Doubles | None = None
) -> Coefficients:
    """Least squares on the classes' signs, or on a value of each label."""
    count = sums.count.sum(axis=0)
    mean = sums.sum.sum(axis=0) / count[..., None]
    # (P, label): target of each label's rows in each contrast.
    target = sums.sign.T.astype(np.float64) if value is None else value * (sums.sign.T != 0)
    total = target @ sums.label_count
    right = np.tensordot(target, sums.label_sum, 1) - total[..., None] * mean
    scale = sums.deviation(pooled=True) ** 2 if standardize else np.ones(mean.shape[-1])
    diagonal = np.broadcast_to(penalty[..., None] * scale, mean.shape)
    solve, _ = _solvers(sums.rows, backend)
    weight = np.ones_like(sums.count)
    w = solve(Systems(sums.rows, sums.sign, np.stack([mean, mean]), sums.count, right, weight, diagonal))
    return w, total / count - np.einsum("pkd,pkd->pk", w, mean)


def _diffmeans(sums: _ClassSums, standardize: bool) -> Coefficients:
    low, high = sums.mean
    w = high - low
    if standardize:
        w = w / sums.deviation(pooled=True) ** 2
    return w, -np.einsum("pkd,pkd->pk", w, high + low) / 2


def _lda(sums: _ClassSums, backend: Backend | None) -> Coefficients:
    """LDA with each class's covariance, Ledoit-Wolf shrunk on standardised features, weighted by its share."""
    low, high = sums.mean
    share = sums.count / sums.count.sum(axis=0)
    scale = sums.deviation(pooled=False)
    solve, measure = _solvers(sums.rows, backend)
    shrinkage, variance = LedoitWolf(sums.rows, sums.member, sums.count, sums.mean, scale).estimate(measure())
    diagonal = np.einsum("cpk,cpkd->pkd", share * shrinkage * variance, scale**2)
    weight = share * (1 - shrinkage) / sums.count
    w = solve(Systems(sums.rows, sums.sign, sums.mean, sums.count, high - low, weight, diagonal))
    return w, -np.einsum("pkd,pkd->pk", w, high + low) / 2 + np.log(share[1] / share[0])


class LedoitWolf:
    """Shrinkage of the covariance of each class (Ledoit and Wolf, 2004), for all pairs and folds of a slab.

    The estimate equals scikit-learn's `ledoit_wolf` on standardised rows, without standardising the rows. A class that
    several contrasts share is computed once.

    Args:
        rows: rows by label.
        member: float64 array of shape (2, P, labels), 1.0 for the labels that make up each class.
        count: float64 array of shape (2, P, K), rows of each class in each training set.
        mean: float64 array of shape (2, P, K, d).
        deviation: float64 array of shape (2, P, K, d), standard deviations.
    """

    def __init__(self, rows: Rows, member: Doubles, count: Doubles, mean: Doubles, deviation: Doubles) -> None:
        n_sets, d = rows.inside.shape[1], mean.shape[-1]
        self.shape = count.shape[:2]
        self.classes, owner = np.unique(member.reshape(-1, rows.labels), axis=0, return_inverse=True)
        self.owner = owner.ravel()
        first = np.array([np.flatnonzero(self.owner == c)[0] for c in range(len(self.classes))])
        self.count = count.reshape(-1, n_sets)[first]
        self.centre, spread = (v.reshape(-1, n_sets, d)[first] for v in (mean, deviation))
        self.weight = 1 / spread**2
        # Sum of |(x - mean) / scale|**4 over the rows of each class, without standardised rows.
        self.fourth = np.zeros(self.count.shape)
        for g in range(rows.labels):
            block = rows.block(g)
            shift, own = rows.means[g], np.flatnonzero(self.classes[:, g])
            x, inside = rows.X[block] - shift.astype(rows.X.dtype), rows.inside[block]
            weight, centre = (v[own].reshape(-1, d) for v in (self.weight, self.centre - shift))
            weighted_centre = centre * weight
            length = (x * x) @ weight.T.astype(x.dtype) - 2 * (x @ weighted_centre.T.astype(x.dtype))
            length = (length + (weighted_centre * centre).sum(axis=1)).reshape(len(x), len(own), n_sets)
            self.fourth[own] += np.einsum("nck,nk->ck", length**2, inside)

    def estimate(self, measure: Measure) -> tuple[Doubles, Doubles]:
        """Shrinkage and mean variance of each class in each training set, both (2, P, K)."""
        each = [self._estimate_set(k, measure) for k in range(self.count.shape[1])]
        shrinkage, variance = (np.stack(values, axis=-1) for values in zip(*each, strict=True))
        return (
            shrinkage[self.owner].reshape(*self.shape, -1),
            variance[self.owner].reshape(*self.shape, -1),
        )

    def _estimate_set(self, k: int, measure: Measure) -> tuple[Doubles, Doubles]:
        """Shrinkage and mean variance of every different class in training set k."""
        n, d = self.count[:, k], self.centre.shape[-1]
        scale = np.sqrt(self.weight[:, k] / n[:, None])
        trace, square = measure(k, self.classes, scale, np.sqrt(n)[:, None] * self.centre[:, k] * scale)
        mean = trace / d
        delta = (square - 2 * mean * trace + d * mean**2) / d
        beta = np.minimum((self.fourth[:, k] / n - square) / (d * n), delta)
        return np.where(beta <= 0, 0.0, beta / np.where(delta > 0, delta, 1)), mean


def measure_on_host(rows: Rows) -> Measure:
    """`Measure` from the Gram matrices of rows in memory, in the dtype of the data."""
    grams_of = rows.grams()

    def measure(k: int, classes: Doubles, scales: Doubles, centres: Doubles) -> tuple[Doubles, Doubles]:
        grams = grams_of(k)
        trace, square = np.zeros(len(classes)), np.zeros(len(classes))
        scatter = np.empty_like(grams[0])
        ger: Any = linalg.get_blas_funcs("ger", (scatter,))
        for c, labels in enumerate(classes):
            total = _sum_grams(grams, labels, scatter)
            # Scaled first, so that no square overflows or underflows in float32.
            scale = scales[c].astype(scatter.dtype)
            np.multiply(total, scale[:, None], out=scatter)
            scatter *= scale
            ger(-1.0, centres[c], centres[c], a=scatter.T, overwrite_a=1)
            trace[c] = float(np.trace(scatter, dtype=np.float64))
            square[c] = float(np.vdot(scatter, scatter))
        return trace, square

    return measure


def _sum_grams(grams: Floats, labels: Doubles, out: Floats) -> Floats:
    """Sum of the matrices of some labels, in `out`; a single matrix is returned without a copy."""
    first, *others = np.flatnonzero(labels)
    total: Floats = grams[first]
    for g in others:
        total = np.add(total, grams[g], out=out)
    return total


def _is_host(backend: Backend | None) -> bool:
    return backend is None or backend.name == "cpu"


def _solvers(rows: Rows, backend: Backend | None) -> tuple[Callable[[Systems], Doubles], Callable[[], Measure]]:
    """Solver of systems over these rows, and a function that prepares the measure of their scatters."""
    if backend is None or _is_host(backend):
        return Systems.solve, lambda: measure_on_host(rows)
    grams = DeviceGrams(backend, rows)
    return lambda systems: solve_on_device(systems, grams), lambda: grams.measure
