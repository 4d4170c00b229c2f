"""The mean logistic loss of many two-class problems over shared rows, as the batched minimiser wants it.

Works on numpy and cupy alike. Who asks for it is in logistic.py, who minimises it in lbfgs.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any  # numpy.ndarray or cupy.ndarray

# Mean of p (1 - p) that the preconditioner assumes; the line search corrects it.
TYPICAL_VARIANCE = 0.2


class BinaryObjective:
    """P two-class problems, mean logistic loss + penalty, as lbfgs.Objective wants it.

    Args:
        blocks: (X [shape: (n_b, d)], problems [shape: (P_b,)] that use these rows, signs [shape: (n_b, P_b)],
            +1 positive, -1 negative, 0 not in the training rows).
        count: [array-like, shape: (P,)] training rows of each problem.
        penalty: [array-like, shape: (P, d)] or (P, 1): coefficient of w_j**2 / 2 in the mean loss.
        factor: [array-like, shape: (d, d)] F with F.T @ F the inverse curvature that all share.
        unit: [array-like, shape: (P, d)] or (P, 1): scale of the features, that the gradient is measured in.
        rotated: measure the gradient by its length, which bounds the largest component in any rotation.
    """

    def __init__(
        self, xp: Any, blocks: list[tuple[Array, Array, Array]], count: Array, penalty: Array, factor: Array,
        unit: Array, rotated: bool,
    ) -> None:  # fmt: skip
        self.xp, self.blocks, self.count, self.penalty = xp, blocks, count, penalty
        self.factor, self.unit, self.rotated = factor, unit, rotated
        dtype = factor.dtype
        self.at = xp.zeros((len(count), factor.shape[0] + 1), dtype=dtype)
        self.predictors = [xp.zeros(signs.shape, dtype=dtype) for _, _, signs in blocks]
        self.residuals = self._residuals(self.predictors)

    def gradient(self) -> Array:
        """Of the mean loss with the penalty; the last column is the intercept's."""
        xp = self.xp
        out = xp.zeros_like(self.at)
        for (x, problems, _), residual in zip(self.blocks, self.residuals, strict=True):
            out[problems, :-1] += residual.T @ x
            out[problems, -1] += residual.sum(axis=0)
        out /= self.count[:, None]
        out[:, :-1] += self.penalty * self.at[:, :-1]
        return out

    def size_of(self, gradient: Array) -> Array:
        """Largest component, in units of each feature's scale (or the length, where rotated)."""
        scaled = gradient[:, :-1] / self.unit
        if self.rotated:
            return self.xp.maximum(self.xp.sqrt((scaled * scaled).sum(axis=1)), self.xp.abs(gradient[:, -1]))
        return self.xp.maximum(self.xp.abs(scaled).max(axis=1), self.xp.abs(gradient[:, -1]))

    def precondition(self, vectors: Array) -> Array:
        """The shared inverse curvature; twice a factor, so that rounding keeps it positive definite."""
        out = self.xp.empty_like(vectors)
        out[:, :-1] = (vectors[:, :-1] @ self.factor.T) @ self.factor
        out[:, -1] = vectors[:, -1] / TYPICAL_VARIANCE
        return out

    def look(self, directions: Array) -> None:
        """Predictors are linear: one pass over the data serves the whole line."""
        self.along = directions
        self.change = [x @ directions[problems, :-1].T + directions[problems, -1] for x, problems, _ in self.blocks]
        w, v = self.at[:, :-1], directions[:, :-1]
        self.cross = (self.penalty * w * v).sum(axis=1)
        self.square = (self.penalty * v * v).sum(axis=1)

    def slope(self, alpha: Array) -> tuple[Array, Array]:
        """Derivatives along the line."""
        xp = self.xp
        self.ahead = [
            z + step * alpha[problems]
            for (_, problems, _), z, step in zip(self.blocks, self.predictors, self.change, strict=True)
        ]
        self.residuals_ahead = self._residuals(self.ahead)
        slope, curvature = xp.zeros_like(alpha), xp.zeros_like(alpha)
        for (_, problems, _), r, step in zip(self.blocks, self.residuals_ahead, self.change, strict=True):
            slope[problems] += xp.einsum("ij,ij->j", r, step)
            size = xp.abs(r)
            size -= size * size  # p (1 - p), and 0 for rows outside, where the residual is 0
            size *= step
            curvature[problems] += xp.einsum("ij,ij->j", size, step)
        return (
            slope / self.count + self.cross + alpha * self.square,
            curvature / self.count + self.square + xp.finfo(alpha.dtype).tiny,
        )

    def move(self, alpha: Array) -> None:
        """Take over what the last slope has computed."""
        self.at = self.at + self.along * alpha[:, None]
        self.predictors, self.residuals = self.ahead, self.residuals_ahead

    def points(self) -> Array:
        """Coefficients, and the intercept in the last column."""
        return self.at

    def keep(self, mask: Array) -> None:
        """Drop the problems that are done."""
        xp = self.xp
        number = xp.cumsum(mask) - 1
        blocks, predictors, residuals = [], [], []
        for (x, problems, signs), z, r in zip(self.blocks, self.predictors, self.residuals, strict=True):
            stay = mask[problems]
            if bool(stay.any()):
                blocks.append((x, number[problems[stay]], _columns(xp, signs, stay)))
                predictors.append(_columns(xp, z, stay))
                residuals.append(_columns(xp, r, stay))
        self.blocks, self.predictors, self.residuals = blocks, predictors, residuals
        self.at, self.count, self.penalty = self.at[mask], self.count[mask], self.penalty[mask]
        self.unit = self.unit[mask]

    def _residuals(self, predictors: list[Array]) -> list[Array]:
        """Derivative of the loss by the predictor: -s / (1 + exp(s z))."""
        xp = self.xp
        out = []
        for (_, _, signs), z in zip(self.blocks, predictors, strict=True):
            r = signs * z
            xp.minimum(r, 80, out=r)  # exp(80) is finite in float32, and 1 / (1 + exp(80)) is 0 to any purpose
            xp.exp(r, out=r)
            r += 1
            xp.divide(signs, r, out=r)
            xp.negative(r, out=r)
            out.append(r)
        return out


def curvature_factor(xp: Any, X: Array, penalty: npt.NDArray[np.float64]) -> Array:
    """F with F.T @ F close to the inverse of TYPICAL_VARIANCE * cov(X) + diag(penalty), shape (d, d) float64.

    Only speed depends on it, so the Gram matrix is taken in the dtype of the data; scaling to a unit diagonal
    keeps its rounding harmless where features differ widely in size.
    """
    curvature = (X.T @ X).astype(np.float64) * (TYPICAL_VARIANCE / len(X))
    at = xp.arange(len(curvature))
    curvature[at, at] += xp.asarray(penalty)
    size = xp.sqrt(curvature[at, at])
    size = xp.where(size > 0, size, 1)
    curvature /= size[:, None] * size
    curvature[at, at] += 1e-5 if X.dtype == np.float32 else 1e-10
    return xp.linalg.inv(xp.linalg.cholesky(curvature)) / size


def _columns(xp: Any, matrix: Array, mask: Array) -> Array:
    return xp.asfortranarray(matrix[:, mask])
