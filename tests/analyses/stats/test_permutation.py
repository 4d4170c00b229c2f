"""Permutation of labels, p-values and the false discovery rate."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import false_discovery_control

from stratalens.analyses.stats.permutation import fdr, needed_permutations, p_value, permuted_labels
from stratalens.store.errors import InputError
from support.planted import planted


def test_permuted_labels_keep_counts() -> None:
    result = permuted_labels(np.array([0, 0, 1, 2]), 50, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(result, axis=1), np.tile([0, 0, 1, 2], (50, 1)))
    assert len(np.unique(result, axis=0)) == 12


def test_p_values_count_ties_and_are_never_zero() -> None:
    null = np.array([0.1, 0.5, 0.5 + 1e-13, 0.9])
    assert p_value(null, np.array(0.5)) == 4 / 5
    assert p_value(null, np.array(2.0)) == 1 / 5
    assert np.isnan(p_value(null, np.array(np.nan)))
    assert p_value(np.array([0.1, np.nan]), np.array(0.5)) == 2 / 3, "an undefined shuffle counts against the estimate"


def test_fdr_equals_scipy_over_any_dims() -> None:
    rng = np.random.default_rng(0)
    p = xr.DataArray(rng.uniform(size=(3, 4, 2)), dims=("stage", "layer", "token"), coords={"layer": [3, 1, 2, 9]})
    whole = fdr(p)
    np.testing.assert_allclose(whole, false_discovery_control(p.values.ravel()).reshape(p.shape))
    assert whole.dims == p.dims
    assert whole.layer.values.tolist() == [3, 1, 2, 9]
    by_stage = fdr(p, over=("layer", "token"), method="by")
    for i in range(3):
        np.testing.assert_allclose(by_stage[i], false_discovery_control(p.values[i].ravel(), method="by").reshape(4, 2))
    p[0, 0, 0] = np.nan
    result = fdr(p)
    assert np.isnan(result[0, 0, 0])
    np.testing.assert_allclose(result.values.ravel()[1:], false_discovery_control(p.values.ravel()[1:]))
    both = fdr(xr.Dataset({"r2_p": p, "r2": p}))
    np.testing.assert_array_equal(both.r2, p)
    xr.testing.assert_allclose(both.r2_p, result)
    with pytest.raises(InputError, match="bh, by"):
        fdr(p, method="holm")  # type: ignore[arg-type]


def test_fdr_on_a_projection() -> None:
    from stratalens.analyses.centroids.centroids import project

    result = project(planted(stages=2, effect=2.0, per_group=30), permutations=99, bootstrap=0, progress=False)
    adjusted = fdr(result, over=("layer", "token"))
    assert (adjusted.r2_p >= result.r2_p - 1e-12).all()
    assert (adjusted.rank_correlation_p.isel(stage=-1, layer=-1) <= 0.05).all()


def test_fdr_says_when_permutations_are_too_few() -> None:
    """One real place among 200 with 99 permutations: its p is as small as it can be, and still does not pass."""
    p = xr.DataArray(np.r_[0.01, np.linspace(0.1, 1, 199)], dims="layer", attrs={"permutations": 99})
    with pytest.warns(UserWarning, match="a single place among 200 needs permutations=3999"):
        assert float(fdr(p)[0]) > 0.9
    with pytest.warns(UserWarning, match="among 200"):
        fdr(xr.Dataset({"accuracy_p": p.assign_attrs(permutations=99)}))
    assert float(fdr(p[:5])[0]) == 0.05  # passes; a warning would be an error here
    assert needed_permutations(200) == 3999
    fdr(p.drop_attrs())  # unknown number of permutations
    fdr(p[1:])  # no place is as small as it can be
