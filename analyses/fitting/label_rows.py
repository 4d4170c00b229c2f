"""Rows by label, and which of them each training set holds: their sums and Gram matrices, by subtraction of folds.

The moments (moments.py) that closed_form.py and probe_systems.py work from, beside the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stratalens.analyses.moments import Moments

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

CELL_BYTES = 2**29  # Gram matrices of all cells, beyond which they are made again for every training set


@dataclass(frozen=True)
class Rows:
    """Rows in blocks by label, and which of them each of K training sets holds.

    Attributes:
        X: [array-like, shape: (n, d)] shifted rows in the order of their labels, in the dtype of the data.
        exact: [array-like, shape: (n, d)] the same in float64.
        edges: [array-like, shape: (labels + 1,)] where each label begins.
        inside: [array-like, shape: (n, K)] bool.
    """

    X: Floats
    exact: Doubles
    edges: Codes
    inside: npt.NDArray[np.bool_]

    @property
    def labels(self) -> int:
        """Number of labels."""
        return len(self.edges) - 1

    def block(self, label: int) -> slice:
        """Rows of one label."""
        return slice(int(self.edges[label]), int(self.edges[label + 1]))

    def sums(self, power: int = 1) -> Doubles:
        """Sum of x**power over each label's rows in each training set, (labels, K, d) float64."""
        out = np.empty((self.labels, self.inside.shape[1], self.exact.shape[1]))
        for g in range(self.labels):
            here = self.block(g)
            weight = self.inside[here].astype(np.float64)
            out[g] = weight.T @ (self.exact[here] if power == 1 else self.exact[here] ** power)
        return out

    @cached_property
    def cells(self) -> tuple[Codes, npt.NDArray[np.bool_], Codes]:
        """Rows of one label that the same training sets hold: cell of each row; sets (cells, K), label of each cell."""
        label = np.repeat(np.arange(self.labels), np.diff(self.edges))
        key = np.column_stack([label, self.inside])
        first: Codes
        _, first, cell = np.unique(key, axis=0, return_index=True, return_inverse=True)
        return cell.ravel(), self.inside[first], label[first]

    @cached_property
    def _moments(self) -> Moments | None:
        """Gram matrix of every cell, made once; None where they would take too much memory."""
        cell, sets, _ = self.cells
        d = self.X.shape[1]
        if len(sets) * d * d * self.X.itemsize > CELL_BYTES:
            return None
        return Moments.of(self.X, cell, len(sets), np.zeros(d, self.X.dtype), self.X.dtype)

    def _gram(self, cell: int) -> Floats:
        if self._moments is not None:
            return np.asarray(self._moments.gram[cell])
        rows = self.X[self.cells[0] == cell]
        return np.asarray(rows.T @ rows)

    def grams(self) -> Callable[[int], Floats]:
        """Function of a training set that gives X.T @ X of each label's rows in it, (labels, d, d).

        By subtraction of the cells that are left out, where they are fewer. The array is the same one every time.
        """
        d = self.X.shape[1]
        _, sets, label = self.cells
        whole = np.zeros((self.labels, d, d), self.X.dtype)
        for c, g in enumerate(label):
            whole[g] += self._gram(c)
        out = np.empty_like(whole)

        def of(k: int) -> Floats:
            for g in range(self.labels):
                mine = np.flatnonzero(label == g)
                held, left_out = mine[sets[mine, k]], mine[~sets[mine, k]]
                if 2 * len(left_out) <= len(mine):
                    out[g] = whole[g]
                    for c in left_out:
                        out[g] -= self._gram(int(c))
                else:
                    out[g] = 0
                    for c in held:
                        out[g] += self._gram(int(c))
            return out

        return of
