"""ds.strata has the public analyses as methods; public names are lazy."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import xarray as xr

import stratalens as sl
import stratalens.analyses.accessor
from stratalens.analyses.centroids.centroids import centroids
from stratalens.analyses.directions.directions import cosines
from support.planted import planted


def test_the_accessor_is_the_function() -> None:
    ds = planted()
    for data in (ds, ds.resid_post):
        expected = centroids(data, order=["s1", "s2"], progress=False)
        xr.testing.assert_identical(data.strata.centroids(order=["s1", "s2"], progress=False), expected)
    assert ds.strata.project.__doc__ is not None
    assert repr(ds.strata).startswith("<stratalens analyses of Dataset (stage ")
    assert repr(ds.resid_post.strata).startswith("<stratalens analyses of resid_post (stage ")
    assert " at 0x" not in repr(ds.strata)
    with pytest.raises(AttributeError, match=r"it has .*centroids"):
        ds.strata.nothing  # noqa: B018


def test_every_public_analysis_is_there() -> None:
    functions = {name: getattr(sl, name) for name in sl.__all__ if inspect.isfunction(getattr(sl, name))}
    analyses = {name for name, f in functions.items() if f.__module__.startswith("stratalens.analyses")}
    others = {
        "control_table",
        "clear_results",
        "report",
        "explore",
        "open_summary",
        "merge_summaries",
        "summary_centroids",
        "summary_probe",
    }  # they take several results, a path or a summary, or open a page
    assert analyses - others == set(dir(planted().strata)) - {"best"}


def test_results_have_the_analyses_of_results() -> None:
    ds = planted()
    options = {"progress": False, "resamples": 20, "folds": 3}
    probes = ds.strata.probe(pairs=[("s1", "s4"), ("s1", "s3")], **options)
    xr.testing.assert_identical(probes.strata.cosines(over="layer"), cosines(probes, over="layer"))
    assert probes.strata.generalise(ds).sizes["group"] == 4
    assert set(ds.strata.centroids(progress=False).strata.steps().data_vars) == {"distance", "cosine", "angle", "turn"}
    assert float(ds.resid_post.strata.pca(components=2, progress=False).share.max()) < 1
    results = ds.strata.controls(which=("probe", "random_direction"), pairs=[("s1", "s4")], **options)
    assert set(results) == {"probe", "random_direction"}
    assert ds.strata.baseline_probe(baseline="shuffled_entity", **options).attrs["baseline"] == "shuffled_entity"


def test_importing_the_analyses_imports_nothing_heavy() -> None:
    code = (
        "import sys, stratalens as a; heavy = {'torch', 'xarray', 'sklearn', 'holoviews'} & set(sys.modules); "
        "assert not heavy, heavy; a.centroids, a.sweep; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
