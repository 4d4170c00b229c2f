from __future__ import annotations

from typing import Any

import pytest
import xarray as xr

from stratalens.analyses.controls.control_table import control_table
from stratalens.analyses.controls.controls import baseline_probe, controls
from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.store.errors import InputError
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


@pytest.mark.parametrize("baseline", ["random_direction", "shuffled_label", "shuffled_entity"])
def test_baselines_know_nothing(baseline: str) -> None:
    ds = planted(stages=1, layers=1, groups=3, per_group=120, effect=0.0, d=12, tokens=("last",))
    result = baseline_probe(ds, baseline=baseline, directions=5, **QUIET)
    assert abs(float(result.accuracy_mean.mean()) - 0.5) < 0.06
    assert (result.accuracy_low <= result.accuracy_mean).all()
    strong = planted(stages=1, layers=1, groups=2, per_group=120, effect=6.0, d=12, tokens=("last",))
    shuffled = baseline_probe(strong, baseline=baseline, directions=5, **QUIET)
    assert float(shuffled.accuracy_mean.squeeze()) < (0.95 if baseline == "random_direction" else 0.62)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds: statistics_probe(ds, statistics=("los",), **QUIET), "did you mean 'loss'"),
        (lambda ds: statistics_probe(ds, model="trees", **QUIET), "boosting"),
        (lambda ds: matched_probe(ds, bins=1000, **QUIET), "between 1 and"),
        (lambda ds: matched_probe(ds, method="exact", **QUIET), "nearest"),
        (lambda ds: matched_probe(ds, pairs="ordinal", **QUIET), "cannot be matched"),
        (lambda ds: residual_probe(ds, kind="cubic", **QUIET), "spline"),
        (lambda ds: residual_probe(ds, C=[1.0, 2.0], folds=2, **QUIET), "at least 3 folds"),
        (lambda ds: controls(ds, which=("match",), **QUIET), "did you mean 'matched'"),
        (lambda ds: control_table({}), "not among the results"),
        (lambda ds: baseline_probe(ds, baseline="random", **QUIET), "random_direction"),
    ],
)
def test_refusals(norm_only: xr.Dataset, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(norm_only)
