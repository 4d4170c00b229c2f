"""Recorded statistics by group, and training loss."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots.distributions import statistic_distributions_spec
from stratalens.analyses.stats.quantiles import statistic_quantiles
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")


@pytest.fixture(scope="module")
def store() -> xr.Dataset:
    return planted.recorded_store(STAGES, 3)


def test_quantiles_are_those_of_numpy_on_standardised_rows(store: xr.Dataset) -> None:
    got = statistic_quantiles(store, statistics=["loss", "resid_post_l2"])
    rows = store["resid_post_l2"].sel(stage="s2", layer=1, token="last")
    z = (rows - rows.mean()) / rows.std()
    mine = z.values[store["trained_stage"].values == "s3"]
    want = np.quantile(mine, [0.05, 0.25, 0.5, 0.75, 0.95])
    here = got["quantile"].sel(statistic="resid_post_l2", stage="s2", layer=1, token="last", group="s3")
    np.testing.assert_allclose(here.values, want)
    spec = statistic_distributions_spec(got)
    assert {t for _, t in spec.x.ticks or ()} == {"loss", "resid_post_l2"}


def test_losses_counted_from_each_stages_start_stand_in_a_row() -> None:
    from stratalens.analyses.plots.distributions import loss_curves_spec

    losses = planted.losses(STAGES, 5)
    through = loss_curves_spec(losses).tables({})["steps"]["x"]
    restarted = losses.assign(step=losses.groupby("stage", sort=False).cumcount() + 1)
    again = loss_curves_spec(restarted).tables({})["steps"]["x"]
    np.testing.assert_allclose(np.asarray(again) - 1, through)
