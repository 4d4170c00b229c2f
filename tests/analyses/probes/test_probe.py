from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression

from stratalens.analyses.estimators.probes import Settings, fit_probes
from stratalens.analyses.probes import slab as probe_slab
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError, NonFiniteError, NotRecordedError
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return planted(stages=2, layers=2, groups=3, per_group=60, rows_per_entity=2, effect=2.0, entity_noise=0.5)


@pytest.fixture(scope="module")
def result(ds: xr.Dataset) -> xr.Dataset:
    return probe(ds, permutations=3, fold_coefs=True, **QUIET)


def test_shapes_names_and_attributes_are_those_of_the_contract(ds: xr.Dataset, result: xr.Dataset) -> None:
    place = ("stage", "layer", "token", "pair")
    assert result.accuracy.dims == result.auc.dims == (*place, "fold")
    assert result.coef.dims == (*place, "d_model")
    assert result.score.dims == (*place, "entity")
    assert result.intercept.dims == result.converged.dims == result.accuracy_mean.dims == place
    assert result.pair.values.tolist() == ["s1 v s2", "s1 v s3", "s2 v s3"]
    assert result.pair_first.values.tolist() == ["s1", "s1", "s2"]
    assert result.pair_second.values.tolist() == ["s2", "s3", "s3"]
    assert result.stage.values.tolist() == ds.stage.values.tolist()
    assert result.attrs["site"] == "resid_post"
    assert result.attrs["hook"] == "blocks.{layer}.hook_resid_post"
    assert result.attrs["target"] == "trained_stage"
    assert result.converged.all()
    assert all(isinstance(v.data, np.ndarray) for v in result.variables.values())


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_shuffles_fitted_together_are_those_fitted_one_by_one(
    ds: xr.Dataset, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ds.isel(stage=[1], layer=[0], token=[0])
    together = probe(here, method=method, permutations=5, **QUIET)
    monkeypatch.setattr(probe_slab, "SHUFFLED_PROBES", 1)
    alone = probe(here, method=method, permutations=5, **QUIET)
    np.testing.assert_allclose(together.accuracy_null, alone.accuracy_null, atol=1e-12)
    np.testing.assert_array_equal(together.accuracy_p, alone.accuracy_p)


def test_a_planted_effect_is_found_where_it_was_planted(ds: xr.Dataset, result: xr.Dataset) -> None:
    last = result.isel(stage=-1, layer=-1)
    assert (last.accuracy_mean.sel(pair="s1 v s3") > 0.9).all()
    assert (last.auc.sel(pair="s1 v s3").mean("fold") > 0.95).all()
    direction = np.array(ds.resid_post.attrs["direction"])
    coef = last.coef.sel(pair="s1 v s3").values
    cosine = coef @ direction / np.linalg.norm(coef, axis=-1)
    assert (cosine > 0.6).all(), "the later group is the positive class"
    assert (last.accuracy_p.sel(pair="s1 v s3") == 0.25).all()
    assert (abs(last.accuracy_null - 0.5) < 0.15).all()


def test_the_untrained_stage_is_at_chance_within_its_interval(result: xr.Dataset) -> None:
    first = result.isel(stage=0)
    inside = (first.accuracy_low <= 0.5) & (first.accuracy_high >= 0.5)
    assert inside.mean() >= 0.75
    assert abs(float(first.accuracy_mean.mean()) - 0.5) < 0.06
    assert ((first.accuracy_low <= first.accuracy_mean) & (first.accuracy_mean <= first.accuracy_high)).all()


def test_no_entity_is_ever_scored_by_a_probe_that_saw_it(ds: xr.Dataset, result: xr.Dataset) -> None:
    fold = result.entity_fold.values
    for entity in np.unique(ds.entity_id.values):
        assert len(np.unique(fold[ds.entity_id.values == entity])) == 1
    # The score of every row is that of the probe fitted by scikit-learn without the row's fold.
    x = ds.resid_post.isel(stage=1, layer=1, token=0).values.astype(np.float64)
    label = ds.trained_stage.values
    for k in range(5):
        rows = np.isin(label, ["s1", "s3"]) & (fold != k)
        expected = LogisticRegression(C=0.1, tol=1e-10, solver="newton-cholesky").fit(x[rows], label[rows] == "s3")
        own = fold == k
        actual = result.score.isel(stage=1, layer=1, token=0).sel(pair="s1 v s3").values[own]
        np.testing.assert_allclose(actual, expected.decision_function(x[own]), atol=1e-3)
        test = own & np.isin(label, ["s1", "s3"])
        accuracy = ((expected.decision_function(x[test]) > 0) == (label[test] == "s3")).mean()
        got_accuracy = result.accuracy.isel(stage=1, layer=1, token=0, fold=k).sel(pair="s1 v s3")
        assert abs(float(got_accuracy) - accuracy) < 1e-9


def test_entity_offsets_do_not_leak() -> None:
    """Labels are random and the rows of an entity are near copies, so that a leak scores far above chance."""
    ds = planted(
        stages=1, layers=1, groups=2, per_group=60, rows_per_entity=4, effect=0, entity_noise=10.0, d=200, tokens=("t",)
    )
    honest = probe(ds, **QUIET)
    leaky = probe(ds.drop_vars("entity_id"), **QUIET)
    assert float(leaky.accuracy_mean.squeeze()) > 0.9
    assert abs(float(honest.accuracy_mean.squeeze()) - 0.5) < 0.15


def test_the_interval_counts_entities_not_rows(ds: xr.Dataset) -> None:
    small = ds.isel(stage=[1], layer=[0], token=[0])
    by_entity = probe(small, **QUIET)
    again = xr.concat([small, small.assign_coords(entity=small.entity.values + "b")], "entity", data_vars="minimal")
    doubled = probe(again, **QUIET)
    width = (by_entity.accuracy_high - by_entity.accuracy_low).mean()
    width_doubled = (doubled.accuracy_high - doubled.accuracy_low).mean()
    assert float(width_doubled) > 0.75 * float(width)


@pytest.mark.parametrize("method", ["ridge", "lda", "diffmeans"])
def test_other_methods_find_the_effect_too(ds: xr.Dataset, method: str) -> None:
    last = probe(ds.isel(stage=[1], layer=[1]), method=method, pairs=[("s3", "s1")], **QUIET)
    assert last.pair.values.tolist() == ["s1 v s3"]
    assert (last.accuracy_mean > 0.88).all()


def test_library_solver_gives_the_same(ds: xr.Dataset) -> None:
    small = ds.isel(stage=[1], layer=[1], token=[0])
    ours, theirs = (probe(small, solver=s, **QUIET) for s in ("batched", "library"))
    np.testing.assert_allclose(ours.coef, theirs.coef, atol=2e-3)
    assert float(abs(ours.accuracy - theirs.accuracy).max()) <= 0.03


def test_one_against_the_rest(ds: xr.Dataset) -> None:
    last = probe(ds.isel(stage=1, layer=1), pairs="rest", **QUIET)
    assert last.pair.values.tolist() == ["s1 v rest", "s2 v rest", "s3 v rest"]
    np.testing.assert_allclose(last.chance, 2 / 3)
    assert (last.auc.sel(pair="s3 v rest").mean("fold") > 0.9).all()


def test_ordinal_predicts_the_position(ds: xr.Dataset) -> None:
    both = probe(ds.isel(layer=[1]), pairs="ordinal", permutations=3, **QUIET)
    assert (both.rank_correlation.isel(stage=1).mean("fold") > 0.7).all()
    assert (both.r2_mean.isel(stage=1) > 0.5).all()
    assert (both.r2_mean.isel(stage=0) < 0.1).all()
    assert ((both.r2_low <= both.r2_mean) & (both.r2_mean <= both.r2_high)).all()
    assert (both.r2_p.isel(stage=1) == 0.25).all()


def test_multiclass(ds: xr.Dataset) -> None:
    both = probe(ds.isel(layer=1, token=0), pairs="multiclass", permutations=2, **QUIET)
    assert both.coef.dims == ("stage", "group", "d_model")
    assert float(both.accuracy_mean.isel(stage=1, pair=0)) > 0.65
    assert abs(float(both.accuracy_mean.isel(stage=0, pair=0)) - 1 / 3) < 0.12
    assert abs(float(both.accuracy_null.isel(stage=1, pair=0)) - 1 / 3) < 0.12


def test_held_out_template(ds: xr.Dataset) -> None:
    small = ds.isel(stage=1, layer=1, token=[0])
    result = probe(small, test={"template": "what"}, pairs=[("s1", "s3")], **QUIET)
    tested = result.tested.isel(pair=0).values > 0
    template, label = ds.template.values, ds.trained_stage.values
    assert (tested == ((template == "what") & np.isin(label, ["s1", "s3"]))).all()
    rows = np.isin(label, ["s1", "s3"]) & (template == "who")
    x = small.resid_post.values[:, 0].astype(np.float64)
    expected = LogisticRegression(C=0.1, tol=1e-10, solver="newton-cholesky").fit(x[rows], label[rows] == "s3")
    np.testing.assert_allclose(result.coef.values.ravel(), expected.coef_[0], atol=1e-4)


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_a_penalty_chosen_inside_the_folds_sees_training_rows_alone(method: str) -> None:
    rng = np.random.default_rng(0)
    codes, fold = np.repeat([0, 1], 60), np.tile(np.arange(3), 40)
    x = rng.normal(size=(120, 20)) + codes[:, None] * 0.4
    signs = np.where(codes, 1, -1).astype(np.int8)[:, None]
    settings = Settings(method, C=[1e-5, 1e-3, 0.1, 10.0])
    every = np.ones(120, bool)
    honest = fit_probes(x, signs, codes, fold, 3, every, settings)
    spoiled_x, spoiled = x.copy(), signs.copy()
    spoiled_x[fold == 0] = rng.normal(size=(40, 20)) * 50
    spoiled[fold == 0] = rng.choice([-1, 1], size=(40, 1))
    other = fit_probes(spoiled_x, spoiled, codes, fold, 3, every, settings)
    assert (honest.penalty[:, 0] == other.penalty[:, 0]).all()
    np.testing.assert_allclose(honest.coef[:, 0], other.coef[:, 0], atol=1e-5)
    assert not np.allclose(honest.coef[:, 1], other.coef[:, 1], atol=1e-3)
    assert 1e-5 < honest.penalty[0, -1] < 10, "the best penalty is inside the grid"


def test_chosen_penalties_are_returned(ds: xr.Dataset) -> None:
    result = probe(ds.isel(stage=1, layer=1, token=[0]), C=[1e-6, 0.1], pairs=[("s1", "s3")], folds=3, **QUIET)
    assert result.penalty.values.ravel().tolist() == [0.1]
    assert float(result.accuracy_mean.squeeze()) > 0.88


def test_normalize_and_standardize(ds: xr.Dataset) -> None:
    small = ds.isel(stage=1, layer=1, token=[0]).load()
    scaled = small.assign(
        resid_post=small.resid_post * np.linspace(1, 9, small.sizes["entity"]).astype("f4")[:, None, None]
    )
    a, b = (probe(d, normalize=True, **QUIET) for d in (small, scaled))
    np.testing.assert_allclose(a.coef, b.coef, atol=1e-4)
    wide = small.assign(resid_post=small.resid_post * np.linspace(1, 100, 16).astype("f4"))
    a, b = (probe(d, standardize=True, **QUIET) for d in (small, wide))
    np.testing.assert_allclose(a.score, b.score, atol=1e-3)


def test_a_bare_numpy_array_without_stage_layer_or_ids() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3, 2, 4))
    x[40:, :, 1, 2] += 3
    da = xr.DataArray(
        x,
        dims=("entity", "token", "head", "d_head"),
        coords={"size": ("entity", np.repeat(["small", "large"], 40).astype(object))},
    )
    result = probe(da, "size", folds=4, **QUIET)
    assert result.coef.dims == ("token", "pair", "head", "d_head")
    assert (abs(result.coef).argmax(["head", "d_head"])["head"] == 1).all()
    assert (result.accuracy_mean > 0.85).all()


def test_results_do_not_depend_on_the_scheduler(ds: xr.Dataset, result: xr.Dataset) -> None:
    threads = probe(ds, permutations=3, fold_coefs=True, progress=False, resamples=200, workers=2)
    xr.testing.assert_allclose(threads, result, atol=1e-5)


def test_nothing_is_read_before_the_arguments_are_checked(ds: xr.Dataset) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("activations were computed")

    import dask

    lazy = ds[["resid_post"]].assign_coords({k: c.compute() for k, c in ds.coords.items()})
    with dask.config.set(scheduler=fail), pytest.raises(InputError, match="too few entities"):
        probe(lazy, "template", folds=500, **QUIET)


def test_unrecorded_rows_are_refused_or_skipped(ds: xr.Dataset) -> None:
    recorded = ds.recorded.copy(data=np.ones(ds.recorded.shape, bool))
    recorded[0, :7] = False
    holes = ds.assign(recorded=recorded)
    with pytest.raises(NotRecordedError, match="s0"):
        probe(holes, **QUIET)
    result = probe(holes, skip_missing=True, **QUIET)
    assert np.isnan(result.score.isel(stage=0, entity=slice(0, 7))).all()
    assert result.score.isel(stage=1).notnull().all()


def test_nan_activations_are_named(ds: xr.Dataset) -> None:
    values = ds.resid_post.values.copy()
    values[1, 0, 5, 1, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"layer 0.*r00005.*last"):
        probe(ds.assign(resid_post=(ds.resid_post.dims, values)), **QUIET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "trained_stagge"}, "did you mean 'trained_stage'"),
        ({"target": "trained_stage", "order": ["s1"]}, "at least 2"),
        ({"folds": 61}, "60"),
        ({"folds": 1}, "at least 2"),
        ({"pairs": "al"}, "did you mean 'all'"),
        ({"pairs": [("s1", "s9")]}, "s9"),
        ({"method": "logistics"}, "did you mean 'logistic'"),
        ({"C": -1.0}, "positive"),
        ({"C": "best"}, "'cv'"),
        ({"C": [0.1, 1.0], "folds": 2}, "3 folds"),
        ({"C": "cv", "method": "lda"}, "no penalty"),
        ({"pairs": "multiclass", "method": "ridge"}, "logistic"),
        ({"solver": "newton"}, "batched"),
        ({"test": {"template": "whom"}}, "no row has that value"),
        ({"test": {"tempalte": "who"}}, "did you mean 'template'"),
        ({"test": {"trained_stage": "s1"}}, "to train on"),
        ({"backend": "cuda"}, "auto, cpu, gpu"),
        ({"site": "resid_pst"}, "resid_post"),
    ],
)
def test_refusals(ds: xr.Dataset, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe(ds, **arguments, **QUIET)


def test_continuous_and_mixed_targets_are_refused(ds: xr.Dataset) -> None:
    n = ds.sizes["entity"]
    with pytest.raises(InputError, match="continuous"):
        probe(ds.assign_coords(age=("entity", np.linspace(0, 1, n))), "age", **QUIET)
    mixed = np.array(["a", 1] * (n // 2), dtype=object)
    with pytest.raises(InputError, match="mixed"):
        probe(ds.assign_coords(kind=("entity", mixed)), "kind", **QUIET)


def test_gpu_without_a_gpu_is_an_error(ds: xr.Dataset) -> None:
    from stratalens.analyses.estimators.backend import gpu_problem

    if gpu_problem() is None:
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match="backend='gpu', but CuPy"):
        probe(ds, backend="gpu", **QUIET)
