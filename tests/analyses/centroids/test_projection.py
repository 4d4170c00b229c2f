"""Batched largest eigenvalues against LAPACK, also where eigenvalues coincide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.centroids.projection import largest_eigenvalue, straightness


def with_eigenvalues(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Symmetric matrices (B, n, n) with the eigenvalues (B, n), in random bases."""
    basis = np.linalg.qr(rng.standard_normal((*values.shape, values.shape[-1])))[0]
    matrices = np.einsum("bik,bk,bjk->bij", basis, values, basis)
    return (matrices + matrices.swapaxes(1, 2)) / 2


def check(matrices: np.ndarray) -> None:
    expected = np.linalg.eigvalsh(matrices)[..., -1]
    scale = np.maximum(np.einsum("...ii->...", matrices), np.finfo(float).tiny)
    np.testing.assert_allclose(largest_eigenvalue(matrices) / scale, expected / scale, rtol=0, atol=2e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 13])
@pytest.mark.parametrize("rank", [1, 2, 5, 40])
def test_gram_matrices_of_random_points(n: int, rank: int) -> None:
    points = np.random.default_rng(n).standard_normal((3000, n, rank))
    check(points @ points.swapaxes(1, 2))


@given(
    st.lists(st.sampled_from([0.0, 1e-14, 1e-9, 0.5, 1 - 1e-7, 1 - 1e-12, 1 - 1e-15, 1.0]), min_size=2, max_size=8),
    st.sampled_from([1e-200, 1e-9, 1.0, 1e12, 1e150]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_equal_and_nearly_equal_eigenvalues_at_any_scale(values: list[float], scale: float, seed: int) -> None:
    check(with_eigenvalues(np.array([values, sorted(values)]), np.random.default_rng(seed)) * scale)


def test_diagonal_and_block_diagonal_matrices() -> None:
    check(np.eye(6)[None])
    check(np.diag([3.0, 1.0, 3.0, 0.0])[None])
    check(np.kron(np.diag([1.0, 1.0, 0.5]), np.array([[2.0, 1.0], [1.0, 2.0]]))[None])
    assert largest_eigenvalue(np.zeros((2, 3, 3))).tolist() == [0, 0]
    assert largest_eigenvalue(np.empty((0, 4, 4))).shape == (0,)
    assert largest_eigenvalue(np.ones((2, 3, 4, 4))).shape == (2, 3)


def test_straightness_by_singular_values() -> None:
    points = np.random.default_rng(0).standard_normal((50, 6, 20))
    points[0] = np.outer(np.arange(6), np.ones(20))
    points[1] = 1
    points[2, 0, 0] = np.nan
    result = straightness(points @ points.swapaxes(1, 2))
    centred = points - points.mean(axis=1, keepdims=True)
    values = np.linalg.svd(np.nan_to_num(centred), compute_uv=False) ** 2
    np.testing.assert_allclose(result[3:], values[3:, 0] / values[3:].sum(axis=1), rtol=1e-12)
    assert result[0] == pytest.approx(1)
    assert np.isnan(result[2])
