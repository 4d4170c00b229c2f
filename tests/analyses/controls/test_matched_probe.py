from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.store.errors import InputError
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


def test_matching_on_the_norm_takes_a_norm_effect_away(norm_only: xr.Dataset) -> None:
    for method in ("bins", "nearest"):
        result = matched_probe(
            norm_only.sel(token=["last"]), statistics=("resid_post_l2",), method=method, bins=12, **QUIET
        )
        place = result.squeeze()
        assert result.accuracy.dims[-3:] == ("pair", "repeat", "sample")
        assert float(place.accuracy_mean.sel(sample="all")) > 0.62
        assert float(place.accuracy_mean.sel(sample="matched")) < float(place.accuracy_mean.sel(sample="all")) - 0.07
        assert float(place.gap) < -0.03
        assert float(place.balance.sel(balance_at="before")) > 0.4
        assert float(place.balance.sel(balance_at="after")) < 0.15
        assert (place.n_matched < 480).all()


def test_matching_on_the_norm_leaves_a_direction(real: xr.Dataset) -> None:
    result = matched_probe(real.isel(stage=[1]), statistics=("resid_post_l2",), bins=5, **QUIET).squeeze()
    assert float(result.accuracy_mean.sel(sample="matched")) > 0.75
    assert float(abs(result.gap)) < 0.1


def test_matched_probe_separates_entities_and_does_not_match_test_rows() -> None:
    ds = planted(stages=1, layers=1, groups=2, per_group=60, rows_per_entity=3, effect=0, entity_noise=8.0, d=100)
    ds = ds.assign(resid_post_l2=np.sqrt((ds.resid_post**2).sum("d_model")))
    result = matched_probe(ds, statistics=("resid_post_l2",), bins=3, **QUIET)
    assert abs(float(result.accuracy_mean.sel(sample="all").mean()) - 0.5) < 0.12
    tested = result.tested.isel(token=0, pair=0, sample=0).squeeze().values
    # Five splits test 24 entities each, with all three rows.
    assert tested.sum() == 5 * 24 * 3
    for entity in np.unique(ds.entity_id.values):
        assert len(np.unique(tested[ds.entity_id.values == entity])) == 1


def test_a_statistic_that_separates_the_classes_is_named(norm_only: xr.Dataset) -> None:
    group = np.unique(norm_only.trained_stage.values, return_inverse=True)[1]
    ds = norm_only.sel(token=["last"]).assign(age=("entity", group.astype("f4")))
    with pytest.raises(InputError, match="'age' separates the classes perfectly"):
        matched_probe(ds, statistics=("entropy", "age"), bins=4, **QUIET)
    result = matched_probe(ds, statistics=("entropy", "age"), bins=4, small="nan", **QUIET).squeeze()
    assert np.isnan(result.accuracy_mean.sel(sample="matched"))
    assert float(result.accuracy_mean.sel(sample="all")) > 0.6
    assert (result.n_matched == 0).all()
