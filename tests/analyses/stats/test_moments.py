"""Moments add and subtract, and stream from a slab; CuPy gives the same moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.stats.moments import Moments, moments
from stratalens.store.errors import InputError, NonFiniteError
from support.planted import planted


def data(n: int = 700, d: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features far from zero, one of them huge, as residual streams have; two classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) / np.sqrt(d)) + 5 * rng.standard_normal(d)
    x[:, 3] = 300 + 20 * rng.standard_normal(n)
    x += 0.4 * y[:, None] * rng.standard_normal(d)
    return x.astype(np.float32), y


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_moments_add_and_subtract(seed: int, chunks: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((57, 6)).astype(np.float32)
    shift = x[:5].mean(0)
    whole = Moments.of(x, shift=shift)
    first, *rest = (Moments.of(part, shift=shift) for part in np.array_split(x, chunks))
    left = rest[0]
    for part in rest[1:]:
        left = left + part
    for field in ("n", "sum", "gram"):
        np.testing.assert_allclose(getattr(first + left, field), getattr(whole, field), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(getattr(whole - first, field), getattr(left, field), rtol=1e-3, atol=1e-4)


def test_different_shifts_are_refused() -> None:
    x = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="shift"):
        Moments.of(x) + Moments.of(2 * x)


def test_a_slab_is_streamed_into_the_same_moments() -> None:
    ds = planted(layers=1, stages=1)
    slab = SiteData(ds).slabs()[0]
    codes = np.arange(ds.sizes["entity"]) % 3 - 1
    for t, result in enumerate(moments(slab, codes, 2)):
        x = ds.resid_post.values[0, 0, :, t]
        for cell in range(2):
            np.testing.assert_allclose(result.mean[cell], x[codes == cell].mean(0), atol=1e-5)
            expected = np.cov(x[codes == cell].T, bias=True)
            np.testing.assert_allclose(result.covariance[cell], expected, atol=1e-5)


def test_nan_is_refused_with_its_place() -> None:
    ds = planted(layers=1, stages=1, chunked=False)
    ds.resid_post[0, 0, 7, 1, 3] = np.nan
    with pytest.raises(NonFiniteError, match="entity r00007, token last"):
        moments(SiteData(ds).slabs()[0], np.zeros(ds.sizes["entity"], int), 1)


def test_gram_matrices_beyond_memory_are_refused() -> None:
    with pytest.raises(InputError, match="GiB"):
        Moments.zeros(10_000, np.zeros(2000))


@pytest.mark.gpu
def test_cupy_gives_the_same_moments() -> None:
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    x, y = data()
    cpu, gpu = Moments.of(x, y), Moments.of(cupy.asarray(x), y)
    np.testing.assert_allclose(cupy.asnumpy(gpu.gram), cpu.gram, rtol=1e-4, atol=1e-2)
