"""Value, interval and null of a result."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stratalens.analyses.stats.estimates import (
    corrected_half_width,
    differs_from_null,
    estimate,
    judged_measure,
    pair_mean,
)
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


@pytest.mark.parametrize(("k", "held_out"), [(5, 0.2), (20, 0.5), (10, 0.1)])
def test_repeats_are_corrected_by_the_share_that_they_hold_out(k: int, held_out: float) -> None:
    """Nadeau and Bengio (2003): the variance of the mean is (1/k + test share / training share) times the sample's."""
    values = np.random.default_rng(k).random(k)
    data = xr.Dataset({"accuracy": ("repeat", values)}, attrs={"holdout": held_out})
    got = estimate(data)
    expected = stats.t.ppf(0.975, k - 1) * values.std(ddof=1) * np.sqrt(1 / k + held_out / (1 - held_out))
    half = float(corrected_half_width(data["accuracy"], ["repeat"], held_out))
    assert half == pytest.approx(expected)
    assert float(got["high"]) == pytest.approx(min(1.0, values.mean() + expected))
    unknown = estimate(data.assign_attrs(holdout=None))
    assert np.isnan(unknown["low"])
    assert unknown.attrs["interval"] == "no interval"


def test_means_of_overlapping_halves_are_covered() -> None:
    """20 halves of one sample are nearly copies of each other; their mean varies as much as one of them."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        x = rng.normal(size=40)
        halves = [x[rng.permutation(40)[:20]].mean() for _ in range(20)]
        data = xr.Dataset({"r2": ("repeat", halves)}, attrs={"holdout": 0.5})
        got = estimate(data, "r2")
        covered.append(float(got["low"]) <= 0 <= float(got["high"]))
    assert np.mean(covered) >= 0.9


def test_unequal_classes_are_judged_by_balanced_accuracy() -> None:
    numbers = {
        "accuracy": (("pair", "fold"), [[0.9, 0.9]]),
        "accuracy_mean": ("pair", [0.9]),
        "balanced_accuracy": (("pair", "fold"), [[0.6, 0.6]]),
        "balanced_accuracy_mean": ("pair", [0.6]),
        "balanced_accuracy_low": ("pair", [0.5]),
        "balanced_accuracy_high": ("pair", [0.7]),
    }
    data = xr.Dataset(numbers)
    equal, unequal = (data.assign(chance=("pair", [share])) for share in (0.53, 0.8))
    assert judged_measure(equal) == "accuracy"
    assert judged_measure(unequal) == "balanced_accuracy"
    got = estimate(unequal)
    assert got.attrs["measured"] == "balanced_accuracy"
    assert [float(got[k].squeeze()) for k in ("value", "low", "high", "null")] == [0.6, 0.5, 0.7, 0.5]
    assert float(pair_mean(unequal)["value"]) == 0.6
    assert float(estimate(unequal, "accuracy")["null"].squeeze()) == 0.8
    assert judged_measure(xr.Dataset({"r2": ("fold", [0.1, 0.2]), "r2_mean": 0.1})) == "r2"
    three = unequal.assign(chance=("pair", [0.35]), coef=("group", np.zeros(3))).assign_attrs(pairs="multiclass")
    assert judged_measure(three) == "accuracy"
    assert judged_measure(three.assign(chance=("pair", [0.45]))) == "balanced_accuracy"
    assert float(estimate(three, "balanced_accuracy")["null"].squeeze()) == pytest.approx(1 / 3)
