"""Coverage of intervals, p-values that are never zero, and control of false discoveries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from stratalens.analyses.stats.bootstrap import bootstrap_weights, cluster_bootstrap, interval


def test_cluster_bootstrap_covers_where_rows_would_not() -> None:
    """Rows of one entity share a value: the sample is 60 entities, not 600 rows."""
    rng = np.random.default_rng(0)
    entities, rows, studies = 60, 10, 400
    own = rng.standard_normal((entities, studies))
    values = np.repeat(own, rows, axis=0) + 0.3 * rng.standard_normal((entities * rows, studies))
    units = np.repeat(np.arange(entities), rows)
    for unit, low_bound, high_bound in ((units, 0.90, 0.985), (np.arange(len(units)), 0.2, 0.6)):
        low, high = cluster_bootstrap(values, unit, draws=400)
        covered = float(((low <= 0) & (high >= 0)).mean())
        assert low_bound <= covered <= high_bound, covered


def test_cluster_bootstrap_agrees_with_scipy_where_rows_are_entities() -> None:
    x = np.random.default_rng(1).exponential(size=200)
    low, high = cluster_bootstrap(x, np.arange(200), draws=4000)
    other = bootstrap(
        (x,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert low == pytest.approx(other.low, abs=0.02)
    assert high == pytest.approx(other.high, abs=0.02)


def test_missing_values_do_not_count() -> None:
    x = np.where(np.arange(100) % 2, np.nan, 1.0)
    low, high = cluster_bootstrap(np.stack([x, np.arange(100.0)], 1), np.arange(100))
    assert low[0] == high[0] == 1
    assert low[1] < 49.5 < high[1]


def test_weights_keep_strata_and_leave_out_negative_ones() -> None:
    strata = np.array([0, 0, 0, 1, 1, -1])
    weights = bootstrap_weights(strata, 500, seed=0)
    np.testing.assert_array_equal(weights[:, :3].sum(1), 3)
    np.testing.assert_array_equal(weights[:, 3:5].sum(1), 2)
    np.testing.assert_array_equal(weights[:, 5], 0)
    np.testing.assert_allclose(weights[:, :5].mean(0), 1, atol=0.15)


def test_intervals_contain_the_estimate_and_keep_bounds() -> None:
    draws = np.random.default_rng(0).uniform(0.3, 0.6, 1000)
    low, high = interval(draws, np.array(0.9), bounds=(0, 1))
    assert low < 0.9 < high <= 1
    assert low == pytest.approx(0.9 - 0.1425, abs=0.02)
