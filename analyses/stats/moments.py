"""Sufficient statistics of activations, from one pass over the rows.

`Moments` has the count, the sum and the shifted Gram matrix of each cell of rows (a group in a fold). Moments add and
subtract, so that a training set is the total minus a fold. The code uses the array API, for NumPy and CuPy arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.slabs import Slab
from stratalens.store.errors import InputError

PRODUCT_ROWS = 4096  # rows of a float32 product, before it is added in float64
LIMIT_BYTES = 8 * 2**30  # Gram matrices of one token


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of rows x (n, d) relative to a shift, x' = x - shift.

    A single set of rows has no leading dim for the cells. The default dtype is float64.

    Attributes:
        shift: array of shape (d,), near the mean, so that no digits cancel.
        n: array of shape (cells,), number of rows.
        sum: array of shape (cells, d), sum of x'.
        gram: array of shape (cells, d, d), sum of the outer products of x'.
    """

    shift: Any
    n: Any
    sum: Any
    gram: Any

    @classmethod
    def zeros(cls, cells: int, shift: Any, dtype: Any = None) -> Moments:
        """Create empty cells on the device of `shift`.

        Args:
            cells: number of cells.
            shift: array of shape (d,).
            dtype: of the sums; None = float64.

        Raises:
            InputError: the Gram matrices would take more than 8 GiB.
        """
        xp = array_namespace(shift)
        d = int(shift.shape[0])
        dtype = xp.float64 if dtype is None else dtype
        size = cells * d * d * 8
        if size > LIMIT_BYTES:
            raise InputError(
                f"{cells} cells (groups x folds) of {d} x {d} take {size / 2**30:.1f} GiB of Gram matrices; "
                f"choose fewer groups, folds or features"
            )
        device = getattr(shift, "device", None)

        def blank(*shape: int) -> Any:
            return xp.zeros(shape, dtype=dtype, **({} if xp is np or device == "cpu" else {"device": device}))

        return cls(xp.astype(shift, xp.float64), blank(cells), blank(cells, d), blank(cells, d, d))

    @classmethod
    def of(
        cls, x: Any, cells: Array | None = None, count: int | None = None, shift: Any = None, dtype: Any = None
    ) -> Moments:
        """Compute the moments of rows in memory.

        Args:
            x: float32 or float64 array of shape (n, d), NumPy or CuPy.
            cells: NumPy int array of shape (n,), cell of each row, -1 = left out; None = one cell.
            count: number of cells; None = the largest cell + 1.
            shift: array of shape (d,); None = mean of the first rows.
            dtype: of the sums; None = float64.

        Example:
            >>> m = Moments.of(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]), np.array([0, 0, 1]))
            >>> m.n.tolist(), m.take([0, 1]).mean.tolist()
            ([2.0, 1.0], [3.0, 5.0])
        """
        xp = array_namespace(x)
        cells = np.zeros(int(x.shape[0]), np.int64) if cells is None else np.asarray(cells)
        if shift is None:
            shift = xp.mean(x[:PRODUCT_ROWS, :], axis=0)
        out = cls.zeros(int(cells.max()) + 1 if count is None else count, shift, dtype)
        out.add_rows(x, cells)
        return out

    def add_rows(self, x: Any, cells: Array) -> None:
        """Add rows x (n, d) to their cells in place; negative cells are left out."""
        xp = array_namespace(x)
        shift = xp.astype(self.shift, x.dtype)
        order = np.argsort(cells, kind="stable")
        edges = np.searchsorted(cells[order], np.arange(len(self.n) + 1))
        for c, (first, stop) in enumerate(itertools.pairwise(edges)):
            for start in range(int(first), int(stop), PRODUCT_ROWS):
                rows = order[start : min(int(stop), start + PRODUCT_ROWS)]
                shifted = xp.take(x, xp.asarray(rows), axis=0) - shift
                self.n[c] += len(rows)
                self.sum[c, :] += xp.astype(xp.sum(shifted, axis=0, dtype=xp.float64), self.sum.dtype)
                self.gram[c, :, :] += xp.astype(xp.matmul(shifted.T, shifted), self.gram.dtype, copy=False)

    def take(self, cells: Sequence[int] | Array) -> Moments:
        """Combine some cells into one set of rows.

        Raises:
            InputError: no cell.
        """
        index = np.asarray(cells)
        if len(index) == 0:
            raise InputError("no cell was chosen; a training set needs rows")
        first, *rest = (int(i) for i in index)
        total = {f: getattr(self, f)[first] for f in _FIELDS}
        for i in rest:
            total = {f: value + getattr(self, f)[i] for f, value in total.items()}
        return Moments(self.shift, **total)

    def __add__(self, other: Moments) -> Moments:
        self._check_shift(other)
        return Moments(self.shift, **{f: getattr(self, f) + getattr(other, f) for f in _FIELDS})

    def __sub__(self, other: Moments) -> Moments:
        self._check_shift(other)
        return Moments(self.shift, **{f: getattr(self, f) - getattr(other, f) for f in _FIELDS})

    @property
    def mean(self) -> Any:
        """Mean of the rows, (d,) or (C, d)."""
        return self.shift + self.sum / self.n[..., None]

    @property
    def covariance(self) -> Any:
        """Covariance over n (not n - 1) of the rows, (d, d) or (C, d, d)."""
        m = self.sum / self.n[..., None]
        return self.gram / self.n[..., None, None] - m[..., :, None] * m[..., None, :]

    def _check_shift(self, other: Moments) -> None:
        if self.shift is not other.shift and not bool((self.shift == other.shift).all()):
            raise InputError("moments with different shifts cannot be combined; compute them with the same shift=")


_FIELDS = tuple(f.name for f in fields(Moments) if f.name != "shift")


def moments(slab: Slab, cells: Array, count: int) -> list[Moments]:
    """Compute the moments of a slab, one for each token, in one pass over its blocks of rows.

    Args:
        slab: a slab, not read yet.
        cells: int array of shape (entity,), cell of every row of the data; -1 = left out.
        count: number of cells.

    Raises:
        NonFiniteError: names the first NaN or infinity among the activations.
    """
    out: list[Moments] = []
    for rows, values in slab.blocks():
        if not np.isfinite(values.sum()):
            slab.refuse_nonfinite(values, rows)
        if not out:
            out = [Moments.zeros(count, values[:, t].mean(axis=0, dtype=np.float64)) for t in range(values.shape[1])]
        for t, moment in enumerate(out):
            moment.add_rows(values[:, t], cells[rows])
    return out
