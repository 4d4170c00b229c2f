"""Scores of groups that a probe was not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.probes.generalise import generalise
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.every_probe import QUIET, with_templates


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return with_templates()


def test_joint_probes_are_applied_to_other_entities(ds: xr.Dataset) -> None:
    half = np.isin(ds.entity_id.values, np.unique(ds.entity_id.values)[:60])
    probes = probe(ds.isel(entity=half), tokens="joint", normalize=True, **QUIET)
    result = generalise(probes, ds.isel(entity=~half), progress=False)
    x = ds.isel(entity=~half).resid_post.squeeze()
    x = x / np.sqrt((x**2).sum("d_model"))
    score = xr.dot(x, probes.coef.squeeze(), dim=["token", "d_model"]) + probes.intercept.squeeze()
    np.testing.assert_allclose(
        result.squeeze().sel(group="s2"),
        score.isel(entity=score.trained_stage.values == "s2").mean("entity"),
        atol=1e-5,
    )


def test_probes_of_residuals_are_not_applied_to_raw_activations(ds: xr.Dataset) -> None:
    """Their directions belong to activations without the statistics, so that other data gives wrong scores."""
    half = np.isin(ds.entity_id.values, np.unique(ds.entity_id.values)[:60])
    probes = residual_probe(ds.isel(entity=half), statistics=("resid_post_l2",), **QUIET)
    with pytest.raises(InputError, match="probes of residual_probe cannot score other data"):
        generalise(probes, ds.isel(entity=~half), progress=False)
    assert generalise(probes, ds.isel(entity=half), draws=10).sizes["group"] == 3


def test_groups_have_the_order_that_the_call_names_or_none() -> None:
    rng = np.random.default_rng(0)
    colours = np.repeat(["red", "blue", "green", "black", "white"], 20)
    x = rng.normal(size=(100, 1, 4)) + np.repeat(np.arange(5), 20)[:, None, None]
    da = xr.DataArray(x, dims=("entity", "token", "d_model"), coords={"colour": ("entity", colours.astype(object))})
    order = ["white", "black", "green", "blue", "red"]
    probes = probe(da, "colour", pairs=[("black", "white")], order=order, folds=2, progress=False)
    unordered = generalise(probes, da)
    assert np.isnan(unordered.order_kept).all()
    ordered = generalise(probes, da, order=order)
    assert ordered.group.values.tolist() == order
    assert bool((ordered.order_kept == 1).all())
    same = unordered.sel(group=order)
    np.testing.assert_array_equal(ordered.values, same.values)
