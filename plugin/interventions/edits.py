"""Changes of activations at selected positions, as functions of tensors.

An edit takes activations of shape (..., features) with the row of the batch that each belongs to, and returns changed
ones of the same shape. Arithmetic is in the dtype of the activations, so that it equals that of a hook as people write
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Edit(Protocol):
    """A change of activations."""

    def __call__(self, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Change activations.

        Args:
            x: activations of shape (batch, position, features) where `rows` is None, else (n, features).
            rows: row of the batch of each, int64 tensor of shape (n,); None = whole sequences.
            columns: number of the named position of each, int64 tensor of shape (n,); None as `rows`.
        """
        ...


@dataclass(frozen=True, eq=False)
class Add:
    """Add a vector.

    Attributes:
        vector: float32 tensor of shape (features,).
    """

    vector: Tensor

    def __call__(self, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Return x + vector."""
        return x + self.vector.to(x.device, x.dtype)


@dataclass(frozen=True, eq=False)
class SetCoordinate:
    """Set the coordinates along orthonormal directions; zeros project the directions out.

    Attributes:
        basis: float32 tensor of shape (k, features), orthonormal rows.
        target: float32 tensor of shape (k,), the new coordinates; None for zeros.
    """

    basis: Tensor
    target: Tensor | None = None

    def __call__(self, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Return x without its part along the basis, plus the target."""
        basis = self.basis.to(x.device, x.dtype)
        if self.target is None:
            return x - _component(x, basis)
        target = self.target.to(x.device, x.dtype)
        return x - _component(x, basis) + _expand(target, basis)


@dataclass(frozen=True, eq=False)
class Replace:
    """Replace activations by those of other rows, as a whole or along directions only (interchange).

    Attributes:
        values: tensor of shape (batch, named positions, features), or (1, named positions, features) for all rows.
        basis: float32 tensor of shape (k, features), orthonormal rows; None replaces the whole activation.
    """

    values: Tensor
    basis: Tensor | None = None

    def __call__(self, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Return the other rows' activations, or x with its coordinates along the basis replaced by theirs."""
        assert rows is not None
        assert columns is not None
        source = self.values[rows if len(self.values) > 1 else torch.zeros_like(rows), columns]
        source = source.to(x.device, x.dtype)
        if self.basis is None:
            return source
        basis = self.basis.to(x.device, x.dtype)
        return x + _component(source - x, basis)


@dataclass(frozen=True, eq=False)
class Stacked:
    """Several edits in one batch, which has all its rows once for each of them.

    Attributes:
        edits: edits of activations at named positions.
        rows: rows of the batch for each edit.
    """

    edits: Sequence[Edit]
    rows: int

    def __call__(self, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        """Return what each edit makes of its own rows."""
        assert rows is not None
        assert columns is not None
        ends = torch.bincount(rows // self.rows, minlength=len(self.edits)).cumsum(0)[:-1].tolist()
        own = (tensor.tensor_split(ends) for tensor in (x, rows, columns))
        parts = zip(self.edits, *own, strict=True)
        return torch.cat([edit(part, row % self.rows, column) for edit, part, row, column in parts])


def _component(x: Tensor, basis: Tensor) -> Tensor:
    """Part of x along orthonormal rows; one direction as `(x @ d)[..., None] * d`."""
    if len(basis) == 1:
        return (x @ basis[0])[..., None] * basis[0]
    return (x @ basis.T) @ basis


def _expand(target: Tensor, basis: Tensor) -> Tensor:
    return target[0] * basis[0] if len(basis) == 1 else target @ basis


def orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal rows that span the same space; a single unit vector stays bit for bit.

    Args:
        vectors: float32 tensor of shape (k, features), unit rows.

    Raises:
        ValueError: the vectors are linearly dependent.

    Example:
        >>> orthonormal(torch.tensor([[1.0, 0.0], [0.6, 0.8]])).abs().round(decimals=4).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if len(vectors) == 1:
        return vectors
    q, r = torch.linalg.qr(vectors.double().T)
    if len(vectors) > vectors.shape[1] or bool((r.diagonal().abs() < 1e-6).any()):
        raise ValueError("linearly dependent")
    basis: Tensor = q.T.to(vectors.dtype).contiguous()
    return basis
