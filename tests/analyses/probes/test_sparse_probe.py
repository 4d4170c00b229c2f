"""Sparse probes against scikit-learn's pipelines, planted neurons, and labels that say nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stratalens as sl
from stratalens.store.errors import InputError

QUIET: dict[str, Any] = {"progress": False, "workers": 1, "cache": False}


def absolute_difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Score of a feature as a function of scikit-learn's selectors."""
    return np.abs(x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0))


def neurons(seed: int = 0, groups: str = "ab", per_group: int = 30, d: int = 40, **planted: float) -> xr.DataArray:
    """Noise of unequal scales in two layers; `n4=2.0` adds 2 to neuron 4 of the last group in layer 1."""
    rng = np.random.default_rng(seed)
    n = len(groups) * per_group
    scale = np.geomspace(0.3, 3, d)
    x = rng.normal(size=(2, n, 1, d)) * scale + 5
    for name, shift in planted.items():
        x[1, -per_group:, 0, int(name[1:])] += shift
    label = np.repeat(np.array(list(groups), dtype=object), per_group)
    dims = ("layer", "entity", "token", "d_mlp")
    return xr.DataArray(x.astype("f4"), dims=dims, coords={"layer": [0, 1], "label": ("entity", label)})


@pytest.mark.parametrize(("selection", "score"), [("f_classif", f_classif), ("mean_difference", absolute_difference)])
def test_equals_scikit_learns_pipeline_fold_by_fold(selection: str, score: Any) -> None:
    data = neurons(3, "abc", n7=1.0, n30=2.0)
    result = sl.sparse_probe(data, "label", k=[1, 3], selection=selection, C=0.5, folds=4, draws=2, **QUIET)
    fold, label = result.entity_fold.values, data["label"].values
    for pair in result.pair.values:
        first, second = (result[name].sel(pair=pair).item() for name in ("pair_first", "pair_second"))
        for layer in (0, 1):
            x = data.sel(layer=layer).values[:, 0].astype(np.float64)
            inside = np.isin(label, [first, second])
            for k in (1, 3):
                cell = result.sel(pair=pair, layer=layer, k=k).isel(token=0)
                model = make_pipeline(SelectKBest(score, k=k), StandardScaler(), LogisticRegression(C=0.5, tol=1e-9))
                for f in range(4):
                    train, test = inside & (fold != f), inside & (fold == f)
                    model.fit(x[train], label[train] == second)
                    scores = model.decision_function(x[test])
                    assert cell.accuracy.sel(fold=f).item() == np.mean((scores > 0) == (label[test] == second))
                    assert cell.auc.sel(fold=f).item() == pytest.approx(roc_auc_score(label[test] == second, scores))
                model.fit(x[inside], label[inside] == second)
                chosen = cell.selected.values[:k]
                assert set(chosen) == set(np.flatnonzero(model[0].get_support()))
                ours = x[inside][:, chosen] @ cell["coef"].values[:k] + cell.intercept.item()
                np.testing.assert_allclose(ours, model.decision_function(x[inside]), atol=2e-3)
                assert np.isnan(cell["coef"].values[k:]).all()


def test_a_planted_neuron_and_its_layer() -> None:
    data = neurons(1, n11=6.0)
    result = sl.sparse_probe(data, "label", k=[1, 4], permutations=19, draws=8, **QUIET)
    at = result.isel(token=0, pair=0)
    assert at.selected.sel(layer=1).values[0] == 11
    assert at.stability.sel(layer=1, k=1).item() == 1
    assert at.accuracy_mean.sel(layer=1, k=1).item() > 0.95
    assert at.accuracy_p_max.sel(layer=1, k=1).item() == pytest.approx(0.05)
    assert at.accuracy_p.sel(layer=0, k=1).item() > 0.05
    assert at.random_accuracy.sel(layer=1, k=1).mean().item() < 0.7
    assert at.accuracy_low.sel(layer=1, k=1).item() > at.accuracy_null.sel(layer=1, k=1).item()
    table = result.sel(k=1).strata.best(1)
    assert (table.layer[0], table.measure[0]) == (1, "accuracy")


def test_features_of_large_variance_are_chosen_by_the_difference_of_means_alone() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1, 3)) * [100, 1, 1]
    x[30:, :, 1] += 3
    label = np.repeat(np.array(["a", "b"], dtype=object), 30)
    data = xr.DataArray(x, dims=("entity", "token", "d_model"), coords={"label": ("entity", label)})
    chosen = {s: sl.sparse_probe(data, "label", k=1, selection=s, **QUIET).selected.item() for s in
              ("mean_difference", "f_classif")}  # fmt: skip
    assert chosen == {"mean_difference": 0, "f_classif": 1}


def test_the_choice_among_many_features_does_not_leak() -> None:
    """Labels that say nothing, 400 features, 40 rows: selection from all rows would score about .8."""
    accuracy, p = [], []
    for seed in range(20):
        data = neurons(seed, per_group=20, d=400).isel(layer=[0])
        result = sl.sparse_probe(data, "label", k=2, permutations=9, draws=1, seed=seed, **QUIET)
        accuracy.append(result.accuracy_mean.item())
        p.append(result.accuracy_p.item())
        assert abs(result.accuracy_null.item() - 0.5) < 0.15
    assert abs(np.mean(accuracy) - 0.5) < 0.06  # four standard errors
    assert np.mean(np.asarray(p) <= 0.1) < 0.35  # the level is .1; 7 of 20 has a chance of .002


def test_several_feature_dims_missing_rows_and_constant_tokens() -> None:
    data = neurons(2, n11=6.0)
    heads = data.rename(d_mlp="flat").values.reshape(2, 60, 1, 5, 8)
    both = np.concatenate([heads, np.ones_like(heads)], axis=2)
    dims = ("layer", "entity", "token", "head", "d_head")
    data = xr.DataArray(both, dims=dims, coords=data.drop_vars("token", errors="ignore").coords)
    result = sl.sparse_probe(data, "label", k=[1, 2], draws=2, **QUIET)
    at = result.isel(layer=1, token=0, pair=0, rank=0)
    assert (at.selected.item(), at.selected_head.item(), at.selected_d_head.item()) == (11, 1, 3)
    flat = result.isel(token=1)
    assert bool(flat.constant.all())
    assert bool((flat.selected == -1).all())
    assert bool((flat.selected_head == -1).all())
    assert bool(flat.accuracy_mean.isnull().all())
    assert bool(flat.random_auc.isnull().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 41}, "has 40 features"),
        ({"k": 0}, "among 1 .. 40"),
        ({"k": 1.5}, r"numbers of features, e.g. k=\[1, 4, 16\]"),
        ({"k": []}, "numbers of features"),
        ({"selection": "f_clasif"}, "f_classif"),
        ({"pairs": "multiclass"}, "two classes"),
        ({"pairs": "ordinal"}, "two classes"),
        ({"C": "cv"}, "one positive number"),
        ({"C": -1.0}, "positive"),
        ({"draws": 0}, "draws=0"),
        ({"target": "lable"}, "label"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sl.sparse_probe(neurons(), **{"target": "label", **QUIET, **arguments})
