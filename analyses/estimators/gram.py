"""Rows by label, and which of them each training set holds: their sums and Gram matrices, by subtraction of folds.

The moments that closed_form.py and probe_systems.py work from, beside the rows themselves. Rows of one label that the
same training sets hold are a cell (a group in a fold, as a rule) and lie next to one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


Doubles = npt.NDArray[np.float64]


Codes = npt.NDArray[np.int64]


CELL_BYTES = 2**29  # Gram matrices of all cells, or of all labels, beyond which they are not kept


PRODUCT_ROWS = 4096  # rows of a float32 product, before it is added to others


BITS = 32  # training sets that are told apart at a time


@dataclass(frozen=True)
class Rows:
    """Rows in blocks by label, inside them by cell, and which cells each of K training sets holds.

    Attributes:
        X: [array-like, shape: (n, d)] shifted rows in the dtype of the data.
        order: [array-like, shape: (n,)] where each row was in the rows that were given.
        edges: [array-like, shape: (labels + 1,)] where each label begins.
        inside: [array-like, shape: (n, K)] bool.
        cell_edges: [array-like, shape: (cells + 1,)] where each cell begins.
        cell_sets: [array-like, shape: (cells, K)] bool.
        cell_label: [array-like, shape: (cells,)].
    """

    X: Floats
    order: Codes
    edges: Codes
    inside: npt.NDArray[np.bool_]
    cell_edges: Codes
    cell_sets: npt.NDArray[np.bool_]
    cell_label: Codes

    @classmethod
    def of(cls, X: Floats, labels: Codes, inside: npt.NDArray[np.bool_]) -> Rows:
        """Rows in any order.

        Args:
            X: [array-like, shape: (n, d)] shifted, float32 or float64.
            labels: [array-like, shape: (n,)] 0 .. labels - 1, each of some row.
            inside: [array-like, shape: (n, K)] bool: which training sets hold a row.
        """
        cell = labels
        for start in range(0, inside.shape[1], BITS):
            part = inside[:, start : start + BITS]
            key = cell * 2**BITS + part @ (1 << np.arange(part.shape[1], dtype=np.int64))
            cell = np.unique(key, return_inverse=True)[1]
        order = np.argsort(cell, kind="stable")
        count = np.bincount(labels)
        first = np.flatnonzero(np.diff(cell[order], prepend=-1))
        inside, at = inside[order], order[first]
        edges = np.concatenate([[0], np.cumsum(count)])
        return cls(X[order], order, edges, inside, np.append(first, len(X)), inside[first], labels[at])

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

    def doubles(self, rows: slice) -> Doubles:
        """Some rows in float64; the whole would be twice the data once more."""
        return self.X[rows].astype(np.float64, copy=False)

    def sums(self, squared: bool = False) -> Doubles:
        """Sum of x, or x**2, over each label's rows in each training set, (labels, K, d) float64."""
        cells = self._cell_sums[int(squared)]
        out = np.empty((self.labels, self.inside.shape[1], self.X.shape[1]))
        for g in range(self.labels):
            mine = self.cells_of(g)
            out[g] = self.cell_sets[mine].T.astype(np.float64) @ cells[mine]
        return out

    @cached_property
    def means(self) -> Doubles:
        """Mean of each label's rows, in a training set or not, (labels, d)."""
        sums = np.stack([self._cell_sums[0][self.cells_of(g)].sum(axis=0) for g in range(self.labels)])
        return np.asarray(sums / np.diff(self.edges)[:, None])

    @cached_property
    def variance(self) -> Doubles:
        """Mean squared distance of all rows from their labels' means, feature by feature, (d,)."""
        total = self._cell_sums[1].sum(axis=0) - np.diff(self.edges) @ self.means**2
        return np.asarray(np.maximum(total, 0) / len(self.X))

    @cached_property
    def label_grams(self) -> Floats | None:
        """X.T @ X of all rows of each label, (labels, d, d); None where they would take too much memory."""
        cells = self.__dict__.get("_cell_grams")  # only where somebody has asked for them
        out = self._room_for(self.labels)
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
            x = self.doubles(self.cell(c))
            x.sum(axis=0, out=out[0, c])
            np.einsum("nd,nd->d", x, x, out=out[1, c])
        return out[0], out[1]

    @cached_property
    def _cell_grams(self) -> Floats | None:
        """X.T @ X of every cell; None where they would take too much memory."""
        out = self._room_for(len(self.cell_label))
        if out is not None:
            for c in range(len(out)):
                _gram(self.X[self.cell(c)], out[c])
        return out

    def cells_of(self, label: int) -> slice:
        """Cells of one label."""
        first, last = np.searchsorted(self.cell_label, [label, label + 1])
        return slice(int(first), int(last))

    def _room_for(self, count: int) -> Floats | None:
        d = self.X.shape[1]
        return None if count * d * d * self.X.itemsize > CELL_BYTES else np.empty((count, d, d), self.X.dtype)

    def grams(self) -> Callable[[int], Floats]:
        """Function of a training set that gives X.T @ X of each label's rows in it, (labels, d, d).

        By subtraction of the cells that are left out, where they are fewer. The array is the same one every time.
        """
        cells, d = self._cell_grams, self.X.shape[1]
        whole = self.label_grams if cells is not None else None
        if whole is None:
            whole = np.empty((self.labels, d, d), self.X.dtype)
            for g in range(self.labels):
                _gram(self.X[self.block(g)], whole[g])
        out, now = np.empty_like(whole), [-1]

        def of(k: int) -> Floats:
            if now[0] >= 0 and np.array_equal(self.cell_sets[:, k], self.cell_sets[:, now[0]]):
                return out
            now[0] = k
            for g in range(self.labels):
                mine = np.arange(len(self.cell_label))[self.cells_of(g)]
                held, left_out = mine[self.cell_sets[mine, k]], mine[~self.cell_sets[mine, k]]
                fewer = len(left_out) <= len(held)
                combine, total = (np.subtract, whole[g]) if fewer else (np.add, np.zeros_like(whole[g]))
                for c in left_out if fewer else held:
                    gram = _gram(self.X[self.cell(c)]) if cells is None else cells[c]
                    total = combine(total, gram, out=out[g])
                if not len(left_out if fewer else held):
                    out[g] = total
            return out

        return of


def _gram(x: Floats, out: Floats | None = None) -> Floats:
    """x.T @ x, some rows at a time."""
    first = x[:PRODUCT_ROWS]
    total: Floats = np.matmul(first.T, first, out=out)
    for start in range(PRODUCT_ROWS, len(x), PRODUCT_ROWS):
        part = x[start : start + PRODUCT_ROWS]
        total += part.T @ part
    return total
