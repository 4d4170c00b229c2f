"""Probes on demand are equal to the analysis and are cached next to the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stratalens.analyses.explorer.data import ExplorerData, ViewState
from stratalens.analyses.explorer.result_cache import AnalysisRequest, ResultCache
from stratalens.store import open_store
from support.stores import make_store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(
        tmp_path_factory.mktemp("s") / "run.zarr", 4, 2, 120, ("first", "last"), 8, planted=2.0, prompts_per_entity=2
    )


@pytest.fixture
def source(path: Path) -> ExplorerData:
    return ExplorerData(open_store(path))


HERE = ViewState("resid_post", "trained_stage", "s3", 1, "last")


def test_results_are_those_of_the_analysis_and_are_cached_next_to_the_store(source: ExplorerData, path: Path) -> None:
    cache = ResultCache(source)
    request = AnalysisRequest("probes", "resid_post", "trained_stage", pairs="ends")
    keys = cache.missing_keys(request, HERE, "everything")
    assert keys[0] == ("s3", 1, "last")
    assert keys[1] == ("s3", 0, "last")
    assert len(keys) == 8
    for key in keys[:2]:
        cache.add(request, key, cache.compute(request, key))
    from stratalens.analyses.probes.probe import probe

    whole = probe(source.ds.sel(stage=["s3"], token=["last"]), pairs=[("s1", "s3")], progress=False)
    here = cache.get(request, ("s3", 1, "last"))
    assert here is not None
    want = whole.accuracy_mean.sel(layer=1)
    np.testing.assert_array_equal(here.accuracy_mean.values.ravel(), want.values.ravel())
    along = cache.across_layers(request, "s3", "last")
    assert along is not None
    assert along.layer.values.tolist() == [0, 1]
    assert cache.missing_keys(request, HERE, "layers") == []
    assert len(cache.missing_keys(request, HERE, "everything")) == 6
    everything = cache.stage_layer_grid(request, "accuracy_mean", "last")
    assert everything is not None
    assert int(everything.notnull().sum()) == 2
    assert float(everything.sel(stage="s3", layer=1)) == pytest.approx(float(want.mean()))
    assert cache.missing_keys(request, HERE, "tokens") == [("s3", 1, "first"), ("s3", 0, "first")]
    by_place = cache.layer_token_values(request, "s3")
    assert list(by_place) == keys[:2]
    assert by_place[keys[0]] == (pytest.approx(float(want.mean())), pytest.approx(0.5))
    files = sorted(p.name for p in path.with_name("run.zarr.results").iterdir() if p.name.startswith("probe"))
    again = ResultCache(ExplorerData(open_store(path)))
    again.compute(request, keys[0])
    assert sorted(p.name for p in path.with_name("run.zarr.results").iterdir() if p.name.startswith("probe")) == files
