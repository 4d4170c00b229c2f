from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import SplineTransformer

from stratalens.analyses.controls.residual_probe import Regression, residual_probe
from support.planted import planted, with_statistics

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
    spline = SplineTransformer(n_knots=5, knots="quantile", extrapolation="linear").fit(values[train])
    model = LinearRegression().fit(spline.transform(values[train]), X[train])
    actual = Regression(X, values, "spline").residuals(train)
    np.testing.assert_allclose(actual, X - model.predict(spline.transform(values)), atol=1e-6)
    changed = X.copy()
    changed[~train] += 100
    np.testing.assert_allclose(Regression(changed, values, "spline").residuals(train)[train], actual[train], atol=1e-8)


def test_residual_penalties_are_chosen_inside_the_training_rows() -> None:
    data = planted(stages=2, layers=1, groups=2, per_group=40, effect=1.0, d=30, tokens=("last",))
    ds = with_statistics(data.isel(stage=[1]))
    grid, names = [1e-4, 1e-2, 1.0], ("resid_post_l2", "entropy")
    result = residual_probe(ds, statistics=names, C=grid, folds=4, **QUIET)
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
