"""Centroids and single rows in the plane (w1, w2)."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots import entity_scatter
from stratalens.analyses.plots.centroids import centroid_path_spec, entity_plane
from stratalens.store.errors import InputError
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")
LAST = {"stage": "s3", "layer": 2, "token": "last"}


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
    assert (y1 - y0) >= 0.6 * (x1 - x0) * 0.999  # w2 is not stretched


def test_a_site_without_layers_still_makes_a_path(projection: xr.Dataset) -> None:
    spec = centroid_path_spec(projection.isel(layer=0, drop=True))
    assert list(spec.sliders) == ["stage", "token"]


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


def test_rows_beyond_the_limit_are_shaded_and_keep_title_and_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datashader")
    import holoviews as hv

    from stratalens.analyses.plots import centroids as scatter

    monkeypatch.setattr(scatter, "MAX_POINTS", 10)
    shaded = scatter.entity_scatter(planted.recorded_store(STAGES, 1, ("last",)), stage="s3")
    drawn = hv.render(shaded, backend="bokeh")
    assert "stage s3" in drawn.title.text
    assert "w1" in drawn.xaxis[0].axis_label
    images = [r for r in drawn.renderers if "image" in r.data_source.data]
    assert np.count_nonzero(images[0].data_source.data["image"][0]) > 0


def test_a_plane_needs_entities_on_both_sides() -> None:
    from stratalens.analyses.plots.centroids import entity_plane

    ds = planted.recorded_store(STAGES, 1, ("last",), per_group=20)
    same = ds.assign_coords(entity_id=("entity", ds["trained_stage"].values))
    with pytest.raises(InputError, match="too few entities"):
        entity_plane(same)
    flat = ds.assign(resid_post=xr.zeros_like(ds["resid_post"]))
    with pytest.raises(InputError, match="the same mean"):
        entity_plane(flat)
