"""P of the maximum over all places: exact against a plain computation, and right on noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.probes.probe import probe
from stratalens.analyses.stats.max_t import p_max
from stratalens.analyses.stats.permutation import p_value
from stratalens.store import open_store
from support.planted import planted
from support.stores import make_store

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous"}


def plain(estimate: np.ndarray, shuffled: np.ndarray) -> list[float]:
    """P of the maximum, place by place, with loops."""
    every = np.column_stack([shuffled, estimate]).astype("f4").astype(float)
    t = np.array([(v - v.mean()) / v.std() for v in every])
    best = t[:, :-1].max(axis=0)
    return [(1 + (best >= own - 1e-6).sum()) / (1 + len(best)) for own in t[:, -1]]


def test_it_is_the_share_of_shuffles_whose_best_place_is_better() -> None:
    rng = np.random.default_rng(0)
    shuffled = rng.normal(size=(12, 49)) * rng.uniform(0.1, 5, (12, 1)) + rng.normal(size=(12, 1)) * 9
    estimate = shuffled.mean(axis=1) + shuffled.std(axis=1) * np.linspace(0, 6, 12)
    got = p_max(estimate, shuffled, np.zeros(12, int))
    np.testing.assert_allclose(got, plain(estimate, shuffled))
    assert got[-1] == 1 / 50
    assert got[0] > 0.5


def test_constant_places_are_left_out_and_ties_count() -> None:
    shuffled = np.array([[1.0, 0.0, 1.0, 0.0], [np.nan] * 4, [0.5] * 4])
    got = p_max(np.array([1.0, np.nan, 0.5]), shuffled, np.zeros(3, int))
    assert got[0] == pytest.approx(3 / 5)
    assert np.isnan(got[1])
    assert got[2] == 1
    undefined = p_max(np.array([1.0]), np.array([[np.nan, 0.0, 0.1]]), np.zeros(1, int))
    assert undefined[0] == pytest.approx(2 / 4)


def test_families_are_corrected_by_their_number() -> None:
    rng = np.random.default_rng(1)
    shuffled = rng.normal(size=(4, 99))
    estimate = np.array([9.0, 0.0, 8.0, 0.0])
    one = p_max(estimate, shuffled, np.zeros(4, int))
    two = p_max(estimate, shuffled, np.array([0, 0, 1, 1]))
    assert one[0] == 0.01
    np.testing.assert_allclose(two[[0, 2]], 0.02)
    assert two.max() <= 1


def test_about_one_in_twenty_noise_data_sets_has_a_best_place_below_five_percent() -> None:
    """2000 data sets with 8 dependent places of different spread; four standard errors are .02."""
    rng = np.random.default_rng(2)
    best, smallest = [], []
    for _ in range(2000):
        values = np.round((rng.normal(size=(8, 20)) + rng.normal(size=20)) * rng.uniform(0.5, 2, (8, 1)), 1)
        best.append(p_max(values[:, -1], values[:, :-1], np.zeros(8, int)).min())
        smallest.append(p_value(values[:, :-1].T, values[:, -1]).min())
    assert 0.02 <= np.mean(np.array(best) <= 0.05) <= 0.07
    assert np.mean(np.array(smallest) <= 0.05) > 0.1


def test_every_measure_of_a_probe_has_a_p_of_the_maximum() -> None:
    ds = planted(stages=2, layers=2, groups=2, per_group=40, effect=2.5)
    result = probe(ds, permutations=39, **QUIET)
    assert "permutation" not in result.dims
    for measure in ("accuracy", "balanced_accuracy", "auc"):
        p = result[f"{measure}_p_max"]
        assert (p >= result[f"{measure}_p"] - 1e-9).all()
        assert (p.isel(stage=1, layer=1) == 1 / 40).all()
        assert (p.isel(stage=0) > 0.05).all()
    assert result.accuracy_p_max.attrs == {"permutations": 39, "families": 1}
    assert "auc_p_max" in probe(ds, pairs="multiclass", permutations=2, **QUIET)
    assert "r2_p_max" in probe(ds, pairs="ordinal", permutations=2, **QUIET)


def test_stages_with_other_rows_are_families_of_their_own() -> None:
    ds = planted(stages=2, layers=1, groups=2, per_group=30, effect=3.0)
    recorded = ds.recorded.copy(data=np.ones(ds.recorded.shape, bool))
    recorded[0, :4] = False
    result = probe(ds.assign(recorded=recorded), permutations=39, skip_missing=True, **QUIET)
    assert result.accuracy_p_max.attrs["families"] == 2
    assert float(result.accuracy_p_max.min()) == 2 / 40


def test_a_token_that_all_prompts_share_is_left_out() -> None:
    ds = planted(stages=2, layers=2, groups=2, per_group=20, effect=4.0).isel(stage=[1])
    x = ds.resid_post.values.copy()
    x[:, 0, :, 0] = 1.0
    result = probe(ds.assign(resid_post=(ds.resid_post.dims, x)), permutations=19, **QUIET)
    assert np.isnan(result.accuracy_p_max.isel(layer=0, token=0)).all()
    assert float(result.accuracy_p_max.isel(layer=1).min()) == 0.05
    assert result.accuracy_p_max.isel(layer=1).notnull().all()


def test_cached_results_have_the_same_p_of_the_maximum(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr")
    options: dict[str, Any] = {"permutations": 9, "folds": 2, "method": "diffmeans", **QUIET}
    first = probe(open_store(path), **options)
    assert any((tmp_path / "run.zarr.results").iterdir())
    again = probe(open_store(path), **options)
    xr.testing.assert_identical(first, again)
    uncached = probe(open_store(path), cache=False, **options)
    xr.testing.assert_identical(first.accuracy_p_max, uncached.accuracy_p_max)
