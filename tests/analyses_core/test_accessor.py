"""ds.strata is the functions and nothing else; public names are lazy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import xarray as xr

import stratalens.analyses.accessor  # noqa: F401
from stratalens.analyses.accessor import VERBS
from stratalens.analyses.centroids import centroids
from support.planted import planted


def test_the_accessor_is_the_function() -> None:
    ds = planted()
    for data in (ds, ds.resid_post):
        expected = centroids(data, order=["s1", "s2"], progress=False)
        xr.testing.assert_identical(data.strata.centroids(order=["s1", "s2"], progress=False), expected)
    assert ds.strata.project.__doc__ is not None
    assert set(dir(ds.strata)) == set(VERBS)
    with pytest.raises(AttributeError, match="it has centroids"):
        ds.strata.nothing  # noqa: B018


def test_importing_the_analyses_imports_nothing_heavy() -> None:
    code = (
        "import sys, stratalens.analyses as a; heavy = {'torch', 'xarray', 'sklearn', 'holoviews'} & set(sys.modules); "
        "assert not heavy, heavy; a.centroids, a.sweep; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
