from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.data.results import boosting_result
from support.planted import confounded

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 200}


def test_statistics_alone_find_their_own_effect(norm_only: xr.Dataset) -> None:
    result = statistics_probe(norm_only, statistics=("resid_post_l2", "loss"), **QUIET)
    assert result.used.squeeze().values.tolist() == [[True, False], [True, True]]
    assert result.coef.dims[-1] == "statistic"
    assert float(result.accuracy_mean.sel(token="entity_last").squeeze()) > 0.6
    assert float(result.accuracy_mean.sel(token="last").squeeze()) > 0.75
    noise = statistics_probe(norm_only, statistics=("entropy",), **QUIET)
    assert "layer" not in noise.dims
    assert (noise.accuracy_low <= 0.5).all()


def test_boosting_finds_a_nonlinear_effect() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 150)
    value = np.where(group, rng.choice([-2.0, 2.0], 300), 0) + 0.3 * rng.normal(size=300)
    ds = xr.Dataset(
        {"surprise": (("entity", "token"), value[:, None])},
        coords={"colour": ("entity", np.array(["red", "blue"], object)[group])},
    )
    line, trees = (statistics_probe(ds, "colour", ("surprise",), m, **QUIET) for m in ("logistic", "boosting"))
    assert float(line.accuracy_mean.squeeze()) < 0.65
    assert float(trees.accuracy_mean.squeeze()) > 0.95
    assert "coef" not in trees


def test_statistics_are_computed_where_they_are_missing(norm_only: xr.Dataset) -> None:
    stored = statistics_probe(norm_only, statistics=("resid_post_l2",), **QUIET)
    computed = statistics_probe(norm_only.drop_vars("resid_post_l2"), statistics=("resid_post_l2",), **QUIET)
    np.testing.assert_allclose(stored.accuracy, computed.accuracy)
    np.testing.assert_allclose(stored.score, computed.score, atol=1e-3)


@pytest.mark.parametrize("kind", ["spread", "product"])
def test_boosting_beside_the_logistic_finds_what_it_misses(kind: str) -> None:
    ds = confounded(kind)
    result = statistics_probe(ds, "age", ds.statistics, **QUIET)
    assert float(result.accuracy_low.squeeze()) < 0.5
    assert float(result.boosting_accuracy_low.squeeze()) > 0.52
    alone = statistics_probe(ds, "age", ds.statistics, "boosting", **QUIET)
    own = boosting_result(result)
    assert own is not None
    np.testing.assert_array_equal(own.accuracy_mean, alone.accuracy_mean)
    assert boosting_result(alone) is None
    assert boosting_result(statistics_probe(ds, "age", ds.statistics, "logistic", **QUIET)) is None


def test_several_classes_have_no_boosting() -> None:
    ds = confounded("shift", 60)
    result = statistics_probe(ds, "age", ds.statistics, pairs="multiclass", **QUIET)
    assert not [name for name in result.data_vars if str(name).startswith("boosting")]
