"""Options that all probes share: held-out templates, standardising, penalties, all tokens as one vector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stratalens.analyses.controls.controls import BASELINES, baseline_probe
from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.directions.directions import cosines
from stratalens.analyses.probes.generalise import generalise
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 50}
OWN = ("resid_post_l2",)
PROBES: dict[str, Callable[..., xr.Dataset]] = {
    **{f"probe {m}": partial(probe, method=m) for m in ("logistic", "ridge", "lda", "diffmeans")},
    **{f"probe {p}": partial(probe, pairs=p) for p in ("rest", "ordinal", "multiclass")},
    "statistics": partial(statistics_probe, statistics=OWN),
    "boosting": partial(statistics_probe, statistics=OWN, model="boosting"),
    "matched": partial(matched_probe, statistics=OWN, bins=2),
    "matched nearest": partial(matched_probe, statistics=OWN, method="nearest"),
    "residual": partial(residual_probe, statistics=OWN),
    "residual lda": partial(residual_probe, statistics=OWN, method="lda"),
    **{b: partial(baseline_probe, baseline=b) for b in BASELINES},
}


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    """Three groups with two rows for each entity, one for each of two templates."""
    data = planted(stages=2, layers=1, groups=3, per_group=40, rows_per_entity=2, effect=1.0, d=6)
    data = data.isel(stage=[1])
    template = np.array(["who", "what"], object)[np.arange(data.sizes["entity"]) % 2]
    return data.assign_coords(template=("entity", template)).load()


def shifted(ds: xr.Dataset, rows: np.ndarray) -> xr.Dataset:
    """Replace the activations of some rows."""
    values = ds.resid_post.values.copy()
    values[:, :, rows] = np.random.default_rng(9).normal(size=values[:, :, rows].shape) * 5
    return ds.assign(resid_post=(ds.resid_post.dims, values))


@pytest.mark.parametrize("tokens", ["each", "joint"])
@pytest.mark.parametrize("name", PROBES)
def test_a_held_out_template_is_tested_on_and_never_trained_on(name: str, tokens: str, ds: xr.Dataset) -> None:
    who = ds.template.values == "who"
    options = {"test": {"template": "who"}, "tokens": tokens, **QUIET}
    result = PROBES[name](ds, **options)
    other = PROBES[name](shifted(ds, who), **options)
    assert ("token" in result["accuracy_mean" if "accuracy_mean" in result else "r2_mean"].dims) == (tokens == "each")
    for variable in ("coef", "intercept", "n_matched"):
        if variable in result:
            np.testing.assert_array_equal(
                result[variable], other[variable], "the fits saw nothing of the held-out template"
            )
    if "tested" in result:
        tested = (result.tested > 0).any([d for d in result.tested.dims if d != "entity"]).values
        assert not tested[~who].any()
        assert tested[who].any()
    else:
        assert not result.r2_mean.equals(other.r2_mean)


@pytest.mark.parametrize("name", [n for n in PROBES if n not in ("boosting", "random_direction")])
def test_features_are_standardised_in_the_fold(name: str, ds: xr.Dataset) -> None:
    """With standardising, results do not depend on the units of a feature."""
    units = np.array([1, 30, 0.1, 5, 2, 1], np.float32)
    if name == "statistics":  # always standardised
        a = PROBES[name](ds.assign(resid_post_l2=abs(ds.resid_post).sum("d_model")), **QUIET)
        b = PROBES[name](ds.assign(resid_post_l2=abs(ds.resid_post).sum("d_model") * 100 + 3), **QUIET)
    else:
        fixed = ds.assign(resid_post_l2=abs(ds.resid_post).sum("d_model"))
        scaled = fixed.assign(resid_post=fixed.resid_post * units)
        a, b = (PROBES[name](d, standardize=True, **QUIET) for d in (fixed, scaled))
    variable = "r2_mean" if "r2_mean" in a else "accuracy_mean"
    if "diffmeans" not in name:
        np.testing.assert_allclose(a[variable], b[variable], atol=5e-3)
    if "score" in a:
        np.testing.assert_allclose(a.score, b.score, atol=2e-3)


def test_scaling_is_learned_on_the_training_rows(ds: xr.Dataset) -> None:
    small = ds.isel(stage=0, layer=0, token=[0])
    result = probe(small, pairs=[("s1", "s3")], standardize=True, **QUIET)
    x, label, fold = small.resid_post.values[:, 0].astype("f8"), small.trained_stage.values, result.entity_fold.values
    for k in range(5):
        train, test = (np.isin(label, ["s1", "s3"]) & (fold != k)), fold == k
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=0.1, tol=1e-10, solver="newton-cholesky")
        model.fit(scaler.transform(x[train]), label[train] == "s3")
        expected = model.decision_function(scaler.transform(x[test]))
        np.testing.assert_allclose(result.score.squeeze().values[test], expected, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in PROBES if n not in ("boosting", "random_direction")])
def test_penalties_are_chosen_by_every_probe_that_has_one(name: str, ds: xr.Dataset) -> None:
    if "lda" in name or "diffmeans" in name:
        with pytest.raises(InputError, match="no penalty to choose"):
            PROBES[name](ds, C=[0.1, 1.0], **QUIET)
        return
    result = PROBES[name](ds, C=[1e-7, 1.0], **QUIET)
    assert result.attrs["C"] == [1e-7, 1.0]
    variable = "r2_mean" if "r2_mean" in result else "accuracy_mean"
    assert result[variable].notnull().all()
    if "penalty" in result and "shuffled" not in name:
        assert (result.penalty == 1.0).any(), "the strongest penalty is not best for a real effect"


def test_all_tokens_as_one_vector(ds: xr.Dataset) -> None:
    result = probe(ds, tokens="joint", **QUIET)
    flat = ds.stack(both=("token", "d_model")).reset_index("both", drop=True).rename(resid_post="flat")
    other = probe(flat, site="flat", **QUIET)
    np.testing.assert_allclose(result.accuracy_mean, other.accuracy_mean)
    assert result.coef.dims == ("stage", "layer", "pair", "token", "d_model")
    np.testing.assert_allclose(result.coef.stack(both=("token", "d_model")), other.coef, atol=1e-5)
    np.testing.assert_allclose(cosines(result), cosines(other), atol=1e-5)
    single = probe(ds, **QUIET)
    assert float(result.auc.mean()) > float(single.auc.mean()) + 0.02, "two noisy tokens are better than one"


def test_joint_probes_are_applied_to_other_entities(ds: xr.Dataset) -> None:
    half = np.isin(ds.entity_id.values, np.unique(ds.entity_id.values)[:60])
    probes = probe(ds.isel(entity=half), tokens="joint", normalize=True, **QUIET)
    result = generalise(probes, ds.isel(entity=~half), progress=False)
    x = ds.isel(entity=~half).resid_post.squeeze()
    x = x / np.sqrt((x**2).sum("d_model"))
    score = xr.dot(x, probes.coef.squeeze(), dim=["token", "d_model"]) + probes.intercept.squeeze()
    np.testing.assert_allclose(
        result.squeeze().sel(group="s2"),
        score.isel(entity=score.trained_stage.values == "s2").mean("entity"),
        atol=1e-5,
    )


def test_rows_are_matched_at_every_token_at_once(ds: xr.Dataset) -> None:
    """The groups differ in one direction at one token, and in the other direction at the other token."""
    rng = np.random.default_rng(0)
    big = planted(stages=2, layers=1, groups=2, per_group=400, effect=0.5, d=6).isel(stage=[1])
    group = (big.trained_stage.values == "s2").astype(float)
    size = rng.normal(size=(1, 800, 2)) + 0.5 * group[None, :, None] * np.array([1, -1])
    result = matched_probe(
        big.assign(size=(("stage", "entity", "token"), size)), statistics=("size",), bins=4, tokens="joint", **QUIET
    )
    before, after = result.balance.isel(statistic=result.matched.values).squeeze().values
    assert before > 0.4
    assert after < 0.25
    assert (result.n_matched % 2 == 0).all()
    assert "token" not in result.accuracy.dims


def test_unknown_options_are_refused(ds: xr.Dataset) -> None:
    for function in PROBES.values():
        with pytest.raises(InputError, match="did you mean 'joint'"):
            function(ds, tokens="joined", **QUIET)
    with pytest.raises(InputError, match="standardize= has no meaning"):
        baseline_probe(ds, standardize=True, **QUIET)
