"""Principal angles against SciPy, and Procrustes alignment of a planted rotation."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.linalg import subspace_angles

from stratalens.analyses.directions.alignment import principal_angles, procrustes
from stratalens.store.errors import InputError
from support.planted import planted


def test_principal_angles_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    a = xr.DataArray(rng.standard_normal((3, 4, 20)), dims=("layer", "pair", "d_model"))
    b = xr.DataArray(rng.standard_normal((3, 6, 20)), dims=("layer", "pair", "d_model"))
    result = principal_angles(a, b)
    assert result.dims == ("layer", "angle")
    for layer in range(3):
        np.testing.assert_allclose(result[layer], np.sort(subspace_angles(a.values[layer].T, b.values[layer].T)))
    np.testing.assert_allclose(principal_angles(a, 2 * a), 0, atol=1e-6)
    with pytest.raises(InputError, match="span everything"):
        principal_angles(a.isel(d_model=slice(3)), b)


def test_procrustes_undoes_a_rotation_and_only_that() -> None:
    ds = planted(stages=2, layers=1, groups=4, per_group=100, d=10, chunked=False, tokens=("t",))
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    x = ds.resid_post.values
    x[0, 0, :, 0] = x[1, 0, :, 0] @ rotation + 3
    result = procrustes(ds, progress=False).isel(layer=0, token=0)
    np.testing.assert_allclose(result.explained_aligned, 1, atol=1e-4)
    assert float(result.explained[0]) < 0.2
    assert float(result.explained[1]) == pytest.approx(1)
    assert float(result.rotation[1]) == pytest.approx(0, abs=1e-3)
    x[0] = rng.standard_normal(x[0].shape)  # unrelated: a rotation fitted on one half does not explain the other
    assert float(procrustes(ds, progress=False).explained_aligned[0, 0, 0]) < 0
    with pytest.raises(InputError, match="no stage"):
        procrustes(ds, reference="s9")
    with pytest.raises(InputError, match="has one"):
        procrustes(ds.isel(stage=0))
    x[0] = 1.5  # the same in all rows: there is no rotation
    result = procrustes(ds, progress=False).isel(layer=0, token=0, stage=0)
    assert result.explained == 0
    assert np.isnan(result.rotation)
