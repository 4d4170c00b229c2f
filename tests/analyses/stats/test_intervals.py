"""Intervals of cross-validated measures: Wilson's bounds, never of length zero, and coverage over new samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest

from stratalens.analyses.probes.probe import probe
from stratalens.analyses.stats.intervals import (
    auc_interval,
    mean_share_interval,
    share_interval,
    stratified_variance,
    unexplained_interval,
    wilson,
)

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous"}


def data(rng: np.random.Generator, per_class: int, step: float, d: int, layers: int, rows: int = 1) -> xr.DataArray:
    """Layers that are independent data sets of two classes, with several rows an entity."""
    entity = np.repeat(np.arange(2 * per_class), rows)
    label = (np.arange(2 * per_class) >= per_class)[entity]
    x = rng.normal(size=(layers, len(entity), d))
    if rows > 1:
        x += 0.7 * rng.normal(size=(layers, 2 * per_class, d))[:, entity]
    x[:, :, 0] += step * label
    coords = {
        "entity_id": ("entity", np.array([f"e{i}" for i in entity], object)),
        "group": ("entity", label.astype(int)),
    }
    return xr.DataArray(x.astype("f4"), dims=("layer", "entity", "d_model"), coords=coords)


@pytest.mark.parametrize(("right", "n"), [(40, 40), (0, 12), (31, 40), (1, 7)])
def test_wilson_is_that_of_scipy(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    low, high = wilson(np.array([right / n]), np.array([float(n)]))
    np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-9)


def test_at_the_ceiling_the_number_of_entities_counts() -> None:
    """All rows are right: the bounds are those of 30 cases, whether an entity has one row or ten."""
    expected = binomtest(30, 30).proportion_ci(method="wilson").low
    for rows in (1.0, 10.0):
        every = np.full((1, 30), rows)
        low, high = share_interval(every, every, np.repeat([0, 1], 15))
        assert high[0] == 1
        assert low[0] == pytest.approx(expected)
    step = data(np.random.default_rng(0), 15, 12.0, 4, 1)
    result = probe(step, "group", method="diffmeans", **QUIET).squeeze()
    for measure in ("accuracy", "balanced_accuracy", "auc"):
        assert float(result[f"{measure}_mean"]) == 1
        assert float(result[f"{measure}_high"]) == 1
        assert 0.7 < float(result[f"{measure}_low"]) < 0.95


def test_one_error_widens_the_interval_of_few_entities_more_than_its_rows_say() -> None:
    rows = np.full((1, 30), 10.0)
    hits = rows.copy()
    hits[0, 0] = 9
    low, high = share_interval(hits, rows, np.zeros(30, int))
    assert low[0] < 0.95
    assert 0.99 < high[0] < 1


def test_rows_of_one_entity_that_agree_count_once() -> None:
    """Entities with rows that are all right or all wrong have the interval of entities."""
    rng = np.random.default_rng(1)
    right = (rng.random(60) < 0.7).astype(float)[None]
    strata = np.zeros(60, int)
    one = share_interval(right, np.ones((1, 60)), strata)
    many = share_interval(10 * right, np.full((1, 60), 10.0), strata)
    np.testing.assert_allclose(one, many, rtol=1e-9)
    independent = share_interval(rng.binomial(10, 0.7, (1, 60)).astype(float), np.full((1, 60), 10.0), strata)
    assert independent[1] - independent[0] < 0.5 * (one[1] - one[0])


def test_variance_inside_strata_is_that_of_means() -> None:
    rng = np.random.default_rng(2)
    values, strata = rng.normal(size=(3, 50)), np.repeat([4, 9], [20, 30])
    got = stratified_variance(values, np.ones((3, 50), bool), strata)
    expected = [20 * v[:20].var(ddof=1) + 30 * v[20:].var(ddof=1) for v in values]
    np.testing.assert_allclose(got, expected)
    lonely = stratified_variance(np.array([[0.5, 0.1, 0.3]]), np.ones((1, 3), bool), np.array([0, 1, 1]))
    assert lonely[0] == pytest.approx(0.25 + 2 * 0.02)


def test_balanced_accuracy_adds_the_distances_of_both_classes() -> None:
    """The larger class is measured well, the smaller one decides the width."""
    member = np.stack([np.repeat([1.0, 0.0], [100, 10]), np.repeat([0.0, 1.0], [100, 10])])[:, None]
    hits = member * (np.arange(110) % 5 > 0)
    strata = np.repeat([0, 1], [100, 10])
    low, high = mean_share_interval(hits, member, strata)
    wide = [share_interval(h, m, strata) for h, m in zip(hits, member, strict=True)]
    shares = hits.sum(axis=2) / member.sum(axis=2)
    expected = shares.mean() - 0.5 * np.sqrt(sum((s[0] - w[0][0]) ** 2 for s, w in zip(shares, wide, strict=True)))
    assert low[0] == pytest.approx(expected)
    assert high[0] - low[0] > 0.2


def test_bounds_without_rows_are_unknown() -> None:
    nothing = np.zeros((1, 4))
    assert np.isnan(share_interval(nothing, nothing, np.zeros(4, int))).all()
    no_class = np.zeros((2, 1, 4), bool)
    assert np.isnan(auc_interval(np.array([np.nan]), nothing, no_class, np.zeros(4, int))).all()


def test_the_unexplained_share_has_positive_bounds() -> None:
    rng = np.random.default_rng(3)
    errors, deviations = rng.chisquare(1, (1, 20)) * 0.01, rng.chisquare(1, (1, 20))
    low, high = unexplained_interval(errors, deviations, np.zeros(20, int))
    share = errors.sum() / deviations.sum()
    assert 0 < low[0] < share < high[0]
    assert low[0] * high[0] == pytest.approx(share**2)


@pytest.mark.parametrize(
    ("per_class", "step", "rows"), [(10, 1.5, 1), (50, 0.0, 1), (8, 2.0, 10), (15, 4.0, 1), (20, 4.9, 1)], ids=str
)
def test_intervals_hold_the_expected_measure(per_class: int, step: float, rows: int) -> None:
    """150 data sets a cell; .95 - .88 is four standard errors. benchmarks/calibration has the exact rates."""
    rng = np.random.default_rng(per_class)
    result = probe(data(rng, per_class, step, 6, 150, rows), "group", method="diffmeans", **QUIET).squeeze()
    for measure in ("accuracy", "balanced_accuracy", "auc"):
        truth = float(result[f"{measure}_mean"].mean())
        covered = (result[f"{measure}_low"] <= truth) & (truth <= result[f"{measure}_high"])
        assert float(covered.mean()) >= 0.88, measure
        assert (result[f"{measure}_high"] - result[f"{measure}_low"] > 0.01).all()
