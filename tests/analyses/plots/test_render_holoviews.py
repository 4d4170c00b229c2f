"""HoloViews objects of every figure."""

from __future__ import annotations

from typing import get_type_hints

import holoviews as hv
import pytest

from stratalens.analyses import plots
from support import results as planted
from support.figures import FIGURES, STAGES, TOKEN


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_renders_with_bokeh(name: str) -> None:
    obj = FIGURES[name]()
    annotated = get_type_hints(getattr(plots, name, plots.stage_drift))["return"]  # as in the reference
    assert isinstance(obj, annotated)
    drawn = hv.render(obj, backend="bokeh")
    assert drawn.title.text
    if name not in ("loss_curves", "message"):
        assert any(word in drawn.title.text for word in ("stage", "layer", "token"))


@pytest.mark.parametrize("name", ["centroid_path", "layer_sweep", "entity_scatter"])
def test_the_legend_is_part_of_the_figure(name: str) -> None:
    obj = FIGURES[name]()
    drawn = hv.render(obj, backend="bokeh")
    (key,) = [legend for legend in drawn.legend if legend.name == "key"]
    assert key in drawn.below  # over the figure it would cover data
    assert [item.label.value for item in key.items] == list(obj.stratalens_spec.legend)
    wanted = [g for g in ("s1", "s2", "s3") if g in obj.stratalens_spec.legend]
    assert wanted == [g for g in obj.stratalens_spec.legend if g in wanted]  # in the order of training


def test_sliders_are_in_real_units() -> None:
    obj = plots.centroid_path(planted.projection(STAGES, 2), dynamic=True)
    assert [d.name for d in obj.kdims] == ["stage", "layer", "token"]
    assert list(obj.get_dimension("stage").values) == list(STAGES)
    frame = obj["s2", 1, "last"]
    assert "stage s2, layer 1, token last" in hv.render(frame).title.text


def test_many_slider_values_are_drawn_one_at_a_time() -> None:
    few = plots.layer_sweep(planted.probes(STAGES[:3], 2, TOKEN))
    assert isinstance(few, hv.HoloMap)
    assert not isinstance(few, hv.DynamicMap)
    many = plots.pair_matrix(planted.probes(STAGES, 13))
    assert isinstance(many, hv.DynamicMap)
    assert list(many.get_dimension("layer").values) == list(range(13))
