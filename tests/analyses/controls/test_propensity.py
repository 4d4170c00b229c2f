from __future__ import annotations

import numpy as np
import pytest

from stratalens.analyses.controls import propensity


@pytest.mark.parametrize("product", [False, True])
def test_log_odds_follow_the_true_ones(product: bool) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3000, 2))
    truth = 1.3 * values[:, 0] * values[:, 1] if product else 1.3 * values[:, 0]
    sign = np.where(rng.random(3000) < 1 / (1 + np.exp(-truth)), 1, -1).astype(np.int8)
    odds = propensity.cross_fitted_log_odds(values, sign, np.arange(3000) % 5, [np.ones(3000, bool)])
    assert np.corrcoef(odds, truth)[0, 1] > 0.9


def test_no_row_influences_its_own_log_odds() -> None:
    rng = np.random.default_rng(0)
    values, sign, fold = rng.normal(size=(60, 1)), rng.choice([-1, 1], 60).astype(np.int8), np.arange(60) % 3
    everyone = [np.ones(60, bool)]
    odds = propensity.cross_fitted_log_odds(values, sign, fold, everyone)
    changed = sign.copy()
    changed[fold == 0] *= -1
    np.testing.assert_array_equal(
        propensity.cross_fitted_log_odds(values, changed, fold, everyone)[fold == 0], odds[fold == 0]
    )
    assert np.isnan(propensity.cross_fitted_log_odds(values, sign * (fold > 0), fold, everyone)[fold == 0]).all()


def test_overlap_weights_balance_the_true_model() -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=4000)
    sign = np.where(rng.random(4000) < 1 / (1 + np.exp(-2 * value)), 1, -1).astype(np.int8)
    weights = propensity.overlap_weights(2 * value, sign, np.ones(4000, bool))
    before = propensity.weighted_difference(value[:, None], sign, np.ones(4000))[0]
    assert before > 1
    assert propensity.weighted_difference(value[:, None], sign, weights)[0] < 0.06
    for side in (-1, 1):
        assert np.isclose(weights[sign == side].sum(), 2000)


def test_support_is_the_share_in_the_range_of_both_classes() -> None:
    rng = np.random.default_rng(0)
    sign, everyone = np.repeat([-1, 1], 2000).astype(np.int8), np.ones(4000, bool)
    for gap, expected in ((0, 0.95), (2, 0.46), (5, 0.0)):
        odds = rng.normal(size=4000) + gap * (sign > 0)
        assert abs(propensity.common_support(odds, sign, everyone) - expected) < 0.05
        assert propensity.common_support(odds / 9, sign, everyone) == propensity.common_support(odds, sign, everyone)
    assert np.isnan(propensity.common_support(odds, sign, sign > 0))


def test_constant_statistics_say_nothing() -> None:
    sign = np.array([-1, 1] * 10, np.int8)
    odds = propensity.cross_fitted_log_odds(np.ones((20, 2)), sign, np.arange(20) // 4, [np.ones(20, bool)])
    assert (odds == 0).all()
