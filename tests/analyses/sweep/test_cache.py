"""Finished slabs are cached, identified by content and parameters alone, and never confused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from stratalens.analyses.centroids.centroids import centroids, project
from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.sweep.cache import clear_results, results_folder
from stratalens.analyses.sweep.run import run_slabs, sweep
from stratalens.analyses.sweep.tasks import run_slab_task
from stratalens.store.errors import InputError
from stratalens.store.reading.open import open_store
from support.planted import planted
from support.stores import make_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "run.zarr", stages=4, layers=3, entities=36, tokens=("entity_last", "last"))


def counting(calls: list[str]) -> object:
    def function(slab: xr.DataArray) -> xr.Dataset:
        calls.append(f"{slab.stage.item()}/{slab.layer.item()}")
        return xr.Dataset({"mean": slab.mean("entity"), "name": ("token", np.array(["ä", "b"], object))})

    return function


def test_functions_without_a_name_never_share_results(store: Path) -> None:
    ds = open_store(store)
    mean = sweep(ds, lambda slab: slab.mean("entity"), compute=True)
    largest = sweep(ds, lambda slab: slab.max("entity"), compute=True)
    np.testing.assert_allclose(mean, ds.resid_post.mean("entity").compute(), atol=1e-6)
    np.testing.assert_array_equal(largest, ds.resid_post.max("entity").compute())
    assert not results_folder(store).exists()


def test_a_cached_result_has_the_labels_of_stage_layer_and_token(store: Path) -> None:
    ds = open_store(store)
    sweep(ds, counting([]), cache="means")
    sweep(ds, lambda slab: slab.isel(token=[1]).mean("entity"), cache="one token")
    folders = (next(results_folder(store).glob(f"sweep-{name}-*")) for name in ("means", "one_token"))
    means, one = (xr.open_zarr(folder, consolidated=False) for folder in folders)
    here = means.sel(stage="s2", layer=1, token="last")["mean"]
    np.testing.assert_array_equal(here, ds.resid_post.sel(stage="s2", layer=1, token="last").mean("entity"))
    assert one.token.values.tolist() == ["last"]


def test_a_second_run_reads_nothing_and_gives_the_same(store: Path) -> None:
    calls: list[str] = []
    first = sweep(open_store(store), counting(calls), cache="means")
    assert len(calls) == 12
    second = sweep(open_store(store), counting(calls), cache="means")
    assert len(calls) == 12
    xr.testing.assert_identical(first, second)
    assert second["name"].dtype == object
    clear_results(store)
    sweep(open_store(store), counting(calls), cache="means")
    assert len(calls) == 24


def test_an_interrupted_sweep_keeps_what_it_finished(store: Path) -> None:
    ds, calls = open_store(store), []

    def fails(slab: xr.DataArray) -> xr.DataArray:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        return slab.mean("entity")

    with pytest.raises(KeyboardInterrupt) as stopped:
        sweep(ds, fails, cache="means", workers=1)
    assert "slabs are cached next to the store" in stopped.value.__notes__[-1]
    again: list[int] = []

    def function(slab: xr.DataArray) -> xr.DataArray:
        again.append(1)
        return slab.mean("entity")

    result = sweep(ds, function, cache="means", workers=1)
    assert len(again) == 12 - 5
    np.testing.assert_allclose(result, ds.resid_post.mean("entity"), atol=1e-6)


def test_the_cache_is_labelled_zarr_that_anyone_can_open(store: Path) -> None:
    expected = centroids(open_store(store), progress=False)
    (folder,) = results_folder(store).iterdir()
    result = xr.open_zarr(folder, consolidated=False)
    np.testing.assert_array_equal(result.centroid, expected.centroid)
    assert bool(result.done.all())


def test_other_data_parameters_or_values_never_match(store: Path, tmp_path: Path) -> None:
    ds = open_store(store)
    base = centroids(ds, progress=False)

    def entries() -> int:
        return len(list(results_folder(store).iterdir()))

    assert entries() == 1
    centroids(ds, normalize=True, progress=False)
    centroids(ds, order=["s2", "s1"], progress=False)
    centroids(ds.sel(layer=[2]), progress=False)
    doubled = centroids(ds.assign(resid_post=2 * ds.resid_post), progress=False)
    assert entries() == 5
    np.testing.assert_allclose(doubled.centroid, 2 * base.centroid, atol=1e-6)
    flipped = ds.assign_coords(trained_stage=("entity", ds.trained_stage.values[::-1]))
    assert not np.allclose(centroids(flipped, progress=False).centroid, base.centroid)
    in_memory = ds.load()
    in_memory["resid_post"] = in_memory.resid_post * 3
    np.testing.assert_allclose(centroids(in_memory, progress=False).centroid, 3 * base.centroid, atol=1e-5)


def test_a_cached_sweep_depends_on_the_labels_that_its_function_saw(store: Path) -> None:
    ds = open_store(store)

    def by_group(slab: xr.DataArray) -> xr.DataArray:
        return slab.groupby("trained_stage").mean()

    first = sweep(ds, by_group, cache="means")
    flipped = ds.assign_coords(trained_stage=("entity", ds.trained_stage.values[::-1]))
    result = sweep(flipped, by_group, cache="means")
    xr.testing.assert_identical(result, sweep(flipped, by_group, compute=True))
    assert not np.allclose(result, first)
    numbered = ds.assign_coords(d_model=np.arange(ds.sizes["d_model"]))
    assert "d_model" not in centroids(ds, progress=False).coords
    assert "d_model" in centroids(numbered, progress=False).coords


def test_a_result_that_zarr_cannot_store_is_refused_at_the_first_slab(store: Path) -> None:
    calls = []

    def function(slab: xr.DataArray) -> xr.DataArray:
        calls.append(1)
        return slab.mean("entity").stack(place=("token", "d_model"))

    with pytest.raises(InputError, match=r"reset_index\('place'\)"):
        sweep(open_store(store), function, cache="stacked", workers=1)
    assert len(calls) <= 2
    with pytest.raises(InputError, match=r"times .* cannot be cached"):
        sweep(open_store(store), lambda slab: xr.Dataset({"at": np.datetime64("2026-01-01", "ns")}), cache="times")
    with pytest.raises(InputError, match="'done' cannot be cached"):
        sweep(open_store(store), lambda slab: slab.mean().to_dataset(name="done"), cache="done")
    cached = sweep(open_store(store), lambda slab: function(slab).reset_index("place"), cache="flat", workers=1)
    assert cached.sizes["place"] == 16


def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Positions of the slabs that are computed from now on."""
    seen: list[object] = []

    def counted(function: Callable[[Slab], object], slab: Slab) -> object:
        seen.append(slab.position)
        return run_slab_task(function, slab)

    monkeypatch.setattr(sys.modules["stratalens.analyses.sweep.run"], "run_slab_task", counted)
    return seen


ANALYSES: dict[str, Callable[..., Any]] = {
    "centroids": centroids,
    "project": partial(project, permutations=9, bootstrap=9),
    "probe": partial(sl.probe, permutations=2, resamples=20, folds=3),
    "statistics_probe": partial(sl.statistics_probe, statistics=("resid_post_l2",), resamples=20, folds=3),
    "matched_probe": partial(sl.matched_probe, statistics=("resid_post_l2",), bins=1, small="nan", resamples=20),
    "residual_probe": partial(sl.residual_probe, statistics=("resid_post_l2",), permutations=1, resamples=20, folds=3),
    "baseline_probe": partial(sl.baseline_probe, resamples=20, folds=3),
    "procrustes": sl.procrustes,
    "pca": partial(sl.pca, components=3),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_caches_its_results(name: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"progress": False, "workers": 1}
    first = ANALYSES[name](open_store(store).isel(layer=[1], stage=[2, 3]), **options)
    seen = reads(monkeypatch)
    second = ANALYSES[name](open_store(store).isel(layer=[1], stage=[2, 3]), **options)
    assert not seen, "nothing is read again, shuffled refits included"
    xr.testing.assert_identical(first, second)
    ANALYSES[name](open_store(store).isel(layer=[1], stage=[2, 3]), **options, cache=False)
    assert seen


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_resumes_where_it_was_interrupted(
    name: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"progress": False, "workers": 1}
    ds = open_store(store).isel(layer=[1, 2], stage=[2, 3])
    whole = ANALYSES[name](ds, **options, cache=False)
    seen: list[object] = []

    def interrupted(function: Callable[[Slab], object], slab: Slab) -> object:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(slab.position)
        return run_slab_task(function, slab)

    monkeypatch.setattr(sys.modules["stratalens.analyses.sweep.run"], "run_slab_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ANALYSES[name](ds, **options)
    again = reads(monkeypatch)
    result = ANALYSES[name](ds, **options)
    assert len(seen) == 2
    assert not {*seen} & {*again}
    assert list(result.data_vars) == list(whole.data_vars)
    xr.testing.assert_identical(result, whole)


def test_a_probe_with_other_settings_is_computed_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = open_store(store).isel(layer=[0], stage=[1])
    options: dict[str, Any] = {"progress": False, "workers": 1, "resamples": 20, "folds": 3}
    sl.probe(ds, **options)
    seen = reads(monkeypatch)
    others: list[dict[str, Any]] = [
        {"C": 1.0}, {"C": [0.1, 1.0]}, {"method": "ridge"}, {"seed": 1}, {"permutations": 1}, {"folds": 4},
        {"standardize": True}, {"normalize": True}, {"pairs": "rest"}, {"tol": 1e-5}, {"resamples": 21},
        {"tokens": "joint"}, {"fold_coefs": True}, {"site": "resid_post", "order": ["s2", "s1"]},
    ]  # fmt: skip
    for n, other in enumerate(others, start=1):
        sl.probe(ds, **options | other)
        assert len(seen) >= n, f"{other} is another question"
        seen[n:] = []


def test_more_stages_in_the_store_are_other_content(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", stages=4, stop_before="s3")
    before = centroids(open_store(path).isel(stage=slice(0, 3)), order=["s1", "s2"], progress=False)
    clear_results(path)
    assert not results_folder(path).exists()
    assert before.sizes["stage"] == 3


def test_data_without_a_store_has_no_cache_and_says_so(store: Path) -> None:
    ds = planted()
    centroids(ds, progress=False)
    with pytest.raises(InputError, match="open_store"):
        centroids(ds, cache=True)
    with pytest.raises(InputError, match="chunks=None"):
        sweep(open_store(store, chunks=None), lambda slab: slab.mean("entity"), cache="x")


def test_a_store_gives_the_results_of_its_arrays(store: Path) -> None:
    ds = open_store(store)
    lazy = open_store(store, chunks=None)
    plain = ds.drop_attrs().load()
    options = {"permutations": 19, "bootstrap": 19, "progress": False}
    a, b, c = (project(data, **options) for data in (ds, lazy, plain))
    xr.testing.assert_allclose(a.drop_attrs(), b.drop_attrs())
    xr.testing.assert_allclose(a.drop_attrs(), c.drop_attrs())
    xr.testing.assert_identical(a, project(open_store(store), **options))


def test_results_of_any_dtype_come_back_as_they_were(store: Path) -> None:
    ds = open_store(store)

    def function(slab: Slab) -> xr.Dataset:
        return xr.Dataset(
            {"b": slab.position[0] > 1, "i": np.int32(slab.position[1]), "f": ("k", np.array([np.nan, 1.0], "f4"))},
            coords={"k": np.array(["x", "y"], object)},
        )

    first = run_slabs(ds, function, cache="types", progress=False)
    xr.testing.assert_identical(first, run_slabs(ds, function, cache="types", progress=False))
    assert first.b.dtype == bool
    assert first.i.dtype == np.int32


def test_text_of_a_fixed_width_is_cached_and_comes_back(store: Path) -> None:
    ds = open_store(store)

    def function(slab: xr.DataArray) -> xr.Dataset:
        name = ("k", np.array(["x" * (1 + slab.layer.item()), slab.stage.item()]))
        return xr.Dataset({"name": name}, coords={"k": ["a", "bb"], "other": ("k", np.array(["c", "dddd"]))})

    first = sweep(ds, function, cache="text", workers=1)
    assert first.name.values[-1, -1].tolist() == ["xxx", "s3"]
    xr.testing.assert_identical(first, sweep(ds, function, cache="text"))
    xr.testing.assert_identical(first, sweep(ds, function).compute())
