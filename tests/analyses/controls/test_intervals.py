from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from stratalens.analyses.controls.intervals import Resampler, fold_factor, fold_placements, placements, split_factor
from stratalens.analyses.stats.bootstrap import bootstrap_weights


def test_the_mean_placement_of_each_class_is_the_auc() -> None:
    rng = np.random.default_rng(0)
    positive, weights = rng.random(80) < 0.3, rng.random(80)
    score = (rng.normal(size=80) + positive).round(1)
    placed = placements(score, positive, weights)
    expected = roc_auc_score(positive, score, sample_weight=weights)
    for side in (positive, ~positive):
        assert np.isclose(np.average(placed[side], weights=weights[side]), expected)
    fold = np.arange(80) % 2
    by_fold = fold_placements(score, positive, weights, fold)
    own = fold == 1
    np.testing.assert_allclose(by_fold[own], placements(score[own], positive[own], weights[own]))


def test_the_interval_of_the_auc_is_as_wide_as_a_bootstrap_of_it() -> None:
    rng = np.random.default_rng(1)
    positive = np.repeat([False, True], [200, 60])
    score = rng.normal(size=260) + positive
    draws = bootstrap_weights(positive.astype(int), 400, 0)
    resampler = Resampler(np.arange(260), draws)
    placed = placements(score, positive, np.ones(260))
    value, low, high = resampler.auc(placed[None], np.ones((1, 260)), positive[None])
    exact = [roc_auc_score(positive, score, sample_weight=w) for w in draws[:200]]
    assert np.isclose(value[0], roc_auc_score(positive, score))
    assert np.isclose((high - low)[0], np.ptp(np.quantile(exact, (0.025, 0.975))), rtol=0.15)


def test_factors_of_overlapping_training_sets() -> None:
    assert np.isclose(fold_factor(5), 1.5)
    assert np.isclose(split_factor(0.2, 5), np.sqrt(2.25 / 1.8))
    wide = Resampler(np.arange(4), bootstrap_weights(np.zeros(4, int), 200, 0), 1.5)
    narrow = Resampler(wide.units, wide.draws)
    rows = np.array([[1.0, 0.0, 1.0, 0.0]]), np.ones((1, 4))
    for one, other in zip(wide.mean(*rows, limits=(-9, 9))[1:], narrow.mean(*rows, limits=(-9, 9))[1:], strict=True):
        assert np.isclose(one[0] - 0.5, 1.5 * (other[0] - 0.5))
