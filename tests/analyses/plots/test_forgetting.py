"""Forgetting: the numbers of the figure, compared with a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stratalens.analyses.plots.forgetting import (
    forgetting_spec,
    forgetting_table,
)
from stratalens.store.errors import InputError
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")


def test_forgetting_is_the_mean_over_entities_with_its_interval() -> None:
    ds = planted.recorded_store(STAGES, 1, ("last",), per_group=10)
    ids = ds["entity_id"].values.copy()
    ids[:5] = ids[0]  # five prompts about one entity count once
    ds = ds.assign_coords(entity_id=("entity", ids))
    table = forgetting_table(ds, statistic="loss").squeeze("token")
    loss = ds["loss"].sel(stage="s2", token="last").values[:10]
    entities = np.array([loss[:5].mean(), *loss[5:]])
    here = table.sel(stage="s2", group="s1")
    assert float(here["value"]) == pytest.approx(entities.mean())
    half = 1.96 * entities.std(ddof=1) / np.sqrt(6)
    assert float(here["high"] - here["value"]) == pytest.approx(half)
    assert float(here["exposure"]) == 1
    spec = forgetting_spec(table)
    drawn = spec.tables({})
    at = [
        i
        for i, row in enumerate(zip(drawn["means"]["group"], drawn["means"]["at"], strict=True))
        if row == ("s1", "s2")
    ]
    assert drawn["means"]["x"][at[0]] == 1
    assert drawn["means"]["y"][at[0]] == pytest.approx(entities.mean())
    taught = table.sel(stage=[s for s in STAGES if s != "base"])  # without the untrained model
    before = taught["value"].values[taught["exposure"].transpose(*taught["value"].dims).values < 0]
    assert drawn["before"]["y0"] == pytest.approx([before.mean()])
    alone = table.isel(
        stage=[0, 1], group=[2]
    )  # only the untrained model and one stage before the training of the group
    assert forgetting_spec(alone).tables({})["before"]["y0"] == pytest.approx([float(alone["value"][0, 1])])
    assert spec.y.label.startswith("mean loss (nats;")


def test_what_forgetting_refuses() -> None:
    ds = planted.recorded_store(STAGES, 1, ("last",))
    with pytest.raises(InputError, match="did you mean 'loss'"):
        forgetting_table(ds, statistic="los")
    with pytest.raises(InputError, match="groups that are stages"):
        forgetting_table(ds.drop_vars("exposure"), by="template")
