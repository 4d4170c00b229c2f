"""`entity_loss` is a default statistic of the controls where every recorded row has it."""

import numpy as np
import xarray as xr

from stratalens.analyses.controls.statistic_values import Statistics


def dataset(missing: list[int], unrecorded: list[int]) -> xr.Dataset:
    loss = np.ones((2, 6), np.float32)
    recorded = np.ones((2, 6), bool)
    loss[:, missing], recorded[1, unrecorded] = np.nan, False
    loss[1, unrecorded] = np.nan
    return xr.Dataset(
        {
            "x": (("stage", "layer", "entity", "token", "d"), np.ones((2, 1, 6, 1, 3), np.float32)),
            "entity_loss": (("stage", "entity"), loss),
            "recorded": (("stage", "entity"), recorded),
        }
    )


def test_entity_loss_is_a_default_where_it_is_defined() -> None:
    assert "entity_loss" in Statistics(dataset([], []), "x").names
    assert "entity_loss" in Statistics(dataset([], [2, 3]), "x").names
    assert "entity_loss" not in Statistics(dataset([4], []), "x").names
    assert Statistics(dataset([4], []), "x", ["entity_loss"]).names == ["entity_loss"]
