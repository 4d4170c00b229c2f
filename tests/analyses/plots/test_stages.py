"""Drift over stages: the numbers of the figures, compared with a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stratalens.analyses.directions.directions import stage_steps
from stratalens.analyses.plots.stages import (
    direction_drift_spec,
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
