"""Sums of rows around a centre, up to the fourth order: added over parts, taken away, and moved to another centre.

A process adds up rows in float64 around one centre that is fixed from the first rows on, so that nothing cancels and
the sums of a resumed run have the same bits. Sums of different processes have different centres. They are first moved
to the common mean and then added, which is the pairwise update of Chan, Golub and LeVeque (1979), here also for the
third and fourth order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stratalens.analyses.data.array_types import Array, Doubles

ORDERS = ("vectors", "scatter", "squares")  # every entry includes those before it


@dataclass(frozen=True)
class RowMoments:
    """Sums over rows y = x - centre of one place and group; y**2 is elementwise.

    Attributes:
        count: number of rows.
        centre: float64 array of shape (d,).
        first: float64 array of shape (d,), sum of y.
        second: float64 array of shape (d,), sum of y**2.
        third: float64 array of shape (d,), sum of y**3.
        fourth: float64 array of shape (d,), sum of y**4.
        scatter: float64 array of shape (d, d), sum of y y^T; None if it is not accumulated.
        cross: float64 array of shape (d, d), sum of y**2 y^T; None if it is not accumulated.
        squares: float64 array of shape (d, d), sum of y**2 (y**2)^T; None if it is not accumulated.
    """

    count: float
    centre: Doubles
    first: Doubles
    second: Doubles
    third: Doubles
    fourth: Doubles
    scatter: Doubles | None = None
    cross: Doubles | None = None
    squares: Doubles | None = None

    @classmethod
    def of_rows(cls, x: Array, order: str = "squares") -> RowMoments:
        """Sum some rows around their mean.

        Args:
            x: array of shape (n, d).
            order: "vectors", "scatter" or "squares".

        Example:
            >>> RowMoments.of_rows(np.array([[1.0], [3.0]])).scatter.tolist()
            [[2.0]]
        """
        x = np.asarray(x, dtype=np.float64)
        centre = x.mean(axis=0) if len(x) else np.zeros(x.shape[1])
        y = x - centre
        u = y * y
        level = ORDERS.index(order)
        return cls(
            len(x),
            centre,
            y.sum(axis=0),
            u.sum(axis=0),
            (u * y).sum(axis=0),
            (u * u).sum(axis=0),
            y.T @ y if level >= 1 else None,
            u.T @ y if level >= 2 else None,
            u.T @ u if level >= 2 else None,
        )

    @property
    def mean(self) -> Doubles:
        """Mean of the rows, (d,); the centre where there is no row."""
        return np.asarray(self.centre + self.first / max(self.count, 1))

    @property
    def variance(self) -> Doubles:
        """Variance of each feature, with the divisor n, (d,)."""
        n = max(self.count, 1)
        return np.asarray(np.maximum(self.second / n - (self.first / n) ** 2, 0))

    def around(self, centre: Doubles) -> RowMoments:
        """The same sums around another centre."""
        d = np.asarray(centre, dtype=np.float64) - self.centre
        n, s1, s2, s3 = self.count, self.first, self.second, self.third
        moved = replace(
            self,
            centre=np.asarray(centre, dtype=np.float64),
            first=s1 - n * d,
            second=s2 - 2 * d * s1 + n * d**2,
            third=s3 - 3 * d * s2 + 3 * d**2 * s1 - n * d**3,
            fourth=self.fourth - 4 * d * s3 + 6 * d**2 * s2 - 4 * d**3 * s1 + n * d**4,
        )
        if self.scatter is None:
            return moved
        g = self.scatter
        moved = replace(moved, scatter=g - np.outer(s1, d) - np.outer(d, s1 - n * d))
        if self.cross is None or self.squares is None:
            return moved
        # With y = x - d and u = x**2: y**2 = u - 2 d x + d**2.
        d2, ds1 = d * d, d * s1
        linear = s2 - 2 * ds1 + n * d2
        cross = self.cross - 2 * d[:, None] * g + np.outer(d2, s1) - np.outer(linear, d)
        mixed = 2 * self.cross * d  # sum of u (2 d x)^T
        ends = np.outer(s2 - 2 * ds1, d2)
        squares = self.squares + 4 * d[:, None] * g * d - mixed - mixed.T + ends + ends.T + n * np.outer(d2, d2)
        return replace(moved, cross=cross, squares=squares)

    def __add__(self, other: RowMoments) -> RowMoments:
        """Join the rows of two parts; the centre of the sum is the mean of all rows."""
        return self._combine(other, 1)

    def without(self, other: RowMoments) -> RowMoments:
        """Take away rows that are among these rows; the centre of the rest is its mean."""
        return self._combine(other, -1)

    def _combine(self, other: RowMoments, sign: int) -> RowMoments:
        total = self.count + sign * other.count
        weighted = self.count * self.mean + sign * other.count * other.mean
        centre = weighted / total if total > 0 else self.centre
        a, b = self.around(centre), other.around(centre)

        def combine(x: Doubles | None, y: Doubles | None) -> Doubles | None:
            return None if x is None or y is None else np.asarray(x + sign * y)

        return RowMoments(
            total,
            centre,
            a.first + sign * b.first,
            a.second + sign * b.second,
            a.third + sign * b.third,
            a.fourth + sign * b.fourth,
            combine(a.scatter, b.scatter),
            combine(a.cross, b.cross),
            combine(a.squares, b.squares),
        )

    def central(self) -> RowMoments:
        """The same sums around the mean of the rows."""
        return self.around(self.mean)

    def quartic(self, weight: Doubles) -> float:
        """Sum over the rows of (sum of weight y**2)**2, around the centre of these sums.

        Example:
            >>> RowMoments.of_rows(np.array([[1.0, 0.0], [3.0, 4.0]])).quartic(np.ones(2))
            50.0
        """
        if self.squares is None:
            raise ValueError("the sums have no fourth order")
        return float(weight @ self.squares @ weight)


def join(parts: Sequence[RowMoments]) -> RowMoments:
    """Join the rows of one or more parts, from the left."""
    total, *others = parts
    for part in others:
        total = total + part
    return total


def pack(matrix: Doubles) -> Doubles:
    """Lower triangle of a symmetric matrix by rows, (d (d + 1) / 2,).

    Example:
        >>> pack(np.array([[1.0, 2.0], [2.0, 3.0]])).tolist()
        [1.0, 2.0, 3.0]
    """
    return np.asarray(matrix[np.tril_indices(len(matrix))])


def unpack(packed: Array, size: int) -> Array:
    """The symmetric matrix, (size, size), of a lower triangle, in its dtype.

    Example:
        >>> unpack(np.array([1.0, 2.0, 3.0]), 2).tolist()
        [[1.0, 2.0], [2.0, 3.0]]
    """
    out = np.zeros((size, size), packed.dtype)
    out[np.tril_indices(size)] = packed
    return np.asarray(out + np.tril(out, -1).T)
