"""The table of the best places, for probes, controls and projections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import stratalens as sl
import stratalens.analyses.accessor  # registers ds.strata
from stratalens.store.errors import InputError
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous"}
COLUMNS = ["stage", "layer", "token", "pair", "measure", "estimate", "low", "high", "null", "p", "p_max"]


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return planted(stages=2, layers=2, groups=3, per_group=24, effect=2.0)


def test_places_are_sorted_by_the_p_of_the_maximum_then_by_the_estimate(ds: xr.Dataset) -> None:
    probes = sl.probe(ds, permutations=39, **QUIET)
    table = probes.strata.best(8)
    assert list(table.columns) == COLUMNS
    assert len(table) == 8
    assert table.p_max.is_monotonic_increasing
    top = table.iloc[0]
    assert (top.stage, top.layer, top.pair, top.measure) == ("s3", 1, "s1 v s3", "accuracy")
    place = probes.sel(stage=top.stage, layer=top.layer, token=top.token, pair=top.pair)
    for column, name in (("estimate", "mean"), ("low", "low"), ("high", "high"), ("p", "p"), ("p_max", "p_max")):
        assert top[column] == float(place[f"accuracy_{name}"])
    same = table[table.p_max == table.p_max[0]].estimate
    assert same.is_monotonic_decreasing
    assert table.attrs["note"] == ""
    one = probes.isel(stage=1, layer=1, token=0, pair=0).strata.best()
    assert one.values.tolist()[0][:4] == ["s3", 1, "entity_last", "s1 v s2"]


def test_without_or_with_few_permutations_the_note_says_how_many_are_needed(ds: xr.Dataset) -> None:
    small = ds.isel(stage=[1], token=[0])
    none = sl.probe(small, method="ridge", **QUIET).strata.best(3)
    assert none.p.isna().all()
    assert none.p_max.isna().all()
    assert none.estimate.is_monotonic_decreasing
    assert "permutations=19 or more" in none.attrs["note"]
    few = sl.probe(small, method="ridge", permutations=9, **QUIET).strata.best(1)
    assert "cannot make the p of the maximum smaller than 0.1" in few.attrs["note"]
    assert "permutations=19" in few.attrs["note"]


@pytest.mark.parametrize(
    ("pairs", "measure"), [("rest", "balanced_accuracy"), ("multiclass", "accuracy"), ("ordinal", "r2")]
)
def test_every_kind_of_probe(ds: xr.Dataset, pairs: str, measure: str) -> None:
    table = sl.probe(ds, pairs=pairs, permutations=19, **QUIET).strata.best(2)
    assert (table.measure == measure).all()
    assert table.loc[0, ["stage", "layer"]].tolist() == ["s3", 1]
    assert table.p_max[0] == 0.05
    assert ((table.low < table.estimate) & (table.estimate < table.high)).all()


def test_results_of_other_analyses(ds: xr.Dataset) -> None:
    projected = sl.project(ds, permutations=50, bootstrap=20, progress=False).strata.best(2)
    assert projected.pair.isna().all()
    assert projected.stage[0] == "s3"
    assert projected.p_max.isna().all()
    assert "permutations=159" in projected.attrs["note"]
    joint = sl.probe(ds, tokens="joint", **QUIET).strata.best(1)
    assert joint.token[0] is None
    matched = sl.matched_probe(ds, statistics=("resid_post_l2",), bins=2, small="nan", **QUIET)
    assert len(matched.strata.best(3)) == 3


def test_what_has_no_best_place_is_refused(ds: xr.Dataset) -> None:
    for data in (ds, ds.resid_post, sl.centroids(ds, progress=False)):
        with pytest.raises(InputError, match="best needs the result of probe"):
            data.strata.best()
    with pytest.raises(InputError, match="at least one place"):
        sl.probe(ds.isel(stage=[1], layer=[1]), **QUIET).strata.best(0)


def test_places_without_a_number_are_left_out() -> None:
    ds = planted(stages=1, layers=2, groups=2, per_group=20, tokens=("a", "b"))
    x = ds.resid_post.values.copy()
    x[:, 0, :, 0] = 1.0
    table = sl.probe(ds.assign(resid_post=(ds.resid_post.dims, x)), **QUIET).strata.best(20)
    assert len(table) == 3
    assert not np.isnan(table.estimate).any()
