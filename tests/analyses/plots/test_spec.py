"""What figures say before they are drawn: numbers, places, colours, messages, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.directions.directions import stage_steps
from stratalens.analyses.plots import entity_scatter
from stratalens.analyses.plots.centroids import centroid_path_spec, entity_plane
from stratalens.analyses.plots.colors import colors_at, ramp, stage_colors, text_color_on
from stratalens.analyses.plots.distributions import loss_curves_spec, statistic_distributions_spec
from stratalens.analyses.plots.matrices import cosine_matrix_spec, pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.probes import control_comparison_spec, layer_sweep_spec
from stratalens.analyses.plots.render_bokeh import page_frames
from stratalens.analyses.plots.spec import FigureSpec, plain_text
from stratalens.analyses.plots.stages import probe_generalisation_spec, stage_drift_spec
from stratalens.analyses.stats.estimates import corrected_half_width, differs_from_null, estimate, pair_mean
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.store.errors import InputError
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")
LAST = {"stage": "s3", "layer": 2, "token": "last"}


@pytest.fixture(scope="module")
def probes() -> xr.Dataset:
    return planted.probes(STAGES, 3)


@pytest.fixture(scope="module")
def projection() -> xr.Dataset:
    return planted.projection(STAGES, 3)


@pytest.fixture(scope="module")
def store() -> xr.Dataset:
    return planted.recorded_store(STAGES, 3)


def test_the_path_shows_the_coordinates_at_a_place(projection: xr.Dataset) -> None:
    spec = centroid_path_spec(projection)
    assert list(spec.sliders) == ["stage", "layer", "token"]
    assert spec.default_values() == LAST
    table = spec.tables(LAST)["centroids"]
    want = projection["coordinate"].sel(stage="s3", layer=2, token="last")
    np.testing.assert_allclose(table["x"], want.sel(component="w1"))
    np.testing.assert_allclose(table["y"], want.sel(component="w2"))
    assert table["group"] == ["s1", "s2", "s3"]
    x0, x1, y0, y1 = spec.limits(LAST)
    low, high = projection["coordinate_low"], projection["coordinate_high"]
    assert x0 < float(low.sel(stage="s3", layer=2, token="last").min("group").sel(component="w1"))
    assert x1 > float(high.sel(stage="s3", layer=2, token="last").max("group").sel(component="w1"))
    assert (y1 - y0) >= 0.6 * (x1 - x0) * 0.999  # w2 is not blown up


@pytest.mark.parametrize(
    ("narrow", "sliders", "fixed"),
    [
        ({"stage": "s3"}, ["layer", "token"], {"stage": "s3"}),
        ({"stage": ["s3"], "token": "last"}, ["layer"], {"stage": "s3", "token": "last"}),
        ({"stage": "s3", "layer": 2, "token": "last"}, [], LAST),
    ],
)
def test_what_is_left_of_the_dims_becomes_a_slider_and_the_rest_the_title(
    projection: xr.Dataset, narrow: dict[str, Any], sliders: list[str], fixed: dict[str, Any]
) -> None:
    spec = centroid_path_spec(projection.sel(narrow))
    assert list(spec.sliders) == sliders
    assert dict(spec.fixed) == fixed
    heading = spec.heading(spec.default_values())
    assert "resid_post" in heading
    assert "stage s3, layer 2, token last" in heading
    assert len(spec.tables(spec.default_values())["centroids"]["x"]) == 3


def test_a_site_without_layers_still_makes_a_path(projection: xr.Dataset) -> None:
    spec = centroid_path_spec(projection.isel(layer=0, drop=True))
    assert list(spec.sliders) == ["stage", "token"]


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


def test_the_sweep_draws_every_pair_its_null_and_bold_intervals(probes: xr.Dataset) -> None:
    spec = layer_sweep_spec(probes)
    tables = spec.tables({"stage": "s3", "token": "last"})
    series = tables["main_points"]["series"] + tables["pair_points"]["series"]
    assert set(series) == {"s1 v s2", "s1 v s3", "s2 v s3", "mean of all pairs"}
    assert set(tables["null"]["y0"]) == {0.5}
    assert len(tables["intervals"]["x0"]) == 2 * 3
    first = [i for i, s in enumerate(tables["main_points"]["series"]) if s == "s1 v s3"]
    want = probes["accuracy"].sel(stage="s3", token="last", pair="s1 v s3").mean("fold")
    np.testing.assert_allclose(np.array(tables["main_points"]["y"])[first], want)


def test_controls_are_compared_where_all_of_them_are(probes: xr.Dataset) -> None:
    few = probes.isel(stage=[-1]).sel(pair=["s1 v s3"])
    spec = control_comparison_spec({"probe": probes, "one pair": few, "no layer": few.isel(layer=0, drop=True)})
    assert list(spec.sliders) == ["layer", "token"]
    assert spec.fixed["stage"] == "s3"
    table = spec.tables({"layer": 2, "token": "last"})
    value = float(few["accuracy"].isel(stage=0, layer=2, pair=0).sel(token="last").mean())
    first = float(few["accuracy"].isel(stage=0, layer=0, pair=0).sel(token="last").mean())
    np.testing.assert_allclose(table["pair"]["x"], [value, value, first])
    assert "mean" not in table


def test_a_matched_probe_has_a_row_for_each_sample(probes: xr.Dataset) -> None:
    spec = control_comparison_spec({"activations": probes, "matched": planted.matched(probes)})
    rows = spec.tables(LAST)["mean"]["row"]
    assert rows == ["activations", "matched: all", "matched: matched", "matched: random subsample"]


def test_controls_without_a_place_in_common_are_refused(probes: xr.Dataset) -> None:
    with pytest.raises(InputError, match="no stage in common"):
        control_comparison_spec({"a": probes.isel(stage=[0]), "b": probes.isel(stage=[1])})
    with pytest.raises(InputError, match="no pair in common"):
        control_comparison_spec({"a": probes.isel(pair=[0]), "b": probes.isel(pair=[1])})
    with pytest.raises(InputError, match=r"no pair 's9 v s1'.*s1 v s2"):
        control_comparison_spec({"a": probes}, pair="s9 v s1")


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


def test_the_plane_holds_only_entities_that_the_axes_were_not_made_from(store: xr.Dataset) -> None:
    plane = entity_plane(store, stage="s3", layer=2, token="last")
    assert 0 < plane.sizes["entity"] < store.sizes["entity"]
    other = entity_plane(store, seed=1, stage="s3", layer=2, token="last")
    assert set(plane["entity"].values) != set(other["entity"].values)
    means = plane["coordinate"].sel(component="w1").groupby("group").mean()
    assert means.sel(group="s3") > means.sel(group="s1")  # planted
    with pytest.raises(InputError, match=r"no layer 7"):
        entity_plane(store, layer=7)
    assert "stage s3" in str(entity_scatter(plane).opts.get("plot").kwargs["title"])


MESSAGES: dict[str, Callable[[], FigureSpec]] = {
    "two recorded stages": lambda: stage_drift_spec(planted.centroids(("model",), 1)),
    "two groups": lambda: centroid_path_spec(planted.projection(STAGES, 1).isel(group=[0])),
    "no layers": lambda: layer_sweep_spec(planted.probes(STAGES, 1).isel(layer=0, drop=True)),
    "two directions": lambda: cosine_matrix_spec(
        planted.cosines(planted.probes(STAGES, 1)).isel(pair=[0], pair_other=[0])
    ),
    "No controls": lambda: control_comparison_spec({}),
    "No training losses": lambda: loss_curves_spec(planted.losses().iloc[:0]),
    "no finite loss": lambda: scalar_map_spec(
        planted.projection(STAGES, 2)["r2"] * np.nan, "stage", "layer", "loss"
    ),
}  # fmt: skip


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


def test_a_stage_has_one_colour_in_every_figure(probes: xr.Dataset, projection: xr.Dataset) -> None:
    path = dict(centroid_path_spec(projection).legend)
    drift = dict(stage_drift_spec(planted.centroids(STAGES, 2)).legend)
    some = dict(centroid_path_spec(projection.isel(group=[0, 2])).legend)
    assert path == drift
    assert some == {k: path[k] for k in ("s1", "s3")}
    sweep = layer_sweep_spec(probes).legend
    assert sweep["s1 v s3"] == path["s3"]


def test_groups_and_stages_are_ordered_by_training_not_by_name() -> None:
    stages = ("untrained", "zebra", "apple", "mango")
    assert group_names(planted.probes(stages, 1)) == ["zebra", "apple", "mango"]
    assert result_order(planted.projection(stages, 1)) == (["zebra", "apple", "mango"], ["untrained"])
    shuffled = planted.projection(stages, 1).isel(stage=[2, 0, 3, 1])
    assert centroid_path_spec(shuffled).sliders["stage"] == list(stages)


def luminance(color: str) -> float:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@given(st.integers(2, 12))
def test_ramps_get_lighter_and_stand_out_from_their_page(n: int) -> None:
    light, dark = ramp(n), ramp(n, dark=True)
    for colors in (light, dark):
        values = [luminance(c) for c in colors]
        assert values == sorted(values)
        assert len(set(colors)) == n
    assert 1.05 / (max(map(luminance, light)) + 0.05) > 2.5
    assert (min(map(luminance, dark)) + 0.05) / (luminance("#1a1d23") + 0.05) > 2.0
    assert stage_colors(["a"], [str(i) for i in range(n)], ["a"]) == {"a": "#6f6f6f"}


@given(st.floats(0, 1))
def test_ink_is_readable_on_every_cell(value: float) -> None:
    (color,) = colors_at(np.array([value]), 0.0, 1.0)
    a, b = luminance(color), luminance(text_color_on(color))
    assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 4.5


@given(st.text(max_size=200))
def test_names_become_printable_short_and_never_tex(name: str) -> None:
    text = plain_text(name)
    assert len(text) <= 60
    assert text.isprintable() or "\u200b" in text
    assert not any(mark in text for mark in ("$$", "\\(", "\\["))


@given(st.integers(2, 8), st.integers(0, 1000))
def test_the_corrected_interval_is_that_of_nadeau_and_bengio(k: int, seed: int) -> None:
    values = np.random.default_rng(seed).random(k)
    got = float(corrected_half_width(xr.DataArray(values, dims="fold"), ["fold"]))
    plain_half = stats.sem(values) * stats.t.ppf(0.975, k - 1)
    assert got == pytest.approx(plain_half * np.sqrt(1 + k / (k - 1)))


def test_estimates_prefer_what_the_analysis_reports(probes: xr.Dataset) -> None:
    got = estimate(probes)
    xr.testing.assert_allclose(got["low"], probes["accuracy_low"].rename("low"))
    bare = probes[["accuracy"]]
    assert "Nadeau" not in estimate(bare).attrs["interval"]
    assert bool((estimate(bare)["low"] < estimate(bare)["value"]).all())
    chance = bare.assign(chance=("pair", [0.4, 0.5, 0.6]))
    np.testing.assert_allclose(estimate(chance)["null"].isel(stage=0, layer=0, token=0), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(pair_mean(probes)["value"], probes["accuracy"].mean(["pair", "fold"]))
    assert not differs_from_null(0.9, 0.8, 1.0, 0.5, 0.2)  # p decides where there is one


def test_frames_hold_every_place_once_and_round_to_four_digits(probes: xr.Dataset) -> None:
    spec = pair_matrix_spec(probes)
    got = page_frames(spec)
    assert got["places"] == 4 * 3 * 2 == len(got["vary"]["pairs"]["value"])
    assert set(got["same"]["pairs"]) >= {"x0", "earlier"}
    for i, slider_values in enumerate(spec.all_slider_values()):
        np.testing.assert_allclose(
            got["vary"]["pairs"]["value"][i], spec.tables(slider_values)["pairs"]["value"], rtol=1e-3
        )


def test_the_sliders_start_at_the_token_called_last_wherever_it_stands() -> None:
    spec = pair_matrix_spec(planted.probes(STAGES, 2, ("last", "entity_last")))
    assert spec.default_values() == {"stage": "s3", "layer": 1, "token": "last"}
    assert [s["start"] for s in page_frames(spec)["sliders"]] == [3, 1, 0]
