"""Moments add, subtract and stream; components, ridge and LDA from them against scikit-learn in float64."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from stratalens.analyses.centroids.pca import pca
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.estimators import gram as label_rows
from stratalens.analyses.estimators.gram import Rows
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


@pytest.mark.parametrize("by", [None, "kind"])
def test_pca_equals_scikit_learn(by: str | None) -> None:
    x, y = data()
    da = xr.DataArray(x[:, None], dims=("entity", "token", "d_model"), coords={"kind": ("entity", y)})
    found = pca(da, components=4, by=by, progress=False).isel(token=0)
    inside = x.astype(np.float64)
    if by is not None:
        inside = np.concatenate([inside[y == c] - inside[y == c].mean(axis=0) for c in (0, 1)])
    model = PCA().fit(inside)
    for mine, other in zip(found.vector.values, model.components_, strict=False):
        assert 1 - abs(float(mine @ other)) <= 1e-6
        assert mine[np.abs(mine).argmax()] > 0
    variance = model.explained_variance_ * (len(x) - 1) / len(x)
    np.testing.assert_allclose(found.variance, variance[:4], rtol=1e-4)
    np.testing.assert_allclose(found.share, model.explained_variance_ratio_[:4], rtol=1e-4)
    np.testing.assert_allclose(found.participation, variance.sum() ** 2 / (variance**2).sum(), rtol=1e-4)


def test_pca_of_every_place_and_of_heads() -> None:
    ds = planted(stages=2, layers=2, d=8)
    found = pca(ds, components=3, progress=False)
    assert found.vector.dims == ("stage", "layer", "token", "component", "d_model")
    assert found.attrs["hook"] == "blocks.{layer}.hook_resid_post"
    heads = ds.resid_post.values.reshape(*ds.resid_post.shape[:4], 2, 4)
    z = xr.DataArray(heads, dims=("stage", "layer", "entity", "token", "head", "d_head"))
    by_head = pca(z, components=3, progress=False)
    np.testing.assert_allclose(by_head.vector.values.reshape(found.vector.shape), found.vector, atol=1e-5)


def test_pca_refuses_what_it_cannot_do() -> None:
    ds = planted(stages=1, layers=1, d=8)
    with pytest.raises(InputError, match="from 1 to 8"):
        pca(ds, components=9, progress=False)
    with pytest.raises(InputError, match="a variance needs two"):
        pca(ds.isel(entity=[0]), components=1, progress=False)
    constant = ds.assign(resid_post=xr.full_like(ds.resid_post, 3.3))
    assert np.isnan(pca(constant, components=2, progress=False).variance).all()


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
    for t, found in enumerate(moments(slab, codes, 2)):
        x = ds.resid_post.values[0, 0, :, t]
        for cell in range(2):
            np.testing.assert_allclose(found.mean[cell], x[codes == cell].mean(0), atol=1e-5)
            expected = np.cov(x[codes == cell].T, bias=True)
            np.testing.assert_allclose(found.covariance[cell], expected, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_gram_matrices_of_training_sets_by_subtraction(seed: int, labels: int, sets: int, small: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 5))
    codes = rng.permutation(np.concatenate([np.arange(labels), rng.integers(0, labels, 40 - labels)]))
    inside = rng.random((40, sets)) < rng.random(sets)
    limit, label_rows.CELL_BYTES = label_rows.CELL_BYTES, 0 if small else 2**20
    try:
        rows = Rows.of(x, codes, inside)
        grams, sums, squares = rows.grams(), rows.sums(), rows.sums(squared=True)
        for k in range(sets):
            held = [x[(codes == g) & inside[:, k]] for g in range(labels)]
            np.testing.assert_allclose(grams(k), [part.T @ part for part in held], atol=1e-10)
            np.testing.assert_allclose(sums[:, k], [part.sum(axis=0) for part in held], atol=1e-10)
            np.testing.assert_allclose(squares[:, k], [(part**2).sum(axis=0) for part in held], atol=1e-10)
        assert (rows.label_grams is None) is small
        around = sum((codes == g).sum() * x[codes == g].var(axis=0) for g in range(labels))
        np.testing.assert_allclose(rows.variance, around / 40, atol=1e-10)
    finally:
        label_rows.CELL_BYTES = limit


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
