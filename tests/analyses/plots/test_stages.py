"""Drift and forgetting: the numbers of the figures, compared with a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stratalens.analyses.directions.directions import stage_steps
from stratalens.analyses.plots.stages import (
    direction_drift_spec,
    forgetting_spec,
    forgetting_table,
    stage_drift_spec,
)
from stratalens.store.errors import InputError
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")


def test_cosines_are_those_with_the_reference_stage() -> None:
    probes = planted.probes(STAGES, 2, ("last",))
    shuffled = probes.isel(stage=[2, 0, 3, 1])  # drawn in training order whatever the order of the data
    for reference, index in (("last", 3), ("first", 0)):
        spec = direction_drift_spec(shuffled, reference)  # type: ignore[arg-type]
        assert [t for _, t in spec.x.ticks or ()] == list(STAGES)
        table = spec.tables({"layer": 1})["cosines"]
        coef = probes["coef"].sel(layer=1, token="last").values  # (stage, pair, d_model)
        unit = coef / np.linalg.norm(coef, axis=-1, keepdims=True)
        want = (unit * unit[index]).sum(-1).T
        np.testing.assert_allclose(np.reshape(table["y"], want.shape), want, atol=1e-12)
    band = spec.tables({"layer": 1})["chance"]["y1"]
    assert band == pytest.approx([-1.96 / 4, 1.96 / 4])  # sixteen features


def test_one_stage_and_an_unknown_reference() -> None:
    probes = planted.probes(STAGES, 1, ("last",))
    assert "two recorded stages" in direction_drift_spec(probes.isel(stage=[0])).message
    with pytest.raises(InputError, match="did you mean 'last'"):
        direction_drift_spec(probes, "lst")  # type: ignore[arg-type]


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


def test_drift_is_the_distance_from_the_stage_before() -> None:
    centroids = planted.centroids(STAGES, 2)
    c = centroids["centroid"]
    moved = np.linalg.norm(c.isel(stage=2).values - c.isel(stage=1).values, axis=-1)
    size = np.linalg.norm(c.isel(stage=2).values, axis=-1).mean(-1, keepdims=True)
    np.testing.assert_allclose(stage_steps(centroids).sel(stage="s2").values, moved / size)
    shuffled = centroids.isel(stage=[2, 0, 3, 1])
    np.testing.assert_allclose(stage_steps(shuffled).sel(stage="s2").values, moved / size)
    own = stage_drift_spec(centroids).tables({"layer": 1, "token": "last"})["own"]
    assert own["at"] == own["group"] == ["s1", "s2", "s3"]
