"""Probes of one slab: standardising, penalties, all tokens as one vector."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stratalens.analyses.directions.directions import cosines
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.every_probe import PROBES, QUIET, with_templates


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return with_templates()


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
