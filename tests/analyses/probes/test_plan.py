"""Options of the plan that all probes share: held-out templates, joint tokens, unknown values."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.controls.controls import baseline_probe
from stratalens.store.errors import InputError
from support.every_probe import PROBES, QUIET, with_templates


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return with_templates()


def shifted(ds: xr.Dataset, rows: np.ndarray) -> xr.Dataset:
    """Replace the activations of some rows."""
    values = ds.resid_post.values.copy()
    values[:, :, rows] = np.random.default_rng(9).normal(size=values[:, :, rows].shape) * 5
    return ds.assign(resid_post=(ds.resid_post.dims, values))


@pytest.mark.parametrize("tokens", ["each", "joint"])
@pytest.mark.parametrize("name", PROBES)
def test_a_held_out_template_is_tested_on_and_never_trained_on(name: str, tokens: str, ds: xr.Dataset) -> None:
    who = ds.template.values == "who"
    options = {"test": {"template": "who"}, "tokens": tokens, **QUIET}
    result = PROBES[name](ds, **options)
    other = PROBES[name](shifted(ds, who), **options)
    assert ("token" in result["accuracy_mean" if "accuracy_mean" in result else "r2_mean"].dims) == (tokens == "each")
    for variable in ("coef", "intercept", "n_matched"):
        if variable in result:
            np.testing.assert_array_equal(
                result[variable], other[variable], "the fits saw nothing of the held-out template"
            )
    if "tested" in result:
        tested = (result.tested > 0).any([d for d in result.tested.dims if d != "entity"]).values
        assert not tested[~who].any()
        assert tested[who].any()
    else:
        assert not result.r2_mean.equals(other.r2_mean)


def test_unknown_options_are_refused(ds: xr.Dataset) -> None:
    for function in PROBES.values():
        with pytest.raises(InputError, match="did you mean 'joint'"):
            function(ds, tokens="joined", **QUIET)
    with pytest.raises(InputError, match="standardize= has no meaning"):
        baseline_probe(ds, standardize=True, **QUIET)
