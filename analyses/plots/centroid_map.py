"""Figure of group means without an order: their first two principal components."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.data.results import require_variable, vectors
from stratalens.analyses.data.training_order import group_names
from stratalens.analyses.plots.colors import group_colors
from stratalens.analyses.plots.label_placement import label_positions, leader_lines
from stratalens.analyses.plots.render_holoviews import Figure, to_holoviews
from stratalens.analyses.plots.spec import (
    Axis,
    FigureSpec,
    Limits,
    Mark,
    SliderValues,
    Table,
    lookup,
    message_spec,
    pad_limits,
    plain_text,
    site_of,
    split_dims,
)
from stratalens.analyses.plots.wording import column_of

MAX_NAMED_GROUPS = 30  # more names would cover the dots; the hover shows them


def centroid_map(centroids: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw the centroids of groups in the first two principal components of the centroids.

    Args:
        centroids: result of `sl.centroids` with at least two groups.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage, layer and token, where the result has several.

    Raises:
        InputError: the Dataset has no `centroid`.
    """
    return to_holoviews(centroid_map_spec(centroids), dynamic)


def centroid_map_spec(centroids: xr.Dataset, components: xr.Dataset | None = None) -> FigureSpec:
    """Describe `centroid_map` without drawing it.

    Args:
        centroids: result of `sl.centroids`.
        components: result of `centroid_components`, if known.
    """
    require_variable(centroids, "centroid", "centroid_map", "sl.centroids(ds, by=...)")
    names, column = group_names(centroids), column_of(centroids)
    title = f"Groups of {column}" if column else "Groups"
    if len(names) < 2:
        return message_spec("centroid_map", title, "This figure needs centroids of at least two groups.", centroids)
    table = centroid_components(centroids) if components is None else components
    colors, labels = list(group_colors(centroids).values()), [plain_text(g) for g in names]
    sliders, fixed = split_dims(table["coordinate"], ("group", "component"))
    read = lookup(table["coordinate"], ("group", "component"))
    named = len(names) <= MAX_NAMED_GROUPS

    def limits(slider_values: SliderValues) -> Limits:
        xy = read(slider_values)
        if not np.isfinite(xy).any():
            return (-1.0, 1.0, -1.0, 1.0)
        half = max(float(np.nanmax(np.abs(xy))), 1e-9)
        x0, x1 = pad_limits(-half, half, 0.12)
        # Both axes have about the same scale, so that distances in the figure are distances.
        return (x0, x1, 0.66 * x0, 0.66 * x1)

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        x, y = read(slider_values).T
        result: dict[str, Table] = {"centroids": {"x": x, "y": y, "color": colors, "group": labels}}
        if named:
            axis_limits = limits(slider_values)
            label_xy = label_positions(x, y, labels, axis_limits)
            result["leaders"] = leader_lines(x, y, label_xy, axis_limits)
            result["names"] = {"x": label_xy[:, 0], "y": label_xy[:, 1], "text": labels}
        return result

    marks = [
        Mark("leaders", "segments", role="foreground", width=0.8),
        Mark("centroids", "points", hover={"group": "group", "x": "component 1", "y": "component 2"}, size=13),
        Mark("names", "labels", role="foreground", size=9),
    ]
    normalized = centroids.attrs.get("normalize", "none") not in ("none", False, 0)
    unit = "unit-norm" if normalized else "activation units"
    return FigureSpec(
        name="centroid_map",
        title=title,
        x=Axis(f"principal component 1 of centroids ({unit})"),
        y=Axis(f"principal component 2 of centroids ({unit})"),
        marks=marks if named else marks[1:2],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(centroids),
        height=440,
        legend=dict(zip(labels, colors, strict=True)),
    )


def centroid_components(centroids: xr.Dataset) -> xr.Dataset:
    """Compute principal components of the group means at every stage, layer and token.

    The components come from the matrix of inner products of the centred centroids (classical scaling; Gower 1966),
    which is small where features are many.

    Args:
        centroids: result of `sl.centroids`.

    Returns:
        Dataset, NaN for a group without rows:

        - coordinate (stage, layer, token, group, component): float64, the two largest components, in activation units.
        - share (stage, layer, token, component): float64, share of the variance of the centroids.
        - distance (stage, layer, token, group, group_other): float64, distance of two centroids over all features.
    """
    values, features = vectors(centroids)
    places = [d for d in values.dims if d not in (*features, "group")]
    x = values.transpose(*places, "group", *features).values.astype(np.float64)
    shape, count = x.shape[: len(places)], values.sizes["group"]
    x = x.reshape(*shape, count, -1)
    known = np.isfinite(x).all(axis=-1, keepdims=True)
    centred = np.where(known, x, 0.0)
    mean = centred.sum(axis=-2, keepdims=True) / np.maximum(known.sum(axis=-2, keepdims=True), 1)
    centred = np.where(known, centred - mean, 0.0)
    inner = centred @ np.swapaxes(centred, -1, -2)
    size, axes = np.linalg.eigh(inner)
    size, axes = np.maximum(size[..., ::-1], 0), axes[..., ::-1]
    coordinate = axes[..., :2] * np.sqrt(size[..., None, :2])
    largest = np.take_along_axis(coordinate, np.abs(coordinate).argmax(axis=-2, keepdims=True), axis=-2)
    coordinate = np.where(known, coordinate * np.where(largest < 0, -1.0, 1.0), np.nan)
    with np.errstate(invalid="ignore"):
        share = size[..., :2] / size.sum(axis=-1, keepdims=True)
    square = np.einsum("...ii->...i", inner)
    distance = np.sqrt(np.maximum(square[..., :, None] + square[..., None, :] - 2 * inner, 0))
    distance = np.where(known & np.swapaxes(known, -1, -2), distance, np.nan)
    coords = {name: c for name, c in values.coords.items() if set(c.dims) <= {*places, "group"}}
    return xr.Dataset(
        {
            "coordinate": ((*places, "group", "component"), coordinate),
            "share": ((*places, "component"), share),
            "distance": ((*places, "group", "group_other"), distance),
        },
        coords=coords,
        attrs=centroids.attrs,
    )
