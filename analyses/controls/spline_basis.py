"""Flexible functions of a few statistics: splines of each one and products of pairs."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri
from sklearn.preprocessing import PolynomialFeatures, SplineTransformer

from stratalens.analyses.data.array_types import Doubles

KNOTS = np.linspace(-2.0, 2.0, 5)  # of the cubic splines, in units of the normal scores; linear beyond
MAX_PRODUCTS = 24  # largest number of statistics that get products of pairs: 276 columns


class SplineBasis:
    """Columns that approximate smooth functions of several statistics, learned from some rows.

    Every statistic gives a linear column and the columns of a cubic spline of its normal scores, which do not depend
    on its scale and tails. Every pair of statistics gives the product of the normal scores. Columns are scaled to
    zero mean and unit variance over the rows that the basis is learned from; those that are constant there are left
    out.

    Args:
        train: float64 array of shape (n, statistic), rows to learn from.

    Example:
        >>> values = np.random.default_rng(0).normal(size=(100, 2))
        >>> SplineBasis(values).transform(values).shape  # 2 linear, 12 of splines, 1 product
        (100, 15)
    """

    def __init__(self, train: Doubles) -> None:
        center, spread = train.mean(axis=0), train.std(axis=0)
        self.varies = spread > 1e-12 * np.maximum(1e-300, np.abs(train).max(axis=0, initial=0))
        self.center, self.spread = center[self.varies], spread[self.varies]
        self.sorted = np.sort(train[:, self.varies], axis=0)
        count = self.sorted.shape[1]
        self.spline = SplineTransformer(
            degree=3, knots=np.repeat(KNOTS[:, None], count, axis=1), extrapolation="linear", include_bias=False
        )
        self.products = PolynomialFeatures(2, interaction_only=True, include_bias=False)
        if count:
            self.spline.fit(np.zeros((2, count)))
        columns = self._columns(train)
        self.mean, size = columns.mean(axis=0), columns.std(axis=0)
        self.used = size > 1e-9
        self.scale = np.where(self.used, size, 1.0)

    def transform(self, values: Doubles) -> Doubles:
        """Compute the columns of other rows, array of shape (n, columns)."""
        columns = (self._columns(values) - self.mean) / self.scale
        return np.asarray(columns[:, self.used], dtype=np.float64)

    def _columns(self, values: Doubles) -> Doubles:
        values = values[:, self.varies]
        count = values.shape[1]
        if not count:
            return np.empty((len(values), 0))
        scores = np.stack([_normal_scores(c, s) for c, s in zip(values.T, self.sorted.T, strict=True)], axis=1)
        parts = [(values - self.center) / self.spread, self.spline.transform(scores)]
        if 1 < count <= MAX_PRODUCTS:
            parts.append(self.products.fit_transform(scores)[:, count:])
        return np.concatenate(parts, axis=1)


def _normal_scores(column: Doubles, train: Doubles) -> Doubles:
    """Quantile of the normal distribution at the rank that each value has among the sorted training values."""
    below = np.searchsorted(train, column, "left") + np.searchsorted(train, column, "right")
    share = (below / 2 + 0.5) / (len(train) + 1)
    return np.asarray(ndtri(share), dtype=np.float64)
