"""How much the covariance of each class is shrunk (Ledoit and Wolf, 2004), for all pairs and folds of a slab.

As scikit-learn's `ledoit_wolf` on standardised rows, which are not made. Who asks for it is in closed_form.py; where
the scatters are measured, the host or a device, is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stratalens.analyses.estimators.backend import Backend
from stratalens.analyses.estimators.gram import Doubles, Floats, Rows
from stratalens.analyses.estimators.gram_gpu import DeviceGrams, solve_on_device
from stratalens.analyses.estimators.linear_systems import Systems
from stratalens.analyses.estimators.logistic import LinearFit
from stratalens.store.errors import InputError

# From a training set, which labels make up each class (C, labels), a scale of every feature and a centre (both
# (C, d)): trace and squared Frobenius norm of scale * (sum of x x^T) * scale - centre centre^T, both (C,).
Measure = Callable[[int, Doubles, Doubles, Doubles], tuple[Doubles, Doubles]]


class LedoitWolf:
    """How much each class's standardised features are shrunk, and towards which variance.

    Classes that several contrasts share are looked at once.

    Args:
        rows: by label.
        member: [array-like, shape: (2, P, labels)] which labels make up each class.
        count: [array-like, shape: (2, P, K)] rows of each class in each training set.
        mean: [array-like, shape: (2, P, K, d)].
        deviation: [array-like, shape: (2, P, K, d)] standard deviations.
    """

    def __init__(self, rows: Rows, member: Doubles, count: Doubles, mean: Doubles, deviation: Doubles) -> None:
        n_sets, d = rows.inside.shape[1], mean.shape[-1]
        self.shape = count.shape[:2]
        self.classes, self.owner = np.unique(member.reshape(-1, rows.labels), axis=0, return_inverse=True)
        first = np.array([np.flatnonzero(self.owner.ravel() == c)[0] for c in range(len(self.classes))])
        self.count = count.reshape(-1, n_sets)[first]
        self.centre, spread = (v.reshape(-1, n_sets, d)[first] for v in (mean, deviation))
        self.weight = 1 / spread**2
        self.fourth = np.zeros(self.count.shape)
        for g in range(rows.labels):
            here = rows.block(g)
            middle, mine = rows.means[g], np.flatnonzero(self.classes[:, g])
            x, inside = rows.X[here] - middle.astype(rows.X.dtype), rows.inside[here]
            # |(x - mean) / scale|**2 of every row, without making the standardised rows.
            weight, centre = (v[mine].reshape(-1, d) for v in (self.weight, self.centre - middle))
            pull = centre * weight
            length = (x * x) @ weight.T.astype(x.dtype) - 2 * (x @ pull.T.astype(x.dtype))
            length = (length + (pull * centre).sum(axis=1)).reshape(len(x), len(mine), n_sets)
            self.fourth[mine] += np.einsum("nck,nk->ck", length**2, inside)

    def __call__(self, measure: Measure) -> tuple[Doubles, Doubles]:
        """Shrinkage and mean variance of each class in each training set, both (2, P, K)."""
        each = [self._one(k, measure) for k in range(self.count.shape[1])]
        amount, mean = (np.stack([one[i] for one in each], axis=-1) for i in range(2))
        owner = self.owner.ravel()
        return tuple(v[owner].reshape(*self.shape, -1) for v in (amount, mean))  # type: ignore[return-value]

    def _one(self, k: int, measure: Measure) -> tuple[Doubles, Doubles]:
        """Of every different class in training set k."""
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
            total = _sum_of(grams, labels, scatter)
            # Scaled first, so that no square is too large or too small for float32.
            scale = scales[c].astype(scatter.dtype)
            np.multiply(total, scale[:, None], out=scatter)
            scatter *= scale
            ger(-1.0, centres[c], centres[c], a=scatter.T, overwrite_a=1)
            trace[c] = float(np.trace(scatter, dtype=np.float64))
            square[c] = float(np.vdot(scatter, scatter))
        return trace, square

    return measure


def _sum_of(grams: Floats, labels: npt.NDArray[np.float64], out: Floats) -> Floats:
    """Sum of the matrices of some labels; one alone is not copied."""
    first, *others = np.flatnonzero(labels)
    total: Floats = grams[first]
    for g in others:
        total = np.add(total, grams[g], out=out)
    return total


METHODS = ("ridge", "lda", "diffmeans")


Signs = npt.NDArray[np.int8]


# Coefficients (P, K, d) of the shifted rows and intercepts (P, K).
Fitted = tuple[Doubles, Doubles]


def fit_closed_form(
    X: Floats,
    signs: Signs,
    labels: npt.NDArray[np.int64],
    method: str,
    *,
    alpha: float | Doubles = 10.0,
    standardize: bool = False,
    backend: Backend | None = None,
) -> LinearFit:
    """Fit P x K two-class probes in closed form: P contrasts, each on K training sets.

    Args:
        X: [array-like, shape: (n, d)] float32 or float64.
        signs: [array-like, shape: (n, P, K)] int8 as from `training_signs`: the last training set holds all rows.
        labels: [array-like, shape: (n,)] a label of each row such that contrasts use whole labels, for speed.
        method: "ridge": least squares on -1 / +1 with penalty alpha |w|**2, unpenalised intercept (as
            scikit-learn's RidgeClassifier); "lda": class covariances each with Ledoit-Wolf shrinkage, weighted by
            the classes' shares (as LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")); "diffmeans":
            direction between the class means, threshold half-way.
        alpha: ridge penalty, one or one for each of the P x K fits.
        standardize: features scaled to unit variance over each fit's training rows (lda does so anyway).
        backend: where Gram matrices are made and systems solved; the CPU by default.

    Returns:
        LinearFit with P * K probes, K fastest.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}; valid in closed form: {', '.join(METHODS)}")
    n_pairs, n_sets = signs.shape[1:]
    penalty = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (n_pairs * n_sets,)).reshape(n_pairs, n_sets)

    def fit(x: Floats, targets: Signs, codes: npt.NDArray[np.int64], strength: Doubles) -> Fitted:
        sums = _Sums(x, targets, codes)
        if method == "ridge":
            return _ridge(sums, strength, standardize, backend)
        return _lda(sums, backend) if method == "lda" else _diffmeans(sums, standardize)

    rotate = method == "ridge" and not standardize and _on_host(backend)
    return _split(X, signs, labels, penalty, fit, rotate)


def fit_order(
    X: Floats,
    inside: Signs,
    labels: npt.NDArray[np.int64],
    value: Doubles,
    *,
    alpha: float | Doubles = 10.0,
    standardize: bool = False,
    backend: Backend | None = None,
) -> LinearFit:
    """Ridge regression of a number (the position in the order) on K training sets.

    Args:
        X: [array-like, shape: (n, d)].
        inside: [array-like, shape: (n, 1, K)] 1 = training row.
        labels: as in `fit_closed_form`.
        value: [array-like, shape: (n,)] what is predicted, the same in all rows of a label.
        alpha: penalty, one or one for each training set.
        standardize, backend: as in `fit_closed_form`.
    """
    n_sets = inside.shape[2]
    penalty = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (1, n_sets))
    of_label = {int(code): float(value[labels == code][0]) for code in np.unique(labels)}

    def fit(x: Floats, targets: Signs, codes: npt.NDArray[np.int64], strength: Doubles) -> Fitted:
        sums = _Sums(x, targets, codes)
        value_of = np.array([of_label[int(code)] for code in sums.names])
        return _ridge(sums, strength, standardize, backend, value_of)

    return _split(X, inside, labels, penalty, fit, rotate=not standardize and _on_host(backend))


def _split(
    X: Floats, signs: Signs, labels: npt.NDArray[np.int64], penalty: Doubles,
    fit: Callable[[Floats, Signs, npt.NDArray[np.int64], Doubles], Fitted], rotate: bool,
) -> LinearFit:  # fmt: skip
    """Fit contrasts together where they use whole labels, else each by itself; in the row space where that is small."""
    n_pairs, n_sets = signs.shape[1:]
    used = np.flatnonzero(signs.any(axis=(1, 2)))
    if len(used) < len(X):
        X, signs, labels = X[used], signs[used], labels[used]
    shift = X.mean(axis=0)  # near the mean is enough, as long as the intercepts know it
    centred = X - shift
    coef, intercept = np.zeros((n_pairs, n_sets, X.shape[1])), np.zeros((n_pairs, n_sets))
    few = rotate and min((signs != 0).any(axis=2).sum(axis=0).min(initial=len(X)), len(X)) < X.shape[1]
    together = _whole(signs, labels) and (n_pairs == 1 or not few)
    for chosen in [slice(None)] if together else [slice(p, p + 1) for p in range(n_pairs)]:
        for sets in [slice(None)] if together else _consistent(signs[:, chosen]):
            part = signs[:, chosen, sets]
            rows = slice(None) if together else np.flatnonzero(part.any(axis=(1, 2)))
            part = part[rows]
            own = not together and not _whole(part, labels[rows])
            codes = part.max(axis=(1, 2)).astype(np.int64) if own else labels[rows]
            x = centred[rows]
            if rotate and len(x) < X.shape[1]:
                # Fewer rows than features: the coefficients lie in the span of the rows, so look only there.
                basis, triangle = np.linalg.qr(x.T)
                w, b = fit(np.ascontiguousarray(triangle.T), part, codes, penalty[chosen, sets])
                w = w @ basis.T.astype(np.float64)
            else:
                w, b = fit(x, part, codes, penalty[chosen, sets])
            coef[chosen, sets], intercept[chosen, sets] = w, b - w @ shift.astype(np.float64)
    flat = n_pairs * n_sets
    return LinearFit(
        coef.reshape(flat, -1).astype(X.dtype), intercept.ravel(), np.ones(flat, dtype=bool),
        np.zeros(flat, dtype=np.int64),
    )  # fmt: skip


def _whole(signs: Signs, labels: npt.NDArray[np.int64]) -> bool:
    """Whether each contrast puts all rows of a label that some contrast uses into one class, or none of them."""
    inside = np.asarray(signs.any(axis=1))
    for code in np.unique(labels):
        block = signs[labels == code]
        low, high = block.min(axis=(0, 2)), block.max(axis=(0, 2))
        if (low * high < 0).any():
            return False
        mine = (low + high) != 0
        if not ((block[:, mine] != 0) == inside[labels == code][:, None, :]).all():
            return False
    return True


def _consistent(signs: Signs) -> list[slice]:
    """All training sets together where no row changes its class between them, else each by itself."""
    if (signs.min(axis=(1, 2)) * signs.max(axis=(1, 2)) < 0).any():
        return [slice(k, k + 1) for k in range(signs.shape[2])]
    return [slice(None)]


class _Sums:
    """Rows by label, and the counts, means and variances of each class of each fit; negative class first."""

    def __init__(self, X: Floats, signs: Signs, labels: npt.NDArray[np.int64]) -> None:
        self.names, codes = np.unique(labels, return_inverse=True)
        self.rows = Rows.of(X, codes, np.asarray(signs.any(axis=1)))
        ordered = signs[self.rows.order]
        starts = [self.rows.block(g) for g in range(self.rows.labels)]
        self.sign = np.array([np.sign(ordered[b].sum(axis=(0, 2), dtype=np.int64)) for b in starts], dtype=np.int8)
        # (2, P, label): which labels make up each class.
        self.member = np.stack([self.sign.T < 0, self.sign.T > 0]).astype(np.float64)
        self.label_count = np.array([self.rows.inside[b].sum(axis=0) for b in starts], dtype=np.float64)
        self.count = self.member @ self.label_count
        self.label_sum = self.rows.sums()
        self.sum = np.tensordot(self.member, self.label_sum, 1)
        self.mean = self.sum / np.maximum(self.count, 1)[..., None]

    def deviation(self, whole: bool) -> Doubles:
        """Standard deviation of each feature, 1 where it is constant: (P, K, d) of both classes, or (2, P, K, d)."""
        squares = np.tensordot(self.member, self.rows.sums(squared=True), 1)
        sums, count = self.sum, self.count
        if whole:
            squares, sums, count = squares.sum(axis=0), sums.sum(axis=0), count.sum(axis=0)
        count = np.maximum(count, 1)[..., None]
        mean = sums / count
        variance = squares / count - mean**2
        rounding = 64 * np.finfo(np.float32).eps * np.maximum(mean**2, np.finfo(np.float64).tiny)
        constant = variance <= rounding
        return np.where(constant, 1.0, np.sqrt(np.where(constant, 1.0, variance)))


def _on_host(backend: Backend | None) -> bool:
    return backend is None or backend.name == "cpu"


def _solvers(rows: Rows, backend: Backend | None) -> tuple[Callable[[Systems], Doubles], Callable[[], Measure]]:
    """What solves systems over these rows, and what makes the measure of their scatters."""
    if backend is None or _on_host(backend):
        return Systems.solve, lambda: measure_on_host(rows)
    grams = DeviceGrams(backend, rows)
    return lambda systems: solve_on_device(systems, grams), lambda: grams.measure


def _ridge(
    sums: _Sums, penalty: Doubles, standardize: bool, backend: Backend | None, value: Doubles | None = None
) -> Fitted:
    """Least squares on the classes' signs, or on a value of each label."""
    count = sums.count.sum(axis=0)
    mean = sums.sum.sum(axis=0) / count[..., None]
    # (P, label) target of each label's rows in each contrast.
    target = sums.sign.T.astype(np.float64) if value is None else value * (sums.sign.T != 0)
    total = target @ sums.label_count
    right = np.tensordot(target, sums.label_sum, 1) - total[..., None] * mean
    diagonal = penalty[..., None] * (sums.deviation(whole=True) ** 2 if standardize else np.ones(mean.shape[-1]))
    weight = np.ones_like(sums.count)
    diagonal = np.broadcast_to(diagonal, mean.shape)
    solve, _ = _solvers(sums.rows, backend)
    w = solve(Systems(sums.rows, sums.sign, np.stack([mean, mean]), sums.count, right, weight, diagonal))
    return w, total / count - np.einsum("pkd,pkd->pk", w, mean)


def _diffmeans(sums: _Sums, standardize: bool) -> Fitted:
    low, high = sums.mean
    w = high - low
    if standardize:
        w = w / sums.deviation(whole=True) ** 2
    return w, -np.einsum("pkd,pkd->pk", w, high + low) / 2


def _lda(sums: _Sums, backend: Backend | None) -> Fitted:
    """Each class's covariance with Ledoit-Wolf shrinkage of its standardised features, weighted by its share."""
    low, high = sums.mean
    share = sums.count / sums.count.sum(axis=0)
    scale = sums.deviation(whole=False)
    solve, measure = _solvers(sums.rows, backend)
    amount, size = LedoitWolf(sums.rows, sums.member, sums.count, sums.mean, scale)(measure())
    diagonal = np.einsum("cpk,cpkd->pkd", share * amount * size, scale**2)
    weight = share * (1 - amount) / sums.count
    w = solve(Systems(sums.rows, sums.sign, sums.mean, sums.count, high - low, weight, diagonal))
    return w, -np.einsum("pkd,pkd->pk", w, high + low) / 2 + np.log(share[1] / share[0])
