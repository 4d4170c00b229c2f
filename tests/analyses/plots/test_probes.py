"""Probe scores by layer, and a probe next to its controls."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots.probes import control_comparison_spec, layer_sweep_spec
from stratalens.store.errors import InputError
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")
LAST = {"stage": "s3", "layer": 2, "token": "last"}


@pytest.fixture(scope="module")
def probes() -> xr.Dataset:
    return planted.probes(STAGES, 3)


def test_the_sweep_draws_every_pair_its_null_and_bold_intervals(probes: xr.Dataset) -> None:
    spec = layer_sweep_spec(probes)
    tables = spec.tables({"stage": "s3", "token": "last"})
    series = tables["main_points"]["series"] + tables["pair_points"]["series"]
    assert set(series) == {"s1 v s2", "s1 v s3", "s2 v s3", "mean of all pairs"}
    assert set(tables["null"]["y0"]) == {0.5}
    assert len(tables["intervals"]["x0"]) == 2 * 3
    first = [i for i, s in enumerate(tables["main_points"]["series"]) if s == "s1 v s3"]
    want = probes["accuracy"].sel(stage="s3", token="last", pair="s1 v s3").mean("fold")
    np.testing.assert_allclose(np.array(tables["main_points"]["y"])[first], want)


def test_controls_are_compared_where_all_of_them_are(probes: xr.Dataset) -> None:
    few = probes.isel(stage=[-1]).sel(pair=["s1 v s3"])
    spec = control_comparison_spec({"probe": probes, "one pair": few, "no layer": few.isel(layer=0, drop=True)})
    assert list(spec.sliders) == ["layer", "token"]
    assert spec.fixed["stage"] == "s3"
    table = spec.tables({"layer": 2, "token": "last"})
    value = float(few["accuracy"].isel(stage=0, layer=2, pair=0).sel(token="last").mean())
    first = float(few["accuracy"].isel(stage=0, layer=0, pair=0).sel(token="last").mean())
    np.testing.assert_allclose(table["pair"]["x"], [value, value, first])
    assert "mean" not in table


def test_a_matched_probe_has_a_row_for_each_sample(probes: xr.Dataset) -> None:
    spec = control_comparison_spec({"activations": probes, "matched": planted.matched(probes)})
    rows = spec.tables(LAST)["mean"]["row"]
    assert rows == ["activations", "matched: all", "matched: matched", "matched: random subsample"]


def test_controls_without_a_stage_or_pair_in_common_are_refused(probes: xr.Dataset) -> None:
    with pytest.raises(InputError, match="no stage in common"):
        control_comparison_spec({"a": probes.isel(stage=[0]), "b": probes.isel(stage=[1])})
    with pytest.raises(InputError, match="no pair in common"):
        control_comparison_spec({"a": probes.isel(pair=[0]), "b": probes.isel(pair=[1])})
    with pytest.raises(InputError, match=r"no pair 's9 v s1'.*s1 v s2"):
        control_comparison_spec({"a": probes}, pair="s9 v s1")
