"""Figures of groups without an order, and figures of very many groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots.centroid_map import centroid_components, centroid_map_spec
from stratalens.analyses.plots.centroids import centroid_path_spec, entity_plane, entity_scatter_spec
from stratalens.analyses.plots.colors import MUTED, group_colors
from stratalens.analyses.plots.group_recall import recall_by_group
from stratalens.analyses.plots.matrices import cosine_matrix_spec, pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.palettes import QUALITATIVE, QUALITATIVE_DARK
from stratalens.analyses.plots.probes import layer_sweep_spec
from stratalens.analyses.plots.render_bokeh import page_frames
from stratalens.analyses.plots.spec import FigureSpec
from stratalens.analyses.plots.stages import direction_drift_spec, probe_generalisation_spec
from stratalens.analyses.results import read_results, write_results
from stratalens.store import open_store
from support import results as planted
from support.unordered import HABITATS, multiclass_result, unordered_store, without_order

STAGES = ("base", "s1", "s2", "s3")


@pytest.fixture(scope="module")
def probes() -> xr.Dataset:
    return without_order(planted.probes(STAGES, 3, ("last",)))


def test_the_sweep_has_the_mean_of_pairs_in_bold_and_single_pairs_in_grey(probes: xr.Dataset) -> None:
    spec = layer_sweep_spec(probes)
    assert list(spec.legend) == ["mean of all pairs", "single pairs"]
    tables = spec.tables({"stage": "s3"})
    assert set(tables["pairs"]["color"]) == {MUTED["light"]}
    assert set(tables["main_points"]["series"]) == {"mean of all pairs"}
    assert len(tables["intervals"]["x0"]) == 3


def test_a_multiclass_series_has_its_groups_and_its_chance_in_its_name() -> None:
    spec = layer_sweep_spec(multiclass_result())
    assert list(spec.legend) == ["habitat, 4 groups (chance 0.25)"]
    tables = spec.tables({"stage": "step600"})
    assert set(tables["null"]["y0"]) == {0.25}
    assert len(tables["intervals"]["x0"]) == 2
    _, _, bottom, top = spec.limits({})
    assert bottom < 0.25 < top


def test_the_chance_in_a_name_is_not_the_mean_of_a_null() -> None:
    result = multiclass_result()
    with_null = result.assign(accuracy_null=result["accuracy_mean"] * 0 + 0.22)  # a null of few permutations
    spec = layer_sweep_spec(with_null)
    assert list(spec.legend) == ["habitat, 4 groups (chance 0.25)"]
    assert set(spec.tables({"stage": "step600"})["null"]["y0"]) == {0.22}


def test_recall_is_the_share_of_right_rows_of_each_group() -> None:
    table = recall_by_group(multiclass_result())
    np.testing.assert_allclose(table["recall"].isel(stage=0, layer=0, token=0), [1, 0.5, 0.5, 0.5], atol=0.11)
    assert table["recall"].values[..., 0].min() == 1
    assert (table["recall_low"] < table["recall"]).all()
    assert table["rows"].values.tolist() == [10, 10, 10, 10]


def test_no_path_joins_groups_without_an_order_and_their_colours_are_distinct() -> None:
    projection = without_order(planted.projection(STAGES, 2, ("last",)))
    spec = centroid_path_spec(projection)
    assert "path" not in [mark.name for mark in spec.marks]
    assert list(spec.legend.values()) == list(QUALITATIVE[:3])
    assert "path" in [mark.name for mark in centroid_path_spec(planted.projection(STAGES, 2, ("last",))).marks]
    components = centroid_path_spec(projection.assign_attrs(plane="principal components"))
    assert components.x.label.startswith("principal component 1")


def test_the_map_of_centroids_keeps_their_distances() -> None:
    centroids = without_order(planted.centroids(STAGES, 2, ("last",)))
    table = centroid_components(centroids)
    x = centroids["centroid"].isel(stage=-1, layer=-1, token=0).values.astype(float)
    xy = table["coordinate"].isel(stage=-1, layer=-1, token=0).values
    want = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.testing.assert_allclose(table["distance"].isel(stage=-1, layer=-1, token=0), want, atol=1e-5)
    # three centroids span a plane, so the figure has all of their variance
    np.testing.assert_allclose(np.linalg.norm(xy[:, None] - xy[None], axis=-1), want, atol=1e-5)
    np.testing.assert_allclose(table["share"].sum("component"), 1)
    spec = centroid_map_spec(centroids, table)
    assert spec.title == "Groups of habitat"
    assert spec.tables(spec.default_values())["names"]["text"] == list(HABITATS[:3])


def test_a_group_without_rows_is_left_out_of_the_map() -> None:
    centroids = without_order(planted.centroids(STAGES, 2, ("last",)))
    centroids["centroid"][0, :, :, 1] = np.nan
    table = centroid_components(centroids)
    first = table["coordinate"].isel(stage=0, layer=0, token=0).values
    assert np.isfinite(first).all(axis=1).tolist() == [True, False, True]
    np.testing.assert_allclose(first[[0, 2]].mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("groups", [HABITATS, HABITATS[:2]])
def test_single_rows_have_axes_of_their_group_means(groups: tuple[str, ...], tmp_path: Path) -> None:
    path = unordered_store(tmp_path / "run.zarr", groups, layers=1, entities=40)
    plane = entity_plane(open_store(path), by="habitat")
    assert not plane.attrs["ordered"]
    spec = entity_scatter_spec(plane)
    assert "w1" not in spec.x.label + spec.y.label
    assert len(set(spec.legend.values())) == len(groups)
    assert plane["coordinate"].values.std(axis=0).min() > 0.3  # the second axis of two groups varies too


def test_sixty_colours_are_distinct_in_both_themes() -> None:
    for palette in (QUALITATIVE, QUALITATIVE_DARK):
        assert len(set(palette)) == len(palette) == 60
        rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in palette])
        assert np.abs(rgb[:, None] - rgb[None]).sum(-1)[np.triu_indices(60, 1)].min() > 20
    names = [f"g{i}" for i in range(70)]
    data = xr.Dataset(coords={"group": np.array(names, dtype=object)}, attrs={"ordered": False})
    assert group_colors(data)["g60"] == group_colors(data)["g0"]


def many_pairs(groups: int = 40, layers: int = 4) -> xr.Dataset:
    rng = np.random.default_rng(0)
    names = [f"g{i:02d}" for i in range(groups)]
    pairs = list(combinations(names, 2))
    place = ("stage", "layer", "token", "pair")
    mean = rng.uniform(0.4, 0.9, (2, layers, 1, len(pairs)))
    return xr.Dataset(
        {
            "accuracy": (place, mean),
            "accuracy_low": (place, mean - 0.1),
            "accuracy_high": (place, mean + 0.1),
            "coef": ((*place, "d_model"), rng.normal(size=(*mean.shape, 4))),
        },
        coords={
            **planted.place_coords(("step0", "step600"), layers, ("last",)),
            "pair": np.array([f"{a} v {b}" for a, b in pairs], dtype=object),
            "pair_first": ("pair", np.array([a for a, _ in pairs], dtype=object)),
            "pair_second": ("pair", np.array([b for _, b in pairs], dtype=object)),
        },
        attrs={"site": "resid_post", "target": "habitat", "ordered": False},
    )


def test_figures_of_780_pairs_draw_some_and_say_so() -> None:
    probes = many_pairs()
    cosines = planted.cosines(probes).assign_attrs(ordered=False)
    scores = xr.DataArray(
        np.zeros((*probes["accuracy"].shape, 40)),
        dims=("stage", "layer", "token", "pair", "group"),
        coords={**probes["accuracy"].coords, "group": np.array([f"g{i:02d}" for i in range(40)], dtype=object)},
        attrs={"ordered": False},
    )
    specs = [
        ("groups", pair_matrix_spec(probes)),
        ("pairs", cosine_matrix_spec(cosines)),
        ("drawn", layer_sweep_spec(probes)),
        ("pairs", direction_drift_spec(probes)),
        ("pairs", probe_generalisation_spec(scores)),
    ]
    for noun, spec in specs:
        words = spec.title + " ".join(spec.legend)
        assert re.search(rf", \d+ of 780 {noun}", words) or spec.name == "pair_matrix", words
        tables = page_frames(spec)
        numbers = sum(len(c) for mark in tables["same"].values() for c in mark.values())
        numbers += sum(len(row) for mark in tables["vary"].values() for c in mark.values() for row in c)
        assert numbers < 300_000, spec.name


def test_a_map_takes_a_result_of_probes(probes: xr.Dataset) -> None:
    spec = scalar_map_spec(probes, "layer", "token", "value")
    assert spec.title == "Mean accuracy over pairs by layer and token"
    want = probes["accuracy"].sel(stage="s3", token="last").mean(("fold", "pair"))
    np.testing.assert_allclose(spec.tables({"stage": "s3"})["cells"]["value"], want)
    # The scale reaches from chance to the largest difference: on 0 to 1, all cells of small differences look equal.
    largest = float(abs(probes["accuracy"].mean(("fold", "pair")) - 0.5).max())
    assert spec.clim is not None
    assert spec.clim[0] == pytest.approx(1 - spec.clim[1])
    assert largest <= spec.clim[1] - 0.5 < max(largest + 0.05, 0.1 + 1e-9)
    several = scalar_map_spec(multiclass_result(), "stage", "layer", "value").clim
    assert several is not None
    assert several[0] == 0.25
    assert several[1] <= 1.0


def test_results_from_disk_have_texts_that_figures_draw(probes: xr.Dataset, tmp_path: Path) -> None:
    write_results({"probes": probes, "multiclass": multiclass_result()}, tmp_path)
    read = read_results(tmp_path)
    builds: tuple[Callable[[xr.Dataset], FigureSpec], ...] = (layer_sweep_spec, pair_matrix_spec, direction_drift_spec)
    for build in builds:
        assert page_frames(build(read["probes"])) == page_frames(build(probes))
    assert page_frames(layer_sweep_spec(read["multiclass"])) == page_frames(layer_sweep_spec(multiclass_result()))
    np.testing.assert_array_equal(recall_by_group(read["multiclass"])["rows"], [10, 10, 10, 10])
