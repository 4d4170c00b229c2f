from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.controls.control_table import control_table
from stratalens.analyses.controls.controls import controls
from stratalens.analyses.probes.probe import probe

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
