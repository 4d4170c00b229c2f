"""Accuracy, balanced accuracy and AUC of out-of-fold scores, and their nulls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from stratalens.analyses.probes.probe import probe
from stratalens.analyses.stats.scores import auc, concordance, placements
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous"}


def two_groups(x: np.ndarray, sizes: tuple[int, ...]) -> xr.DataArray:
    """Activations (layer, rows, d) of groups with these sizes."""
    label = np.repeat(np.array(["a", "b", "c"], object)[: len(sizes)], sizes)
    return xr.DataArray(
        x.astype("f4"), dims=("layer", "entity", "d_model")[-x.ndim :], coords={"group": ("entity", label)}
    )


def test_pairs_of_rows_are_compared_inside_folds_and_ties_count_half() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 5, (4, 60)).astype("f4")
    sign = rng.integers(-1, 2, (4, 60))
    fold = rng.integers(0, 3, 60)
    concordant, pairs = concordance(score, sign > 0, sign < 0, fold, 3)
    placed = placements(score, sign > 0, sign < 0, fold, 3)
    for p in range(4):
        for k in range(3):
            rows = (fold == k) & (sign[p] != 0)
            assert concordant[p, k] / pairs[p, k] == pytest.approx(auc(score[p, rows], sign[p, rows] > 0))
            for side in (1, -1):
                assert placed[p, (fold == k) & (sign[p] == side)].sum() == pytest.approx(concordant[p, k])
    assert (placed[sign == 0] == 0).all()


@pytest.mark.parametrize("pairs", ["all", "multiclass"])
def test_measures_are_those_of_scikit_learn(pairs: str) -> None:
    ds = planted(stages=1, layers=1, groups=3, per_group=20, tokens=("last",)).isel(entity=slice(0, 52))
    result = probe(ds, pairs=pairs, folds=4, **QUIET).squeeze(("stage", "layer", "token"))
    label, fold = ds.trained_stage.values, result.entity_fold.values
    if pairs == "multiclass":
        score, truth = result.score.values, label
        predicted = result.group.values[score.argmax(axis=0)]
        areas = [
            np.mean(
                [
                    roc_auc_score(label[fold == k] == g, s[fold == k])
                    for g, s in zip(["s1", "s2", "s3"], score, strict=True)
                ]
            )
            for k in range(4)
        ]
        got = result.isel(pair=0)
    else:
        used = np.isin(label, ["s1", "s3"])
        got = result.sel(pair="s1 v s3")
        score, truth, fold = got.score.values[used], label[used] == "s3", fold[used]
        predicted = score > 0
        areas = [roc_auc_score(truth[fold == k], score[fold == k]) for k in range(4)]
    by_fold = [balanced_accuracy_score(truth[fold == k], predicted[fold == k]) for k in range(4)]
    np.testing.assert_allclose(got.auc, areas)
    np.testing.assert_allclose(got.balanced_accuracy, by_fold)
    assert float(got.balanced_accuracy_mean) == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert float(got.auc_mean) == pytest.approx(np.mean(areas), abs=0.02)


def test_unequal_classes_are_seen_by_balanced_accuracy_and_auc() -> None:
    """40 v 8 with an effect: accuracy ties with the shuffles at the larger class, the other two do not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 48, 10))
    x[:, 40:, 0] += 2
    result = probe(two_groups(x, (40, 8)), "group", C=0.1, permutations=39, **QUIET)
    assert (result.accuracy_null > 0.8).all()
    assert float((result.accuracy_p <= 0.05).mean()) < float((result.auc_p <= 0.05).mean())
    assert float((result.auc_p <= 0.05).mean()) >= 0.8
    assert abs(float(result.auc_null.mean()) - 0.5) < 0.05
    assert abs(float(result.balanced_accuracy_null.mean()) - 0.5) < 0.05
    noise = probe(two_groups(rng.normal(size=(30, 48, 10)), (40, 8)), "group", permutations=19, **QUIET)
    for measure in ("balanced_accuracy", "auc"):
        assert float((noise[f"{measure}_p"] <= 0.05).mean()) <= 0.2


@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_scores_keep_their_digits_beside_a_large_common_offset(method: str) -> None:
    """The offset is 1e5 times the spread; scores agree with float64 of the same stored activations."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 6))
    x[40:, 0] += 1.5
    stored = (x + 1e5 * np.sign(rng.normal(size=6))).astype("f4")
    result = probe(two_groups(stored, (40, 40)), "group", method=method, **QUIET).squeeze()
    wide, label = stored.astype("f8") - stored.astype("f8").mean(axis=0), np.repeat([-1.0, 1.0], 40)
    for k in range(5):
        train = result.entity_fold.values != k
        if method == "ridge":
            expected = Ridge(alpha=10.0).fit(wide[train], label[train]).predict(wide[~train])
        else:
            model = LogisticRegression(C=0.1, tol=1e-10, solver="newton-cholesky").fit(wide[train], label[train] > 0)
            expected = model.decision_function(wide[~train])
        np.testing.assert_allclose(result.score.values[~train], expected, atol=2e-4 * np.std(expected))


def test_the_intercept_belongs_to_the_stored_activations() -> None:
    """The probe of all rows gives the same scores, whether rows are centred or not."""
    ds = planted(stages=1, layers=1, groups=2, per_group=30, tokens=("last",), effect=2.0)
    here = (ds.resid_post + 50.0).squeeze().load()
    result = probe(here, "trained_stage", method="lda", fold_coefs=True, **QUIET).squeeze()
    x, fold = here.values.astype("f8"), result.entity_fold.values
    along = x @ result.fold_coef.values.astype("f8").T + result.fold_intercept.values
    np.testing.assert_allclose(along[np.arange(len(x)), fold], result.score, atol=1e-3)


def test_whether_the_groups_have_an_order_is_an_attribute() -> None:
    ds = planted(stages=2, layers=1, groups=2, per_group=20, tokens=("last",))
    assert probe(ds, **QUIET).attrs["ordered"] == 1
    assert probe(ds, "template", **QUIET).attrs["ordered"] == 0
    assert probe(ds, "template", order=["who", "what"], **QUIET).attrs["ordered"] == 1
