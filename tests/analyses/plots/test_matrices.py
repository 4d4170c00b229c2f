"""Heat maps of pairs."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots.matrices import pair_matrix_spec, scalar_map_spec
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")
LAST = {"stage": "s3", "layer": 2, "token": "last"}


@pytest.fixture(scope="module")
def probes() -> xr.Dataset:
    return planted.probes(STAGES, 3)


def test_the_pair_matrix_marks_pairs_that_are_not_distinguishable_from_chance(probes: xr.Dataset) -> None:
    spec = pair_matrix_spec(probes)
    base = spec.tables({**LAST, "stage": "base"})
    assert base["verdicts"]["text"] == ["n.s."] * 3
    top = spec.tables(LAST)
    p = probes["accuracy_p"].sel(stage="s3", layer=2, token="last").values
    assert [t == "" for t in top["verdicts"]["text"]] == (p < 0.05).tolist()
    want = probes["accuracy"].sel(stage="s3", layer=2, token="last").mean("fold")
    np.testing.assert_allclose(top["pairs"]["value"], want)
    assert top["pairs"]["earlier"] == ["s1", "s1", "s2"]


def test_an_unknown_cell_is_empty() -> None:
    values = xr.DataArray([[0.5, np.nan]], dims=("stage", "layer"), coords={"stage": ["s1"], "layer": [0, 1]})
    spec = scalar_map_spec(values, "stage", "layer", "accuracy")
    assert spec.tables({})["numbers"]["text"] == ["0.50", ""]
