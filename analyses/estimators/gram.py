"""Sums and Gram matrices of rows by label and training set, by subtraction of folds.

Rows of one label that belong to the same training sets form a cell, usually a group in a fold; the rows of a cell are
adjacent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask
from stratalens.analyses.data.cancellation import raise_if_cancelled

CELL_BYTES = 2**29  # largest size of the Gram matrices of all cells, or of all labels, that stay in memory
PRODUCT_ROWS = 4096  # rows of a float32 product, before it is added to others
KEY_BITS = 32  # training sets in one key of a cell


@dataclass(frozen=True)
class Rows:
    """Rows sorted by label and cell, with the membership of each cell in K training sets.

    Attributes:
        X: array of shape (n, d), shifted rows in the dtype of the data.
        order: int64 array of shape (n,), position of each row in the input.
        edges: int64 array of shape (labels + 1,), first row of each label.
        inside: bool array of shape (n, K), membership of each row.
        cell_edges: int64 array of shape (cells + 1,), first row of each cell.
        cell_sets: bool array of shape (cells, K), membership of each cell.
        cell_label: int64 array of shape (cells,), label of each cell.
    """

    X: Floats
    order: Codes
    edges: Codes
    inside: Mask
    cell_edges: Codes
    cell_sets: Mask
    cell_label: Codes

    @classmethod
    def of(cls, X: Floats, labels: Codes, inside: Mask) -> Rows:
        """Sort rows by label and cell.

        Args:
            X: float32 or float64 array of shape (n, d), shifted.
            labels: int64 array of shape (n,), 0 .. labels - 1, each of at least one row.
            inside: bool array of shape (n, K), training sets of each row.
        """
        cell = labels
        for start in range(0, inside.shape[1], KEY_BITS):
            sets = inside[:, start : start + KEY_BITS]
            key = cell * 2**KEY_BITS + sets @ (1 << np.arange(sets.shape[1], dtype=np.int64))
            cell = np.unique(key, return_inverse=True)[1]
        order = np.argsort(cell, kind="stable")
        first = np.flatnonzero(np.diff(cell[order], prepend=-1))
        inside = inside[order]
        edges = np.concatenate([[0], np.cumsum(np.bincount(labels))])
        return cls(X[order], order, edges, inside, np.append(first, len(X)), inside[first], labels[order[first]])

    @property
    def labels(self) -> int:
        """Number of labels."""
        return len(self.edges) - 1

    def block(self, label: int) -> slice:
        """Rows of one label."""
        return slice(int(self.edges[label]), int(self.edges[label + 1]))

    def cell(self, index: int) -> slice:
        """Rows of one cell."""
        return slice(int(self.cell_edges[index]), int(self.cell_edges[index + 1]))

    def as_float64(self, rows: slice) -> Doubles:
        """Some rows in float64; a copy of all rows would be twice as large as the data."""
        return self.X[rows].astype(np.float64, copy=False)

    def sums(self, squared: bool = False) -> Doubles:
        """Sum of x, or x**2, over each label's rows in each training set: float64 array of shape (labels, K, d)."""
        cells = self._cell_sums[int(squared)]
        out = np.empty((self.labels, self.inside.shape[1], self.X.shape[1]))
        for g in range(self.labels):
            mine = self.cells_of(g)
            out[g] = self.cell_sets[mine].T.astype(np.float64) @ cells[mine]
        return out

    @cached_property
    def means(self) -> Doubles:
        """Mean of all rows of each label, (labels, d)."""
        sums = np.stack([self._cell_sums[0][self.cells_of(g)].sum(axis=0) for g in range(self.labels)])
        return np.asarray(sums / np.diff(self.edges)[:, None])

    @cached_property
    def variance(self) -> Doubles:
        """Mean squared distance of all rows from their labels' means, for each feature, (d,)."""
        total = self._cell_sums[1].sum(axis=0) - np.diff(self.edges) @ self.means**2
        return np.asarray(np.maximum(total, 0) / len(self.X))

    @cached_property
    def label_grams(self) -> Floats | None:
        """X.T @ X of all rows of each label, (labels, d, d); None if they would take more than CELL_BYTES."""
        cells = self.__dict__.get("_cell_grams")  # None unless the property was computed before
        out = self._allocate(self.labels)
        if out is not None:
            for g in range(self.labels):
                if cells is not None:
                    cells[self.cells_of(g)].sum(axis=0, out=out[g])
                else:
                    _gram(self.X[self.block(g)], out[g])
        return out

    @cached_property
    def _cell_sums(self) -> tuple[Doubles, Doubles]:
        """Sums of x and of x**2 of every cell, both (cells, d)."""
        out = np.empty((2, len(self.cell_label), self.X.shape[1]))
        for c in range(len(self.cell_label)):
            x = self.as_float64(self.cell(c))
            x.sum(axis=0, out=out[0, c])
            np.einsum("ij,ij->j", x, x, out=out[1, c])
        return out[0], out[1]

    @cached_property
    def _cell_grams(self) -> Floats | None:
        """X.T @ X of every cell; None if they would take more than CELL_BYTES."""
        out = self._allocate(len(self.cell_label))
        if out is not None:
            for c in range(len(out)):
                _gram(self.X[self.cell(c)], out[c])
        return out

    def cells_of(self, label: int) -> slice:
        """Cells of one label."""
        first, last = np.searchsorted(self.cell_label, [label, label + 1])
        return slice(int(first), int(last))

    def _allocate(self, count: int) -> Floats | None:
        d = self.X.shape[1]
        return None if count * d * d * self.X.itemsize > CELL_BYTES else np.empty((count, d, d), self.X.dtype)

    def sides(self, label: int, k: int) -> tuple[Codes, Codes]:
        """Cells of a label inside and outside training set k."""
        cells = np.arange(len(self.cell_label))[self.cells_of(label)]
        inside = self.cell_sets[cells, k]
        return cells[inside], cells[~inside]

    def grams(self) -> Callable[[int], Floats]:
        """Function of a training set that returns X.T @ X of each label's rows in it, (labels, d, d).

        The function subtracts the cells outside the training set, or adds those inside if they are fewer. It returns
        the same array every time.
        """
        cells, d = self._cell_grams, self.X.shape[1]
        totals = self.label_grams if cells is not None else None
        if totals is None:
            totals = np.empty((self.labels, d, d), self.X.dtype)
            for g in range(self.labels):
                _gram(self.X[self.block(g)], totals[g])
        out, current = np.empty_like(totals), [-1]

        def grams_of(k: int) -> Floats:
            if current[0] >= 0 and np.array_equal(self.cell_sets[:, k], self.cell_sets[:, current[0]]):
                return out
            current[0] = k
            for g in range(self.labels):
                inside, outside = self.sides(g, k)
                subtract = len(outside) <= len(inside)
                fewer, combine = (outside, np.subtract) if subtract else (inside, np.add)
                total = totals[g] if subtract else np.zeros_like(totals[g])
                for c in fewer:
                    gram = _gram(self.X[self.cell(c)]) if cells is None else cells[c]
                    total = combine(total, gram, out=out[g])
                if not len(fewer):
                    out[g] = total
            return out

        return grams_of


def _gram(x: Floats, out: Floats | None = None) -> Floats:
    """x.T @ x, PRODUCT_ROWS rows at a time."""
    first = x[:PRODUCT_ROWS]
    total: Floats = np.matmul(first.T, first, out=out)
    for start in range(PRODUCT_ROWS, len(x), PRODUCT_ROWS):
        raise_if_cancelled()
        rows = x[start : start + PRODUCT_ROWS]
        total += rows.T @ rows
    return total
