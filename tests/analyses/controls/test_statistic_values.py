from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.store.errors import InputError
from support.planted import planted, with_statistics

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


def test_statistics_with_dims_of_their_own_are_split(norm_only: xr.Dataset) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 600, 2, 3)).astype("f4")
    ds = norm_only.assign(logit_percentile=(("stage", "entity", "token", "percentile"), values)).assign_coords(
        percentile=[10, 50, 99]
    )
    result = statistics_probe(ds, statistics=("logit_percentile",), **QUIET)
    assert result.statistic.values.tolist() == [f"logit_percentile[percentile={p}]" for p in (10, 50, 99)]


def test_a_statistic_with_holes_is_refused(norm_only: xr.Dataset) -> None:
    entropy = norm_only.entropy.copy(deep=True).compute()
    entropy[0, 3, 1] = np.nan
    with pytest.raises(InputError, match="not defined in some rows: entropy"):
        statistics_probe(norm_only.assign(entropy=entropy), statistics=("entropy",), **QUIET)


def test_statistics_with_more_places_than_the_site_are_refused() -> None:
    ds = planted(stages=1, layers=2, groups=2, per_group=30, tokens=("last",))
    ds = with_statistics(ds).assign(embed=ds.resid_post.isel(layer=0, drop=True))
    for function in (matched_probe, residual_probe, statistics_probe):
        with pytest.raises(InputError, match=r"'resid_post_l2' has 2 layers and 'embed' has 1; narrow the statistic"):
            function(ds, site="embed", statistics=("resid_post_l2",), **QUIET)
        first = ds.assign(resid_post_l2=ds.resid_post_l2.isel(layer=0, drop=True))
        more = {"small": "nan", "bins": 2} if function is matched_probe else {}
        assert "layer" not in function(first, site="embed", statistics=("resid_post_l2",), **more, **QUIET).dims


def test_infinities_are_refused_by_name_not_by_numpy() -> None:
    ds = planted(stages=1, layers=1, groups=2, per_group=30, tokens=("last",), chunked=False)
    ds.resid_post[0, 0, 5, 0, 3] = np.inf
    with pytest.raises(InputError, match=r"not defined in some rows: resid_post_l2 \(1 of 60\)"):
        statistics_probe(ds, **QUIET)
