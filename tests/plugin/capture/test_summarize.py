"""A summary gives the centroids and closed-form probes of the store of the same rows, and resumes to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import stratalens as sl
from stratalens.analyses.data.norm_sketch import ACCURACY
from stratalens.analyses.estimators.closed_form import fit_closed_form
from stratalens.store.errors import InputError, MismatchError, NonFiniteError, StoreBusyError
from support.models import TwoLayers, bridge, run_two_layers, table, tokenizer

SITES = ("layers.{layer}.hook_state",)
SITE = "layers_hook_state"
MODEL = {"tokenizer": tokenizer(), "forward": run_two_layers, "sites": SITES, "check": False, "progress": False}
METHODS = ("ridge", "lda", "diffmeans")


def summarize(path: Path, stages: Any = None, prompts: Any = None, **options: Any) -> xr.Dataset:
    options = {"by": "group", "positions": ("last", "-2"), "block_size": 8, "batch_size": 4, **options}
    stages = {"s0": TwoLayers(), "s1": TwoLayers(1)} if stages is None else stages
    return sl.summarize(stages, table(60) if prompts is None else prompts, path, **{**MODEL, **options})


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("stored")
    stages = {"s0": TwoLayers(), "s1": TwoLayers(1)}
    options = {**MODEL, "positions": ("last", "-2"), "statistics": False}
    return sl.capture(stages, table(60), folder / "run.zarr", **options).load()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return summarize(tmp_path_factory.mktemp("whole") / "run.summary", sample=12)


def reference(x: np.ndarray, codes: np.ndarray, signs: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Fit the probes of one place to the stored rows, in float64."""
    fit = fit_closed_form(x.astype(np.float64), signs[:, :, None], codes, method)
    return fit.coef, fit.intercept


def test_it_is_the_stored_run(stored: xr.Dataset, whole: xr.Dataset) -> None:
    """Centroids, moments, norms, and the probes of every method, pair and place."""
    site = next(str(name) for name in stored.data_vars if stored[name].dims[-1].startswith("layers") or name == SITE)
    x, codes = stored[site].values, stored["group"].values
    centroids = sl.summary_centroids(whole, site)
    expected = sl.centroids(stored, "group", site, progress=False)
    assert centroids.centroid.dims == expected.centroid.dims
    np.testing.assert_allclose(centroids.centroid, expected.centroid, atol=1e-6)
    for g in range(3):
        rows = x[:, :, codes == g].astype(np.float64)
        deviation = rows - rows.mean(axis=2, keepdims=True)
        own = whole.isel(group=g)
        assert (own["count"] == (codes == g).sum()).all()
        for power, name in ((2, "variance"), (3, "third_moment"), (4, "fourth_moment")):
            np.testing.assert_allclose(own[f"{site}_{name}"], (deviation**power).mean(axis=2), atol=1e-12)
        scatter = np.einsum("slntd,slnte->sltde", deviation, deviation)
        np.testing.assert_allclose(own[f"{site}_scatter"], scatter, atol=1e-11)
        norm = np.linalg.norm(rows, axis=-1)
        np.testing.assert_allclose(own[f"{site}_norm_mean"], norm.mean(axis=2), rtol=1e-12)
        np.testing.assert_allclose(own[f"{site}_norm_std"], norm.std(axis=2), rtol=1e-9)
        quantiles = np.moveaxis(np.quantile(norm, own.q, axis=2, method="lower"), 0, -1)
        np.testing.assert_allclose(own[f"{site}_norm_quantile"], quantiles, rtol=1.01 * ACCURACY)
    for method in METHODS:
        for pairs in ("all", "rest", *(("ordinal",) if method == "ridge" else ())):
            own = sl.summary_probe(whole, site, pairs, method)
            direct = sl.probe(stored, "group", site, pairs, method, progress=False, cache=False, resamples=1)
            assert own.pair.values.tolist() == direct.pair.values.tolist()
            # The probes of a store are solved in float32, to 2e-5 of their length.
            length = np.linalg.norm(direct.coef, axis=-1)
            assert (np.linalg.norm(own.coef - direct.coef, axis=-1) < 2e-5 * length).all()
            cosine = (own.coef * direct.coef).sum("d_state" if "d_state" in own.dims else own.coef.dims[-1])
            np.testing.assert_allclose(cosine / length / np.linalg.norm(own.coef, axis=-1), 1, atol=1e-6)
            if pairs == "ordinal":
                continue
            names = ("0", "1", "2")
            for place in np.ndindex(2, 2, 2):
                s, layer, t = place
                for p, (first, second) in enumerate(zip(own.pair_first.values, own.pair_second.values, strict=True)):
                    high = codes == names.index(second)
                    low = ~high if first == "rest" else codes == names.index(first)
                    signs = (high.astype(np.int8) - low.astype(np.int8))[:, None]
                    coef, intercept = reference(x[s, layer, :, t], codes, signs, method)
                    np.testing.assert_allclose(own.coef.values[place][p], coef[0], rtol=1e-6, atol=1e-6)
                    np.testing.assert_allclose(own.intercept.values[place][p], intercept[0], rtol=1e-6, atol=1e-6)
