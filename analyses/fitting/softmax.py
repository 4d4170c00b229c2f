"""Logistic regression with several classes at once (softmax), one fit for each training set.

The same problem as scikit-learn's multinomial LogisticRegression, centred for accuracy and solved by its
lbfgs in float64, which is exact and slow; two classes at a time are much faster (logistic.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.backend import Backend, logistic_estimator, to_numpy
from stratalens.analyses.fitting.logistic import LinearFit


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
