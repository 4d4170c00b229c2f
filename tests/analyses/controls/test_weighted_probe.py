from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression

from stratalens.analyses.controls.weighted_probe import fit_weighted, weighted_probe
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.planted import confounded, planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


@pytest.mark.parametrize("kind", ["shift", "spread", "product", "norm"])
def test_an_effect_that_the_statistics_explain_goes_to_chance(kind: str) -> None:
    ds = confounded(kind)
    result = weighted_probe(ds, "age", ds.statistics, **QUIET).squeeze()
    assert float(probe(ds, "age", **QUIET).accuracy_low.squeeze()) > 0.52
    assert float(result.accuracy_low) < 0.5 < float(result.accuracy_high) + 0.02
    assert float(result.auc_low) < 0.5
    assert (result.balance.sel(balance_at="after") < 0.15).all()
    assert float(result.chance) == 0.5


def test_an_effect_beside_the_statistics_stays() -> None:
    ds = confounded("shift", real=1.2)
    result = weighted_probe(ds, "age", ds.statistics, **QUIET).squeeze()
    assert float(result.accuracy_low) > 0.55
    assert float(result.balance.sel(balance_at="before").max()) > 0.7
    assert 300 < float(result.effective_rows) < 600
    assert 0.7 < float(result.support) <= 1


def test_without_a_difference_of_the_statistics_the_numbers_are_those_of_the_probe() -> None:
    ds = confounded("shift", 400, real=1.5)
    alone = weighted_probe(ds, "age", ("n0",), **QUIET).squeeze()
    plain = probe(ds, "age", **QUIET).squeeze()
    assert abs(float(alone.accuracy_mean - plain.accuracy_mean)) < 0.02
    assert float(alone.effective_rows) > 780
    np.testing.assert_allclose(float(alone.tested.sum()), 800, rtol=1e-5)


def test_statistics_that_separate_the_classes_leave_nothing_to_say() -> None:
    ds = confounded("shift")
    gone = ds.assign(loss=ds.loss + 100 * (ds.age == "old"))
    result = weighted_probe(gone, "age", ("loss",), **QUIET).squeeze()
    assert np.isnan(result.accuracy_mean)
    assert np.isnan(result.auc_low)
    assert (result.tested == 0).all()
    assert float(result.support) < 0.05


def test_unequal_classes_count_equally() -> None:
    ds = confounded("shift", 400, real=1.5)
    rows = np.r_[0:400, 400:480]
    result = weighted_probe(ds.isel(entity=rows), "age", ds.statistics, **QUIET).squeeze()
    per_class = result.tested.groupby("age").sum()
    np.testing.assert_allclose(per_class.values, per_class.values.mean(), rtol=1e-4)
    assert float(result.auc_mean) > 0.6


def test_rows_of_an_entity_are_never_on_both_sides() -> None:
    ds = planted(stages=1, layers=1, groups=2, per_group=60, rows_per_entity=3, effect=0, entity_noise=8.0, d=100)
    ds = ds.assign(loss=(("stage", "entity"), np.random.default_rng(0).normal(size=(1, 360))))
    result = weighted_probe(ds, statistics=("loss",), **QUIET)
    assert abs(float(result.accuracy_mean.mean()) - 0.5) < 0.12


def test_test_rows_have_weights_of_their_own() -> None:
    ds = planted(stages=2, layers=1, groups=2, per_group=150, effect=3.0, tokens=("last",)).isel(stage=[1])
    loss = np.random.default_rng(0).normal(size=(1, 300)) + (ds.trained_stage.values == "s2")
    result = weighted_probe(
        ds.assign(loss=(("stage", "entity"), loss)), statistics=("loss",), test={"template": "who"}, **QUIET
    )
    tested = result.tested.squeeze().values > 0
    assert (tested == (ds.template.values == "who")).all()
    assert float(result.accuracy_mean.squeeze()) > 0.7


def test_the_weighted_fit_is_that_of_scikit_learn_with_more_features_than_rows() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((60, 8), (40, 90)):
        X = (rng.normal(size=(n, d)) + 3).astype("f4")
        sign, weights = np.where(X[:, 0] > 3, 1, -1).astype("i1"), rng.random(n)
        coef, intercept, converged = fit_weighted(X, sign, weights, 0.1)
        other = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(X, sign, sample_weight=weights)
        assert converged
        np.testing.assert_allclose(X @ coef + intercept, other.decision_function(X), atol=2e-3)


def test_targets_without_two_classes_are_refused() -> None:
    ds = confounded("shift", 40)
    with pytest.raises(InputError, match="cannot be weighted"):
        weighted_probe(ds, "age", ("loss",), pairs="ordinal", **QUIET)


def test_one_variable_of_each_pair() -> None:
    ds = planted(stages=2, layers=2, groups=3, per_group=40)
    ds = ds.assign(loss=(("stage", "entity"), np.random.default_rng(0).normal(size=(2, 120))))
    result = weighted_probe(ds, statistics=("loss",), **QUIET)
    assert isinstance(result, xr.Dataset)
    assert result.accuracy.dims == ("stage", "layer", "token", "pair", "fold")
    assert result.coef.dims == ("stage", "layer", "token", "pair", "d_model")
    assert result.propensity.dims == ("stage", "layer", "token", "pair", "entity")
    assert np.isnan(result.propensity.sel(pair="s1 v s2").values).any()
