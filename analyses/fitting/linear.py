"""Directions that follow exactly from moments: difference of means, LDA, ridge, PCA, and all their folds.

Nothing here reads an activation. A training set is a choice of cells (see
moments.py); folds are left out by subtraction. Logistic probes are elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace, is_numpy_namespace

from stratalens.analyses.labels import Array
from stratalens.analyses.moments import Moments
from stratalens.store.errors import InputError, near

Method = Literal["diffmeans", "lda", "ridge"]
METHODS = ("diffmeans", "lda", "ridge")


@dataclass(frozen=True)
class Direction:
    """A linear rule: score = x @ coef + intercept, positive for the second set of rows.

    Attributes:
        coef: [array-like, shape: (d,)] float64.
        intercept: float.
    """

    coef: Any
    intercept: float


def difference_of_means(first: Moments, second: Moments) -> Direction:
    """mean(second) - mean(first); the boundary lies half way."""
    a, b = first.mean, second.mean
    w = b - a
    return Direction(w, -float(w @ (a + b)) / 2)


def lda(first: Moments, second: Moments, shrinkage: float | Literal["ledoit_wolf"] = "ledoit_wolf") -> Direction:
    """Linear discriminant analysis, as scikit-learn's solver "lsqr" with priors from the data.

    Args:
        first: rows of the first class.
        second: rows of the second class.
        shrinkage: of each class's covariance towards its mean variance: a number from 0 to 1, or
            "ledoit_wolf" (equals ``LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=LedoitWolf())``;
            ``shrinkage="auto"`` there standardises the features of each class first, which moments do not tell).

    Raises:
        InputError: the covariance is singular (too few rows, constant features) and shrinkage is 0.
    """
    na, nb = float(first.n), float(second.n)
    pooled = (na * _shrunk(first, shrinkage) + nb * _shrunk(second, shrinkage)) / (na + nb)
    a, b = first.mean, second.mean
    w = _solve(pooled, b - a)
    return Direction(w, -float(w @ (a + b)) / 2 + float(np.log(nb / na)))


def ridge(first: Moments, second: Moments, alphas: Sequence[float] = (1.0,)) -> list[Direction]:
    """Ridge regression of targets -1, +1 with an intercept, for a grid of penalties.

    Equals scikit-learn's ``Ridge(alpha)`` (and ``RidgeClassifier``) on these targets.

    Raises:
        InputError: a penalty that is not positive.
    """
    if not all(alpha > 0 for alpha in alphas):
        raise InputError(f"alphas={list(alphas)} must all be positive")
    both = first + second
    na, nb, n = float(first.n), float(second.n), float(both.n)
    mean_x, mean_y = both.sum / n, (nb - na) / n
    scatter = both.gram - n * (mean_x[:, None] * mean_x[None, :])
    target = second.sum - first.sum - n * mean_y * mean_x
    out = []
    for alpha, w in zip(alphas, _ridge_path(scatter, target, alphas), strict=True):
        assert alpha > 0
        out.append(Direction(w, mean_y - float(w @ (mean_x + both.shift))))
    return out


def pca(rows: Moments, components: int) -> tuple[Any, Any, float]:
    """Principal components from moments.

    Returns:
        components (k, d) unit rows, largest variance first, the entry of largest size positive;
        variances (k,) over n; total variance.
    """
    xp = array_namespace(rows.sum)
    S = rows.covariance
    if not 1 <= components <= S.shape[0]:
        raise InputError(f"components={components} must be from 1 to {S.shape[0]}")
    values, vectors = xp.linalg.eigh(S)
    top = xp.flip(vectors[:, -components:], axis=1).T
    largest = xp.argmax(xp.abs(top), axis=1)
    signs = xp.stack([xp.sign(top[i, int(largest[i])]) for i in range(components)])
    return top * signs[:, None], xp.flip(values[-components:], axis=0), float(xp.linalg.trace(S))


def pair_directions(
    cells: Moments,
    folds: int,
    pair: tuple[int, int],
    method: Method = "lda",
    *,
    shrinkage: float | Literal["ledoit_wolf"] = "ledoit_wolf",
    alphas: Sequence[float] = (1.0,),
) -> tuple[Array, Array]:
    """Directions of one pair of groups, from each training fold and from all rows.

    Args:
        cells: moments of cells group * folds + fold, of one token.
        folds: number of folds in `cells`.
        pair: (first, second) group index; positive = second.
        method: diffmeans, lda or ridge.
        shrinkage: of lda.
        alphas: penalties of ridge; the others have one "penalty".

    Returns:
        coef (folds + 1, A, d) and intercept (folds + 1, A), NumPy float64; entry `folds` is the refit on all rows.
    """
    whole = [cells.take(np.arange(folds) + g * folds) for g in pair]
    coefs, intercepts = [], []
    for fold in range(folds + 1):
        first, second = whole
        if fold < folds:
            first, second = (w - cells.take([g * folds + fold]) for w, g in zip(whole, pair, strict=True))
        if float(first.n) < 1 or float(second.n) < 1:
            raise InputError(f"fold {fold} holds all rows of a group; use fewer folds")
        if method == "ridge":
            found = ridge(first, second, alphas)
        elif method == "lda":
            found = [lda(first, second, shrinkage)]
        elif method == "diffmeans":
            found = [difference_of_means(first, second)]
        else:
            raise InputError(f"method={method!r}: {near(method, METHODS)}")
        coefs.append(np.stack([to_numpy(f.coef) for f in found]))
        intercepts.append([f.intercept for f in found])
    return np.stack(coefs), np.array(intercepts)


def to_numpy(x: Any) -> Array:
    """An array of any device as a NumPy array."""
    return np.asarray(x.get() if hasattr(x, "get") else x)


def _shrunk(rows: Moments, shrinkage: float | str) -> Any:
    xp = array_namespace(rows.sum)
    amount = rows.ledoit_wolf() if isinstance(shrinkage, str) else float(shrinkage)
    if not 0 <= amount <= 1 or shrinkage not in ("ledoit_wolf", amount):
        raise InputError(f"shrinkage={shrinkage!r} must be 'ledoit_wolf' or a number from 0 to 1")
    S = rows.covariance
    d = int(S.shape[0])
    return (1 - amount) * S + amount * float(xp.linalg.trace(S)) / d * xp.eye(d, dtype=S.dtype)


def _ridge_path(scatter: Any, target: Any, alphas: Sequence[float]) -> list[Any]:
    xp = array_namespace(scatter)
    d = int(scatter.shape[0])
    if len(alphas) < 20:  # one eigendecomposition costs about twenty Cholesky factors
        return [_solve(scatter + alpha * xp.eye(d, dtype=scatter.dtype), target) for alpha in alphas]
    values, vectors = xp.linalg.eigh(scatter)
    turned = vectors.T @ target
    return [vectors @ (turned / (values + alpha)) for alpha in alphas]


def _solve(matrix: Any, vector: Any) -> Any:
    xp = array_namespace(matrix)
    if not is_numpy_namespace(xp):
        return xp.linalg.solve(matrix, vector[:, None])[:, 0]
    try:
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix, check_finite=False), vector, check_finite=False)
    except scipy.linalg.LinAlgError as error:
        raise InputError(
            "the covariance is singular (fewer rows than features, or constant features); "
            "use shrinkage='ledoit_wolf' or a positive penalty"
        ) from error
