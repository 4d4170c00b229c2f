"""Value, interval and null of a result."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stratalens.analyses.stats.estimates import corrected_half_width, differs_from_null, estimate, pair_mean
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")


@pytest.fixture(scope="module")
def probes() -> xr.Dataset:
    return planted.probes(STAGES, 3)


@given(st.integers(2, 8), st.integers(0, 1000))
def test_the_corrected_interval_is_that_of_nadeau_and_bengio(k: int, seed: int) -> None:
    values = np.random.default_rng(seed).random(k)
    got = float(corrected_half_width(xr.DataArray(values, dims="fold"), ["fold"]))
    plain_half = stats.sem(values) * stats.t.ppf(0.975, k - 1)
    assert got == pytest.approx(plain_half * np.sqrt(1 + k / (k - 1)))


def test_estimates_prefer_what_the_analysis_reports(probes: xr.Dataset) -> None:
    got = estimate(probes)
    xr.testing.assert_allclose(got["low"], probes["accuracy_low"].rename("low"))
    bare = probes[["accuracy"]]
    assert "Nadeau" not in estimate(bare).attrs["interval"]
    assert bool((estimate(bare)["low"] < estimate(bare)["value"]).all())
    chance = bare.assign(chance=("pair", [0.4, 0.5, 0.6]))
    np.testing.assert_allclose(estimate(chance)["null"].isel(stage=0, layer=0, token=0), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(pair_mean(probes)["value"], probes["accuracy"].mean(["pair", "fold"]))
    assert not differs_from_null(0.9, 0.8, 1.0, 0.5, 0.2)  # p decides where there is one
