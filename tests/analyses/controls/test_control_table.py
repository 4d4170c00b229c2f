from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.controls.control_table import control_table
from stratalens.analyses.controls.controls import controls
from stratalens.analyses.probes.probe import probe
from support.planted import confounded

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


def test_the_table_shows_the_effect_that_is_left(real: xr.Dataset) -> None:
    which = ("probe", "normalized", "statistics", "matched", "residual_linear", "shuffled_entity")
    results = controls(real, which=which, matched_on=("resid_post_l2",), bins=4, **QUIET)
    table = control_table(results, resamples=200)
    names = table.control.values.tolist()
    assert names[:3] == ["probe", "normalized", "statistics"]
    assert {"matched: matched", "matched: random_subsample", "untrained_stage"} <= set(names)
    end = table.isel(stage=1).squeeze()
    assert float(end.left.sel(control="probe")) == 1
    assert float(end.lost.sel(control="probe")) == 0
    assert float(end.left_low.sel(control="normalized")) > 0.7
    assert float(end.left.sel(control="shuffled_entity")) < 0.4
    assert float(end.left_high.sel(control="untrained_stage")) < 0.6
    inside = (end.accuracy_low <= end.accuracy + 1e-9) & (end.accuracy <= end.accuracy_high + 1e-9)
    assert inside.all()
    assert np.isnan(table.left.isel(stage=0).sel(control="probe")).all(), "without an effect there is no share"
    direct = probe(real, **QUIET)
    np.testing.assert_allclose(table.accuracy.sel(control="probe"), direct.accuracy_mean)


def test_unequal_classes_are_compared_by_their_auc() -> None:
    """The statistic is irrelevant, so that all of the effect is left."""
    ds = confounded("shift", 320, real=2.0, seed=1)
    ds = ds.isel(entity=np.r_[0:320, 320:400])
    which = ("probe", "matched", "weighted", "statistics", "random_direction", "shuffled_entity")
    results = controls(ds, "age", ("n0",), which=which, matched_on=("n0",), bins=3, **QUIET)
    table = control_table(results, resamples=200).squeeze()
    assert table.attrs["measure"] == "auc"
    left = table.left
    for name in ("matched: matched", "matched: random_subsample", "matched: matched, unmatched test rows", "weighted"):
        assert 0.8 < float(left.sel(control=name)) < 1.15, name
    assert abs(float(left.sel(control="shuffled_entity"))) < 0.35
    assert float(left.sel(control="statistics")) < 0.3
    assert np.isclose(float(table.auc.sel(control="probe")), float(results["probe"].auc.mean()), atol=0.02)
    assert table.matched_on.sel(control="matched: matched").item() == "n0"


@pytest.mark.parametrize("kind", ["shift", "product"])
def test_nothing_of_a_pure_confound_is_left(kind: str) -> None:
    ds = confounded(kind, 400)
    which = ("probe", "statistics", "statistics_boosting", "weighted", "conditional")
    results = controls(ds, "age", ds.statistics, which=which, permutations=19, **QUIET)
    table = control_table(results, resamples=200).squeeze()
    assert table.attrs["measure"] == "accuracy"
    for name in ("weighted", "conditional"):
        assert float(table.left.sel(control=name)) < 0.5
        assert float(table.left_low.sel(control=name)) <= 0.1
        assert float(table.lost_low.sel(control=name)) > -0.05
    assert float(table.null.sel(control="conditional")) > 0.55
    assert float(table.lost.sel(control="probe")) == 0
