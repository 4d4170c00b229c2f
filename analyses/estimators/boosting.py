"""Gradient-boosted trees as a probe of a few statistics: how well any smooth or stepwise function of them does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from stratalens.analyses.data.array_types import Codes, Floats, Mask, Signs
from stratalens.analyses.data.cancellation import raise_if_cancelled

BOOSTING = "boosting"


def boosted_scores(
    X: Floats, signs: Signs, fold: Codes, folds: int, trainable: Mask, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Compute out-of-fold log odds with scikit-learn's HistGradientBoostingClassifier.

    Args:
        X: array of shape (n, statistics).
        signs: int8 array of shape (n, pair), targets as in `Contrasts`.
        fold: int64 array of shape (n,).
        folds: number of folds.
        trainable: bool array of shape (n,), rows that may be trained on.
        seed: of the trees.

    Returns:
        float32 array of shape (pair, n).
    """
    out = np.empty((signs.shape[1], len(X)), dtype=np.float32)
    # One OpenMP thread, because several slabs already run at the same time.
    with threadpool_limits(1, user_api="openmp"):
        for p in range(signs.shape[1]):
            for k in range(folds):
                raise_if_cancelled()
                train = trainable & (fold != k) & (signs[:, p] != 0)
                model = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
                model.fit(X[train], signs[train, p] > 0)
                own = fold == k
                if own.any():
                    out[p, own] = model.decision_function(X[own])
    return out
