"""Gradient-boosted trees as a probe of a few statistics: what any smooth or stepwise function of them could tell.

For statistics_probe alone; activations are probed linearly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

BOOSTING = "boosting"


def boosted_scores(
    X: npt.NDArray[np.floating],
    signs: npt.NDArray[np.int8],
    fold: npt.NDArray[np.int64],
    folds: int,
    trainable: npt.NDArray[np.bool_],
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """Out-of-fold log odds from scikit-learn's HistGradientBoostingClassifier.

    Args:
        X: [array-like, shape: (n, statistic)].
        signs: [array-like, shape: (n, pair)] targets, as in `Contrasts`.
        fold: [array-like, shape: (n,)].
        folds: their number.
        trainable: [array-like, shape: (n,)] rows that may be trained on.
        seed: of the trees.

    Returns:
        [shape: (pair, n)] float32.
    """
    out = np.empty((signs.shape[1], len(X)), dtype=np.float32)
    # One thread: the slabs run side by side already.
    with threadpool_limits(1, user_api="openmp"):
        for p in range(signs.shape[1]):
            for k in range(folds):
                train = trainable & (fold != k) & (signs[:, p] != 0)
                model = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
                model.fit(X[train], signs[train, p] > 0)
                own = fold == k
                if own.any():
                    out[p, own] = model.decision_function(X[own])
    return out
