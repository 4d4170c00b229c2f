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
        place = result.squeeze().sel(scored="unmatched")
        assert result.accuracy.dims[-4:] == ("pair", "repeat", "sample", "scored")
        assert float(place.accuracy_mean.sel(sample="all")) > 0.62
        assert float(place.accuracy_mean.sel(sample="matched")) < float(place.accuracy_mean.sel(sample="all")) - 0.07
        assert float(place.gap) < -0.03
        own = place.balance.sel(statistic="resid_post_l2")
        assert float(own.sel(balance_at="before")) > 0.4
        assert float(own.sel(balance_at="after")) < 0.15
        assert (place.n_matched < 480).all()


def test_matching_on_the_norm_leaves_a_direction(real: xr.Dataset) -> None:
    result = matched_probe(real.isel(stage=[1]), statistics=("resid_post_l2",), bins=5, **QUIET).squeeze()
    result = result.sel(scored="matched")
    assert float(result.accuracy_mean.sel(sample="matched")) > 0.75
    assert float(abs(result.gap)) < 0.1


def test_matched_probe_separates_entities_and_tests_every_row_unmatched() -> None:
    ds = planted(stages=1, layers=1, groups=2, per_group=60, rows_per_entity=3, effect=0, entity_noise=8.0, d=100)
    ds = ds.assign(resid_post_l2=np.sqrt((ds.resid_post**2).sum("d_model")))
    result = matched_probe(ds, statistics=("resid_post_l2",), bins=3, **QUIET)
    assert abs(float(result.accuracy_mean.sel(sample="all", scored="unmatched").mean()) - 0.5) < 0.12
    tested = result.tested.sel(scored="unmatched").isel(token=0, pair=0, sample=0).squeeze().values
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
    assert np.isnan(result.accuracy_mean.sel(sample="matched")).all()
    assert float(result.accuracy_mean.sel(sample="all", scored="unmatched")) > 0.6
    assert float(result.support) < 0.02
    assert (result.n_matched == 0).all()


@pytest.mark.parametrize("method", ["bins", "nearest"])
def test_the_rest_of_a_confound_is_no_effect_on_matched_test_rows(method: str) -> None:
    """Nothing is left given the loss; a difference of a tenth of a deviation is left in the training rows."""
    rng = np.random.default_rng(0)
    n = 1500
    y = np.repeat([0, 1], n)
    loss = rng.normal(size=2 * n) + y
    x = 0.5 * rng.normal(size=(2 * n, 16))
    x[:, 0] += loss
    ds = xr.Dataset(
        {"resid_post": (("entity", "token", "d_model"), x[:, None].astype("f4")), "loss": ("entity", loss)},
        coords={"age": ("entity", np.array(["new", "old"], object)[y])},
    )
    result = matched_probe(ds, "age", ("loss",), method, bins=5, **QUIET).squeeze().sel(sample="matched")
    matched, unmatched = (result.sel(scored=rows) for rows in ("matched", "unmatched"))
    assert abs(float(matched.accuracy_mean) - 0.5) < 0.04
    assert float(matched.accuracy_low) < 0.5
    assert float(matched.auc_low) < 0.5
    if method == "bins":
        assert float(unmatched.accuracy_low) > 0.52
    assert float(matched.chance) == 0.5
    assert (result.n_matched_test > 200).all()


def test_the_balance_of_statistics_that_are_not_matched_is_reported() -> None:
    """The label is decided by a statistic that the default does not match."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 150)
    running = 4 * y + 0.3 * rng.normal(size=300)
    x = rng.normal(size=(300, 16))
    x[:, 0] += 0.5 * running
    ds = xr.Dataset(
        {
            "resid_post": (("entity", "token", "d_model"), x[:, None].astype("f4")),
            "loss": ("entity", rng.normal(size=300)),
            "entropy": ("entity", rng.normal(size=300)),
            "running_loss": ("entity", running),
        },
        coords={"age": ("entity", np.array(["new", "old"], object)[y])},
    )
    result = matched_probe(ds, "age", bins=3, **QUIET).squeeze()
    assert result.attrs["statistics"] == ["resid_post_l2", "loss", "entropy"]
    assert result.statistic[result.matched].values.tolist() == ["resid_post_l2", "loss", "entropy"]
    after = result.balance.sel(balance_at="after")
    assert float(after.sel(statistic="running_loss")) > 5
    assert (after[result.matched.values] < 0.3).all()
    assert float(result.support) < 0.02


def test_too_few_matched_test_rows_have_no_number() -> None:
    ds = planted(stages=1, layers=1, groups=2, per_group=40, effect=2.0, tokens=("last",))
    loss = np.random.default_rng(0).normal(size=80) + 1.6 * (ds.trained_stage.values == "s2")
    result = matched_probe(ds.assign(loss=("entity", loss)), statistics=("loss",), bins=4, repeats=2, **QUIET).squeeze()
    assert int(result.n_matched_test.sum()) < 20
    assert np.isnan(result.accuracy_mean.sel(scored="matched")).all()
    assert np.isfinite(result.accuracy_mean.sel(scored="unmatched")).all()
