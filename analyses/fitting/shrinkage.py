"""How much the covariance of each class is shrunk (Ledoit and Wolf, 2004), for all pairs and folds of a slab.

As scikit-learn's `ledoit_wolf` on standardised rows, which are not made. Who asks for it is in closed_form.py; where
the scatters are measured, the host or a device, is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stratalens.analyses.fitting.label_rows import Doubles, Floats, Rows

# From a training set, which labels make up each class (C, labels), a scale of every feature and a centre (both
# (C, d)): trace and squared Frobenius norm of scale * (sum of x x^T) * scale - centre centre^T, both (C,).
Measure = Callable[[int, Doubles, Doubles, Doubles], tuple[Doubles, Doubles]]


class LedoitWolf:
    """How much each class's standardised features are shrunk, and towards which variance.

    Classes that several contrasts share are looked at once.

    Args:
        rows: by label.
        member: [array-like, shape: (2, P, labels)] which labels make up each class.
        count: [array-like, shape: (2, P, K)] rows of each class in each training set.
        mean: [array-like, shape: (2, P, K, d)].
        deviation: [array-like, shape: (2, P, K, d)] standard deviations.
    """

    def __init__(self, rows: Rows, member: Doubles, count: Doubles, mean: Doubles, deviation: Doubles) -> None:
        n_sets, d = rows.inside.shape[1], mean.shape[-1]
        self.shape = count.shape[:2]
        self.classes, self.owner = np.unique(member.reshape(-1, rows.labels), axis=0, return_inverse=True)
        first = np.array([np.flatnonzero(self.owner.ravel() == c)[0] for c in range(len(self.classes))])
        self.count = count.reshape(-1, n_sets)[first]
        self.centre, spread = (v.reshape(-1, n_sets, d)[first] for v in (mean, deviation))
        self.weight = 1 / spread**2
        self.fourth = np.zeros(self.count.shape)
        for g in range(rows.labels):
            here = rows.block(g)
            middle, mine = rows.means[g], np.flatnonzero(self.classes[:, g])
            x, inside = rows.X[here] - middle.astype(rows.X.dtype), rows.inside[here]
            # |(x - mean) / scale|**2 of every row, without making the standardised rows.
            weight, centre = (v[mine].reshape(-1, d) for v in (self.weight, self.centre - middle))
            pull = centre * weight
            length = (x * x) @ weight.T.astype(x.dtype) - 2 * (x @ pull.T.astype(x.dtype))
            length = (length + (pull * centre).sum(axis=1)).reshape(len(x), len(mine), n_sets)
            self.fourth[mine] += np.einsum("nck,nk->ck", length**2, inside)

    def __call__(self, measure: Measure) -> tuple[Doubles, Doubles]:
        """Shrinkage and mean variance of each class in each training set, both (2, P, K)."""
        each = [self._one(k, measure) for k in range(self.count.shape[1])]
        amount, mean = (np.stack([one[i] for one in each], axis=-1) for i in range(2))
        owner = self.owner.ravel()
        return tuple(v[owner].reshape(*self.shape, -1) for v in (amount, mean))  # type: ignore[return-value]

    def _one(self, k: int, measure: Measure) -> tuple[Doubles, Doubles]:
        """Of every different class in training set k."""
        n, d = self.count[:, k], self.centre.shape[-1]
        scale = np.sqrt(self.weight[:, k] / n[:, None])
        trace, square = measure(k, self.classes, scale, np.sqrt(n)[:, None] * self.centre[:, k] * scale)
        mean = trace / d
        delta = (square - 2 * mean * trace + d * mean**2) / d
        beta = np.minimum((self.fourth[:, k] / n - square) / (d * n), delta)
        return np.where(beta <= 0, 0.0, beta / np.where(delta > 0, delta, 1)), mean


def measure_on_host(rows: Rows) -> Measure:
    """`Measure` from the Gram matrices of rows in memory, in the dtype of the data."""
    grams_of = rows.grams()

    def measure(k: int, classes: Doubles, scales: Doubles, centres: Doubles) -> tuple[Doubles, Doubles]:
        grams = grams_of(k)
        trace, square = np.zeros(len(classes)), np.zeros(len(classes))
        scatter = np.empty_like(grams[0])
        ger: Any = linalg.get_blas_funcs("ger", (scatter,))
        for c, labels in enumerate(classes):
            total = _sum_of(grams, labels, scatter)
            # Scaled first, so that no square is too large or too small for float32.
            scale = scales[c].astype(scatter.dtype)
            np.multiply(total, scale[:, None], out=scatter)
            scatter *= scale
            ger(-1.0, centres[c], centres[c], a=scatter.T, overwrite_a=1)
            trace[c] = float(np.trace(scatter, dtype=np.float64))
            square[c] = float(np.vdot(scatter, scatter))
        return trace, square

    return measure


def _sum_of(grams: Floats, labels: npt.NDArray[np.float64], out: Floats) -> Floats:
    """Sum of the matrices of some labels; one alone is not copied."""
    first, *others = np.flatnonzero(labels)
    total: Floats = grams[first]
    for g in others:
        total = np.add(total, grams[g], out=out)
    return total
