from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import SplineTransformer

from stratalens.analyses.controls.control_table import control_table
from stratalens.analyses.controls.controls import baseline_probe, controls
from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import Regression, residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


def with_statistics(ds: xr.Dataset, seed: int = 0) -> xr.Dataset:
    """Add the L2 norm, a loss that depends on the group (defined at `last` only) and a noise statistic."""
    rng = np.random.default_rng(seed)
    place = ("stage", "entity", "token")
    shape = tuple(ds.sizes[d] for d in place)
    group = np.unique(ds.trained_stage.values, return_inverse=True)[1]
    loss = rng.normal(size=shape) + 1.5 * group[None, :, None]
    loss[:, :, 0] = np.nan
    return ds.assign(
        resid_post_l2=np.sqrt((ds.resid_post**2).sum("d_model")),
        loss=(place, loss),
        entropy=(place, rng.normal(size=shape)),
    )


@pytest.fixture(scope="module")
def norm_only() -> xr.Dataset:
    """The groups differ only in the length of their activations."""
    ds = planted(stages=1, layers=1, groups=2, per_group=300, effect=0, d=24, tokens=("entity_last", "last"))
    group = np.unique(ds.trained_stage.values, return_inverse=True)[1]
    # The mean direction makes the length visible to a linear probe.
    values = (ds.resid_post.values + 2) * (1 + 0.12 * group)[None, None, :, None, None]
    return with_statistics(ds.assign(resid_post=(ds.resid_post.dims, values.astype("f4"))))


@pytest.fixture(scope="module")
def real() -> xr.Dataset:
    """The groups differ along a direction, not in length."""
    ds = planted(stages=2, layers=1, groups=2, per_group=200, effect=2.0, d=24, tokens=("last",))
    centred = ds.assign(resid_post=ds.resid_post - ds.resid_post.mean("entity"))
    return centred.assign(resid_post_l2=np.sqrt((centred.resid_post**2).sum("d_model")))


def test_statistics_alone_find_their_own_effect(norm_only: xr.Dataset) -> None:
    result = statistics_probe(norm_only, statistics=("resid_post_l2", "loss"), **QUIET)
    assert result.used.squeeze().values.tolist() == [[True, False], [True, True]]
    assert result.coef.dims[-1] == "statistic"
    assert float(result.accuracy_mean.sel(token="entity_last").squeeze()) > 0.6
    assert float(result.accuracy_mean.sel(token="last").squeeze()) > 0.75
    noise = statistics_probe(norm_only, statistics=("entropy",), **QUIET)
    assert "layer" not in noise.dims
    assert (noise.accuracy_low <= 0.5).all()


def test_boosting_finds_a_nonlinear_effect() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 150)
    value = np.where(group, rng.choice([-2.0, 2.0], 300), 0) + 0.3 * rng.normal(size=300)
    ds = xr.Dataset(
        {"surprise": (("entity", "token"), value[:, None])},
        coords={"colour": ("entity", np.array(["red", "blue"], object)[group])},
    )
    line, trees = (statistics_probe(ds, "colour", ("surprise",), m, **QUIET) for m in ("logistic", "boosting"))
    assert float(line.accuracy_mean.squeeze()) < 0.65
    assert float(trees.accuracy_mean.squeeze()) > 0.95
    assert "coef" not in trees


def test_statistics_with_dims_of_their_own_are_split(norm_only: xr.Dataset) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 600, 2, 3)).astype("f4")
    ds = norm_only.assign(logit_percentile=(("stage", "entity", "token", "percentile"), values)).assign_coords(
        percentile=[10, 50, 99]
    )
    result = statistics_probe(ds, statistics=("logit_percentile",), **QUIET)
    assert result.statistic.values.tolist() == [f"logit_percentile[percentile={p}]" for p in (10, 50, 99)]


def test_statistics_are_computed_where_they_are_missing(norm_only: xr.Dataset) -> None:
    stored = statistics_probe(norm_only, statistics=("resid_post_l2",), **QUIET)
    computed = statistics_probe(norm_only.drop_vars("resid_post_l2"), statistics=("resid_post_l2",), **QUIET)
    np.testing.assert_allclose(stored.accuracy, computed.accuracy)
    np.testing.assert_allclose(stored.score, computed.score, atol=1e-3)


def test_matching_on_the_norm_takes_a_norm_effect_away(norm_only: xr.Dataset) -> None:
    for method in ("bins", "nearest"):
        result = matched_probe(
            norm_only.sel(token=["last"]), statistics=("resid_post_l2",), method=method, bins=12, **QUIET
        )
        place = result.squeeze()
        assert result.accuracy.dims[-3:] == ("pair", "repeat", "sample")
        assert float(place.accuracy_mean.sel(sample="all")) > 0.62
        assert float(place.accuracy_mean.sel(sample="matched")) < float(place.accuracy_mean.sel(sample="all")) - 0.07
        assert float(place.gap) < -0.03
        assert float(place.balance.sel(balance_at="before")) > 0.4
        assert float(place.balance.sel(balance_at="after")) < 0.15
        assert (place.n_matched < 480).all()


def test_matching_on_the_norm_leaves_a_direction(real: xr.Dataset) -> None:
    result = matched_probe(real.isel(stage=[1]), statistics=("resid_post_l2",), bins=5, **QUIET).squeeze()
    assert float(result.accuracy_mean.sel(sample="matched")) > 0.75
    assert float(abs(result.gap)) < 0.1


def test_matched_probe_separates_entities_and_does_not_match_test_rows() -> None:
    ds = planted(stages=1, layers=1, groups=2, per_group=60, rows_per_entity=3, effect=0, entity_noise=8.0, d=100)
    ds = ds.assign(resid_post_l2=np.sqrt((ds.resid_post**2).sum("d_model")))
    result = matched_probe(ds, statistics=("resid_post_l2",), bins=3, **QUIET)
    assert abs(float(result.accuracy_mean.sel(sample="all").mean()) - 0.5) < 0.12
    tested = result.tested.isel(token=0, pair=0, sample=0).squeeze().values
    # Five splits test 24 entities each, with all three rows.
    assert tested.sum() == 5 * 24 * 3
    for entity in np.unique(ds.entity_id.values):
        assert len(np.unique(tested[ds.entity_id.values == entity])) == 1


def test_a_statistic_that_separates_the_classes_is_named(norm_only: xr.Dataset) -> None:
    group = np.unique(norm_only.trained_stage.values, return_inverse=True)[1]
    ds = norm_only.sel(token=["last"]).assign(age=("entity", group.astype("f4")))
    with pytest.raises(InputError, match="'age' separates the classes perfectly"):
        matched_probe(ds, statistics=("entropy", "age"), bins=4, **QUIET)
    result = matched_probe(ds, statistics=("entropy", "age"), bins=4, small="nan", **QUIET).squeeze()
    assert np.isnan(result.accuracy_mean.sel(sample="matched"))
    assert float(result.accuracy_mean.sel(sample="all")) > 0.6
    assert (result.n_matched == 0).all()


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


@pytest.mark.parametrize("baseline", ["random_direction", "shuffled_label", "shuffled_entity"])
def test_baselines_know_nothing(baseline: str) -> None:
    ds = planted(stages=1, layers=1, groups=3, per_group=120, effect=0.0, d=12, tokens=("last",))
    result = baseline_probe(ds, baseline=baseline, directions=5, **QUIET)
    assert abs(float(result.accuracy_mean.mean()) - 0.5) < 0.06
    assert (result.accuracy_low <= result.accuracy_mean).all()
    strong = planted(stages=1, layers=1, groups=2, per_group=120, effect=6.0, d=12, tokens=("last",))
    shuffled = baseline_probe(strong, baseline=baseline, directions=5, **QUIET)
    assert float(shuffled.accuracy_mean.squeeze()) < (0.95 if baseline == "random_direction" else 0.62)


def test_the_table_shows_the_effect_that_is_left(real: xr.Dataset) -> None:
    which = ("probe", "normalized", "statistics", "matched", "residual_linear", "shuffled_entity")
    results = controls(real, which=which, matched_on=("resid_post_l2",), bins=4, **QUIET)
    table = control_table(results, resamples=200)
    names = table.control.values.tolist()
    assert names[:3] == ["probe", "normalized", "statistics"]
    assert {"matched: matched", "matched: random_subsample", "untrained_stage"} <= set(names)
    end = table.isel(stage=1).squeeze()
    assert float(end.left.sel(control="probe")) == 1
    assert float(end.lost.sel(control="probe")) == 0
    assert float(end.left_low.sel(control="normalized")) > 0.7
    assert float(end.left.sel(control="shuffled_entity")) < 0.4
    assert float(end.left_high.sel(control="untrained_stage")) < 0.6
    inside = (end.accuracy_low <= end.accuracy + 1e-9) & (end.accuracy <= end.accuracy_high + 1e-9)
    assert inside.all()
    assert np.isnan(table.left.isel(stage=0).sel(control="probe")).all(), "without an effect there is no share"
    direct = probe(real, **QUIET)
    np.testing.assert_allclose(table.accuracy.sel(control="probe"), direct.accuracy_mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds: statistics_probe(ds, statistics=("los",), **QUIET), "did you mean 'loss'"),
        (lambda ds: statistics_probe(ds, model="trees", **QUIET), "boosting"),
        (lambda ds: matched_probe(ds, bins=1000, **QUIET), "between 1 and"),
        (lambda ds: matched_probe(ds, method="exact", **QUIET), "nearest"),
        (lambda ds: matched_probe(ds, pairs="ordinal", **QUIET), "cannot be matched"),
        (lambda ds: residual_probe(ds, kind="cubic", **QUIET), "spline"),
        (lambda ds: residual_probe(ds, C=[1.0, 2.0], folds=2, **QUIET), "at least 3 folds"),
        (lambda ds: controls(ds, which=("match",), **QUIET), "did you mean 'matched'"),
        (lambda ds: control_table({}), "not among the results"),
        (lambda ds: baseline_probe(ds, baseline="random", **QUIET), "random_direction"),
    ],
)
def test_refusals(norm_only: xr.Dataset, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(norm_only)


def test_a_statistic_with_holes_is_refused(norm_only: xr.Dataset) -> None:
    entropy = norm_only.entropy.copy(deep=True).compute()
    entropy[0, 3, 1] = np.nan
    with pytest.raises(InputError, match="not defined in some rows: entropy"):
        statistics_probe(norm_only.assign(entropy=entropy), statistics=("entropy",), **QUIET)


def test_statistics_with_more_places_than_the_site_are_refused() -> None:
    ds = planted(stages=1, layers=2, groups=2, per_group=30, tokens=("last",))
    ds = with_statistics(ds).assign(embed=ds.resid_post.isel(layer=0, drop=True))
    for function in (matched_probe, residual_probe, statistics_probe):
        with pytest.raises(InputError, match=r"'resid_post_l2' has 2 layers and 'embed' has 1; narrow the statistic"):
            function(ds, site="embed", statistics=("resid_post_l2",), **QUIET)
        first = ds.assign(resid_post_l2=ds.resid_post_l2.isel(layer=0, drop=True))
        more = {"small": "nan", "bins": 2} if function is matched_probe else {}
        assert "layer" not in function(first, site="embed", statistics=("resid_post_l2",), **more, **QUIET).dims


def test_infinities_are_refused_by_name_not_by_numpy() -> None:
    ds = planted(stages=1, layers=1, groups=2, per_group=30, tokens=("last",), chunked=False)
    ds.resid_post[0, 0, 5, 0, 3] = np.inf
    with pytest.raises(InputError, match=r"not defined in some rows: resid_post_l2 \(1 of 60\)"):
        statistics_probe(ds, **QUIET)
