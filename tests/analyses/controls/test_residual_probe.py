from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss

from stratalens.analyses.controls.residual_probe import Regression, residual_probe
from stratalens.analyses.probes.generalise import generalise
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.planted import confounded, planted, with_statistics

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


def test_residuals_lose_a_norm_effect_and_keep_a_direction(norm_only: xr.Dataset, real: xr.Dataset) -> None:
    for kind in ("linear", "spline"):
        gone = residual_probe(norm_only.sel(token=["last"]), statistics=("resid_post_l2",), kind=kind, **QUIET)
        assert float(gone.accuracy_mean.squeeze()) < 0.58
        remaining = residual_probe(real.isel(stage=[1]), statistics=("resid_post_l2",), kind=kind, **QUIET)
        assert float(remaining.accuracy_mean.squeeze()) > 0.75
        assert 0 < float(gone.explained.squeeze()) < 1


def test_residuals_are_those_of_scikit_learn_on_the_training_rows() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 2))
    X = np.stack([values[:, 0] ** 2, values[:, 1] * 3, rng.normal(size=200)], axis=1) + 4
    train = rng.random(200) < 0.7
    actual = Regression(X, np.concatenate([values, values[:, :1] * 2, np.ones((200, 1))], axis=1), "linear").residuals(
        train
    )
    expected = X - LinearRegression().fit(values[train], X[train]).predict(values)
    np.testing.assert_allclose(actual, expected, atol=1e-8)
    spline = Regression(X, values, "spline")
    residual = spline.residuals(train)
    changed = X.copy()
    changed[~train] += 100
    np.testing.assert_allclose(
        Regression(changed, values, "spline").residuals(train)[train], residual[train], atol=1e-8
    )


def test_residual_penalties_are_chosen_inside_the_training_rows() -> None:
    data = planted(stages=2, layers=1, groups=2, per_group=40, effect=1.0, d=30, tokens=("last",))
    ds = with_statistics(data.isel(stage=[1]))
    grid, names = [1e-4, 1e-2, 1.0], ("resid_post_l2", "entropy")
    result = residual_probe(ds, statistics=names, kind="linear", C=grid, folds=4, **QUIET)
    x = ds.resid_post.values[0, 0, :, 0].astype("f8")
    z = np.stack([ds[n].values.reshape(len(x)) for n in names], axis=1)
    y, fold = ds.trained_stage.values == "s2", result.entity_fold.values
    chosen = set()
    for outer in range(4):
        losses = np.zeros(3)
        for inner in set(range(4)) - {outer}:
            train, judge = ~np.isin(fold, [outer, inner]), fold == inner
            left = x - LinearRegression().fit(z[train], x[train]).predict(z)
            for i, c in enumerate(grid):
                model = LogisticRegression(C=c, tol=1e-8, max_iter=1000).fit(left[train], y[train])
                losses[i] += log_loss(y[judge], model.predict_proba(left[judge])[:, 1])
        train, test = fold != outer, fold == outer
        left = x - LinearRegression().fit(z[train], x[train]).predict(z)
        best = grid[int(losses.argmin())]
        chosen.add(best)
        expected = LogisticRegression(C=best, tol=1e-8, max_iter=1000).fit(left[train], y[train])
        score = result.score.squeeze().values[test]
        np.testing.assert_allclose(score, expected.decision_function(left[test]), atol=2e-3)
    assert chosen != {grid[0]}


@pytest.mark.parametrize("kind", ["shift", "step", "spread", "product"])
def test_a_confound_of_any_form_is_regressed_out(kind: str) -> None:
    ds = confounded(kind)
    result = residual_probe(ds, "age", ds.statistics, **QUIET).squeeze()
    assert float(probe(ds, "age", **QUIET).accuracy_low.squeeze()) > 0.52
    assert float(result.accuracy_low) < 0.51
    assert 0 < float(result.explained) < 1


def test_the_spline_is_a_ridge_regression_with_a_penalty_for_each_feature() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 2))
    X = np.stack([np.sin(2 * values[:, 0]), values[:, 0] * values[:, 1], rng.normal(size=400)], axis=1) * 3
    train = np.arange(400) < 300
    fit = Regression(X, values, "spline").fit(train)
    assert fit.design.shape[1] == 15
    left = (X - fit.design @ fit.weights - fit.mean)[~train].var(axis=0)
    assert (left[:2] < 0.1 * X[:, :2].var(axis=0)).all()
    assert 0.9 < left[2] / X[~train, 2].var() < 1.1
    assert fit.columns <= 30


@pytest.mark.parametrize("per_class", [30, 60])
def test_irrelevant_statistics_leave_a_real_effect(per_class: int) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], per_class)
    x = rng.normal(size=(2 * per_class, 10))
    x[:, 0] += 2 * y
    columns = {f"s{i}": ("entity", rng.normal(size=2 * per_class)) for i in range(12)}
    ds = xr.Dataset(
        {"resid_post": (("entity", "token", "d_model"), x[:, None].astype("f4")), **columns},
        coords={"age": ("entity", np.array(["new", "old"], object)[y])},
    )
    result = residual_probe(ds, "age", tuple(columns), **QUIET).squeeze()
    assert float(result.accuracy_mean) > float(probe(ds, "age", **QUIET).accuracy_mean.squeeze()) - 0.06
    assert float(result["columns"]) <= 0.1 * 2 * per_class
    assert float(result.explained) < 0.1
    with pytest.warns(UserWarning, match="regresses out 12 columns with .* training entities"):
        residual_probe(ds, "age", tuple(columns), "linear", **QUIET)


def test_directions_of_residuals_score_no_other_data() -> None:
    ds = confounded("shift", 100, real=1.0)
    ds = ds.assign_coords(entity=np.array([f"r{i}" for i in range(200)], object))
    half = np.arange(200) % 2 == 0
    result = residual_probe(ds.isel(entity=half), "age", ("loss",), **QUIET)
    assert generalise(result, ds.isel(entity=half), progress=False).sizes["group"] == 2
    with pytest.raises(InputError, match="residual_probe cannot score other data"):
        generalise(result, ds.isel(entity=~half), progress=False)
