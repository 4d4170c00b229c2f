"""Data of a figure for a page without Python."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots.matrices import pair_matrix_spec
from stratalens.analyses.plots.render_bokeh import page_frames
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")


@pytest.fixture(scope="module")
def probes() -> xr.Dataset:
    return planted.probes(STAGES, 3)


def test_frames_have_every_combination_once_and_round_to_four_digits(probes: xr.Dataset) -> None:
    spec = pair_matrix_spec(probes)
    got = page_frames(spec)
    assert got["places"] == 4 * 3 * 2 == len(got["vary"]["pairs"]["value"])
    assert set(got["same"]["pairs"]) >= {"x0", "earlier"}
    for i, slider_values in enumerate(spec.all_slider_values()):
        np.testing.assert_allclose(
            got["vary"]["pairs"]["value"][i], spec.tables(slider_values)["pairs"]["value"], rtol=1e-3
        )


def test_the_sliders_start_at_the_token_called_last_whatever_its_position() -> None:
    spec = pair_matrix_spec(planted.probes(STAGES, 2, ("last", "entity_last")))
    assert spec.default_values() == {"stage": "s3", "layer": 1, "token": "last"}
    assert [s["start"] for s in page_frames(spec)["sliders"]] == [3, 1, 0]
