"""Principal components against scikit-learn, for every stage, layer and token."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA

from stratalens.analyses.centroids.pca import pca
from stratalens.store.errors import InputError
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
    result = pca(da, components=4, by=by, progress=False).isel(token=0)
    inside = x.astype(np.float64)
    if by is not None:
        inside = np.concatenate([inside[y == c] - inside[y == c].mean(axis=0) for c in (0, 1)])
    model = PCA().fit(inside)
    for mine, other in zip(result.vector.values, model.components_, strict=False):
        assert 1 - abs(float(mine @ other)) <= 1e-6
        assert mine[np.abs(mine).argmax()] > 0
    variance = model.explained_variance_ * (len(x) - 1) / len(x)
    np.testing.assert_allclose(result.variance, variance[:4], rtol=1e-4)
    np.testing.assert_allclose(result.share, model.explained_variance_ratio_[:4], rtol=1e-4)
    np.testing.assert_allclose(result.participation, variance.sum() ** 2 / (variance**2).sum(), rtol=1e-4)


def test_pca_of_every_place_and_of_heads() -> None:
    ds = planted(stages=2, layers=2, d=8)
    result = pca(ds, components=3, progress=False)
    assert result.vector.dims == ("stage", "layer", "token", "component", "d_model")
    assert result.attrs["hook"] == "blocks.{layer}.hook_resid_post"
    heads = ds.resid_post.values.reshape(*ds.resid_post.shape[:4], 2, 4)
    z = xr.DataArray(heads, dims=("stage", "layer", "entity", "token", "head", "d_head"))
    by_head = pca(z, components=3, progress=False)
    np.testing.assert_allclose(by_head.vector.values.reshape(result.vector.shape), result.vector, atol=1e-5)


def test_pca_refuses_what_it_cannot_do() -> None:
    ds = planted(stages=1, layers=1, d=8)
    with pytest.raises(InputError, match="from 1 to 8"):
        pca(ds, components=9, progress=False)
    with pytest.raises(InputError, match="a variance needs two"):
        pca(ds.isel(entity=[0]), components=1, progress=False)
    constant = ds.assign(resid_post=xr.full_like(ds.resid_post, 3.3))
    assert np.isnan(pca(constant, components=2, progress=False).variance).all()
