"""The plane of training-order recency: centroids of held-out entities along (w1, w2)."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.plots.hv_backend import Figure, to_holoviews
from stratalens.analyses.plots.naming import leaders, place_names
from stratalens.analyses.plots.palette import group_names, stage_colors, trained_order
from stratalens.analyses.plots.picture import (
    Axis,
    Mark,
    Picture,
    Place,
    Table,
    lookup,
    message_picture,
    padded,
    plain,
    require,
    site_of,
    split_dims,
)


def centroid_path_picture(projection: xr.Dataset) -> Picture:
    """Describe `centroid_path` without drawing it."""
    coordinate = require(projection, "coordinate", "centroid_path", "sl.project(ds, by=...)")
    groups = group_names(projection)
    title = "Centroids of held-out entities"
    if len(groups) < 2 or "group" not in coordinate.dims:
        return message_picture("centroid_path", title, "A path needs centroids of at least two groups.", projection)
    trained, untrained = trained_order(projection)
    colors = [stage_colors(groups, trained, untrained)[g] for g in groups]
    sliders, fixed = split_dims(projection["coordinate"], ("group", "component"))
    intervals = "coordinate_low" in projection

    names = [n for n in ("coordinate", "coordinate_low", "coordinate_high") if n in projection]
    read = {n: lookup(projection[n], ("group", "component")) for n in names}

    def tables(place: Place) -> dict[str, Table]:
        xy = read["coordinate"](place)
        called = [plain(g) for g in groups]
        value = {"x": xy[:, 0], "y": xy[:, 1], "color": colors, "group": called}
        shown = limits(place)
        at = place_names(xy[:, 0], xy[:, 1], called, shown)
        out: dict[str, Table] = {
            "path": {"x0": xy[:-1, 0], "y0": xy[:-1, 1], "x1": xy[1:, 0], "y1": xy[1:, 1]},
            "leaders": leaders(xy[:, 0], xy[:, 1], at, shown),
            "centroids": value,
            "names": {"x": at[:, 0], "y": at[:, 1], "text": called},
        }
        if intervals:
            low, high = read["coordinate_low"](place), read["coordinate_high"](place)
            value["interval"] = [f"[{a:.3g}, {b:.3g}]" for a, b in zip(low[:, 0], high[:, 0], strict=True)]
            out["intervals"] = {
                "x0": np.r_[low[:, 0], xy[:, 0]],
                "y0": np.r_[xy[:, 1], low[:, 1]],
                "x1": np.r_[high[:, 0], xy[:, 0]],
                "y1": np.r_[xy[:, 1], high[:, 1]],
                "color": [*colors, *colors],
            }
        return out

    def limits(place: Place) -> tuple[float, float, float, float]:
        every = np.concatenate([read[n](place) for n in names])
        x0, x1 = padded(float(np.nanmin(every[:, 0])), float(np.nanmax(every[:, 0])))
        y0, y1 = padded(float(np.nanmin(every[:, 1])), float(np.nanmax(every[:, 1])), 0.2)
        # w2 is not blown up to fill the height: a straight line has to look straight
        middle, half = (y0 + y1) / 2, max((y1 - y0) / 2, 0.3 * (x1 - x0))
        return (x0, x1, middle - half, middle + half)

    unit = (
        "unit-norm activations"
        if projection.attrs.get("normalize", "none") not in ("none", False, 0)
        else "activation units"
    )
    first, last = plain(groups[0], 20), plain(groups[-1], 20)
    hover = {"group": "group", "x": "w1", "y": "w2"} | ({"interval": "w1, 95 %"} if intervals else {})
    marks = [
        Mark("path", "segments", role="quiet", width=1.5),
        Mark("intervals", "segments", width=3, alpha=0.45),
        Mark("leaders", "segments", role="ink", width=0.8),
        Mark("centroids", "points", hover=hover, size=12),
        Mark("names", "labels", role="ink", size=9),
    ]
    return Picture(
        name="centroid_path",
        title=title,
        x=Axis(f"w1: from {first} to {last} ({unit})"),
        y=Axis(f"w2: widest direction beside w1 ({unit})"),
        marks=marks if intervals else [m for m in marks if m.name != "intervals"],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(projection),
        height=420,
        legend={plain(g): c for g, c in zip(groups, colors, strict=True)},
    )


def centroid_path(projection: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw the centroids of held-out entities in the plane (w1, w2), joined in training order.

    Args:
        projection: result of `sl.project`: coordinate (stage, layer, token, group, component), with
            coordinate_low and coordinate_high where intervals are known.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for what is left of stage, layer and token.

    Raises:
        InputError: the Dataset has no `coordinate`.

    The plane is that of Krasheninnikov, Turner, Krueger (2025), with the axis made
    from other entities than those shown.
    """
    return to_holoviews(centroid_path_picture(projection), dynamic)
