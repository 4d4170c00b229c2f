"""Specs before drawing: sliders, order, messages, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.plots.distributions import loss_curves_spec
from stratalens.analyses.plots.matrices import cosine_matrix_spec, pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.probes import control_comparison_spec, layer_sweep_spec
from stratalens.analyses.plots.spec import FigureSpec, plain_text
from stratalens.analyses.plots.stages import probe_generalisation_spec, stage_drift_spec
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.store.errors import InputError
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")
LAST = {"stage": "s3", "layer": 2, "token": "last"}


@pytest.fixture(scope="module")
def projection() -> xr.Dataset:
    return planted.projection(STAGES, 3)


@pytest.mark.parametrize(
    ("narrow", "sliders", "fixed"),
    [
        ({"stage": "s3"}, ["layer", "token"], {"stage": "s3"}),
        ({"stage": ["s3"], "token": "last"}, ["layer"], {"stage": "s3", "token": "last"}),
        ({"stage": "s3", "layer": 2, "token": "last"}, [], LAST),
    ],
)
def test_dims_with_several_values_become_sliders_and_the_others_are_in_the_title(
    projection: xr.Dataset, narrow: dict[str, Any], sliders: list[str], fixed: dict[str, Any]
) -> None:
    spec = centroid_path_spec(projection.sel(narrow))
    assert list(spec.sliders) == sliders
    assert dict(spec.fixed) == fixed
    heading = spec.heading(spec.default_values())
    assert "resid_post" in heading
    assert "stage s3, layer 2, token last" in heading
    assert len(spec.tables(spec.default_values())["centroids"]["x"]) == 3


MESSAGES: dict[str, Callable[[], FigureSpec]] = {
    "two recorded stages": lambda: stage_drift_spec(planted.centroids(("model",), 1)),
    "two groups": lambda: centroid_path_spec(planted.projection(STAGES, 1).isel(group=[0])),
    "no layers": lambda: layer_sweep_spec(planted.probes(STAGES, 1).isel(layer=0, drop=True)),
    "two directions": lambda: cosine_matrix_spec(
        planted.cosines(planted.probes(STAGES, 1)).isel(pair=[0], pair_other=[0])
    ),
    "No controls": lambda: control_comparison_spec({}),
    "No training losses": lambda: loss_curves_spec(planted.losses().iloc[:0]),
    "no finite loss": lambda: scalar_map_spec(planted.projection(STAGES, 2)["r2"] * np.nan, "stage", "layer", "loss"),
}


@pytest.mark.parametrize("words", MESSAGES)
def test_where_there_is_nothing_to_draw_the_figure_says_why(words: str) -> None:
    spec = MESSAGES[words]()
    assert words in " ".join(spec.tables({})["message"]["text"])


def test_one_stage_and_one_layer_draw_without_a_slider() -> None:
    for spec in (
        layer_sweep_spec(planted.probes(("model",), 1, ("last",))),
        pair_matrix_spec(planted.probes(("model",), 1, ("last",))),
        centroid_path_spec(planted.projection(("model",), 1, ("last",))),
        scalar_map_spec(planted.projection(("model",), 1, ("last",))["r2"], "stage", "layer", "r2"),
    ):
        assert not spec.sliders
        assert all(len(t) for t in spec.tables({}).values())


REFUSALS: dict[str, Callable[[], Any]] = {
    r"centroid_path needs a Dataset with 'coordinate'.*sl.project": lambda: centroid_path_spec(planted.centroids()),
    r"cosine_matrix needs dims": lambda: cosine_matrix_spec(planted.projection()["r2"]),
    r"needs a dim 'group'": lambda: probe_generalisation_spec(planted.projection()["r2"]),
    r"stage, step and loss; missing: loss": lambda: loss_curves_spec(planted.losses().drop(columns="loss")),
    r"no statistic 'l3'": lambda: statistic_quantiles(planted.recorded_store(STAGES), statistics=["l3"]),
    r"no layer 99 .*Valid": lambda: centroid_path_spec(planted.projection(STAGES)).tables({**LAST, "layer": 99}),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_is_refused(message: str) -> None:
    with pytest.raises(InputError, match=message):
        REFUSALS[message]()


def test_groups_and_stages_are_ordered_by_training_not_by_name() -> None:
    stages = ("untrained", "zebra", "apple", "mango")
    assert group_names(planted.probes(stages, 1)) == ["zebra", "apple", "mango"]
    assert result_order(planted.projection(stages, 1)) == (["zebra", "apple", "mango"], ["untrained"])
    shuffled = planted.projection(stages, 1).isel(stage=[2, 0, 3, 1])
    assert centroid_path_spec(shuffled).sliders["stage"] == list(stages)


@given(st.text(max_size=200))
def test_names_become_printable_short_and_never_tex(name: str) -> None:
    text = plain_text(name)
    assert len(text) <= 60
    assert text.isprintable() or "\u200b" in text
    assert not any(mark in text for mark in ("$$", "\\(", "\\["))
