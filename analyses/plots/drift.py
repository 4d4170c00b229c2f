"""How things move: centroids from checkpoint to checkpoint, and every group's score along a pair's probe."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.plots.estimates import extreme_pair
from stratalens.analyses.plots.hv_backend import Figure, to_holoviews
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
    values_of,
)
from stratalens.store.errors import InputError


def stage_steps(centroids: xr.Dataset) -> xr.DataArray:
    """How far each group's centroid moved since the stage before, over the mean centroid norm there.

    Args:
        centroids: result of `sl.centroids`: centroid (stage, ..., group, d_model).

    Returns:
        DataArray (stage, ..., group), without unit, for all stages but the first, in training order.
    """
    centroid = require(centroids, "centroid", "stage_drift", "sl.centroids(ds, by=...)")
    known = {"stage", "layer", "token", "group"}
    features = [d for d in centroid.dims if d not in known]
    order = (
        np.argsort(np.atleast_1d(centroids["stage_order"].values), kind="stable")
        if "stage_order" in centroids.coords
        else slice(None)
    )
    ordered = centroid.astype("float64").isel(stage=order)
    moved = ((ordered - ordered.shift(stage=1)) ** 2).sum(features, skipna=False) ** 0.5
    size = ((ordered**2).sum(features) ** 0.5).mean("group")
    return (moved / size).isel(stage=slice(1, None)).rename("moved").assign_attrs(centroids.attrs)


def stage_drift_picture(centroids: xr.Dataset) -> Picture:
    """Describe `stage_drift` without drawing it."""
    title = "How far each group's centroid moves at each stage"
    centroid = require(centroids, "centroid", "stage_drift", "sl.centroids(ds, by=...)")
    if "stage" not in centroid.dims or centroid.sizes["stage"] < 2:
        return message_picture("stage_drift", title, "Drift needs at least two recorded stages.", centroids)
    steps = stage_steps(centroids)
    stages = [plain(s, 16) for s in values_of(steps, "stage")]
    groups = group_names(centroids)
    trained, untrained = trained_order(centroids)
    tint = stage_colors(groups, trained, untrained)
    sliders, fixed = split_dims(steps, ("stage", "group"))
    x = np.arange(len(stages), dtype=float)
    read = lookup(steps, ("group", "stage"))
    own = {g: stages.index(plain(g, 16)) for g in groups if plain(g, 16) in stages}
    top = float(np.nanmax(steps.values)) if np.isfinite(steps.values).any() else 1.0

    def tables(place: Place) -> dict[str, Table]:
        y = read(place)
        n = len(stages)
        names = np.repeat([plain(g) for g in groups], n).tolist()
        dots: Table = {
            "x": np.tile(x, len(groups)),
            "y": y.ravel(),
            "color": np.repeat([tint[g] for g in groups], n).tolist(),
            "group": names,
            "at": stages * len(groups),
        }
        lines: Table = {
            "x0": np.tile(x[:-1], len(groups)),
            "y0": y[:, :-1].ravel(),
            "x1": np.tile(x[1:], len(groups)),
            "y1": y[:, 1:].ravel(),
            "color": np.repeat([tint[g] for g in groups], n - 1).tolist(),
        }
        marked = [g for g in groups if g in own]
        ring: Table = {
            "x": [x[own[g]] for g in marked],
            "y": [y[groups.index(g), own[g]] for g in marked],
            "color": [tint[g] for g in marked],
            "group": [plain(g) for g in marked],
            "at": [stages[own[g]] for g in marked],
        }
        return {"lines": lines, "moves": dots, "own": ring}

    hover = {"group": "group", "at": "at stage", "y": "moved (share of norm)"}
    return Picture(
        name="stage_drift",
        title=title,
        x=Axis("recorded stage", ticks=[(float(i), s) for i, s in enumerate(stages)]),
        y=Axis("distance moved / mean centroid norm"),
        marks=[
            Mark("lines", "segments", width=1.5, alpha=0.7),
            Mark("moves", "points", hover=hover, size=6),
            Mark("own", "points", hover=hover, size=14),
        ],
        tables=tables,
        limits=lambda place: (-0.4, len(stages) - 0.6, 0.0, top * 1.1 or 1.0),
        sliders=sliders,
        fixed=fixed,
        site=site_of(centroids),
        legend={plain(g): tint[g] for g in groups},
    )


def stage_drift(centroids: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw how far each group's centroid moves at each stage; a large dot marks the stage that trained on the group.

    Args:
        centroids: result of `sl.centroids` over at least two stages.
        dynamic: see `to_holoviews`.
    """
    return to_holoviews(stage_drift_picture(centroids), dynamic)


def probe_generalisation_picture(scores: xr.DataArray) -> Picture:
    """Describe `probe_generalisation` without drawing it."""
    if "group" not in scores.dims:
        raise InputError(
            f"plots.probe_generalisation needs a dim 'group'; got {scores.dims}. Make it with sl.generalise(probes, "
            "ds)."
        )
    title = "Mean score of every group along one pair's probe"
    groups = group_names(scores)
    trained, untrained = trained_order(scores)
    tint = stage_colors(groups, trained, untrained)
    colors = [tint[g] for g in groups]
    sliders, fixed = split_dims(scores, ("group",), ("pair",))
    ends = extreme_pair(scores)  # the one that the other figures are about
    x = np.arange(len(groups), dtype=float)
    names = [plain(g) for g in groups]

    values = lookup(scores, ("group",))
    bounds = [
        lookup(scores[name].reset_coords(drop=True), ("group",)) for name in ("low", "high") if name in scores.coords
    ]

    def tables(place: Place) -> dict[str, Table]:
        y = values(place)
        out: dict[str, Table] = {
            "zero": {"x0": [-0.5], "y0": [0.0], "x1": [len(groups) - 0.5], "y1": [0.0]},
            "stems": {"x0": x, "y0": np.zeros(len(x)), "x1": x, "y1": y, "color": colors},
            "scores": {"x": x, "y": y, "color": colors, "group": names},
        }
        if len(bounds) == 2:
            out["intervals"] = {"x0": x, "y0": bounds[0](place), "x1": x, "y1": bounds[1](place), "color": colors}
        return out

    def limits(place: Place) -> tuple[float, float, float, float]:
        y = np.concatenate([values(place), *(read(place) for read in bounds)])
        y = y[np.isfinite(y)]
        low, high = padded(float(min(0.0, *y)), float(max(0.0, *y))) if y.size else (0.0, 1.0)
        return (-0.5, len(groups) - 0.5, low, high)

    return Picture(
        name="probe_generalisation",
        title=title,
        x=Axis("group, in training order", ticks=[(float(i), plain(g, 16)) for i, g in enumerate(groups)]),
        y=Axis("mean score (log-odds; 0: undecided)"),
        marks=[
            Mark("zero", "segments", role="ink", width=1.2, dash="dashed"),
            Mark("stems", "segments", width=1.5, alpha=0.6),
            *([Mark("intervals", "segments", width=6, alpha=0.4)] if len(bounds) == 2 else []),
            Mark("scores", "points", hover={"group": "group", "y": "mean score"}, size=11),
        ],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(scores),
        height=320,
        legend=dict(zip(names, colors, strict=True)),
        start={"pair": ends} if ends is not None and "pair" in sliders else {},
    )


def probe_generalisation(scores: xr.DataArray, dynamic: bool | None = None) -> Figure:
    """Draw the mean score of every group along each pair's probe, also of groups the probe never saw.

    Args:
        scores: result of `sl.generalise`: (stage, layer, token, pair, group), log-odds of the later group.
        dynamic: see `to_holoviews`.
    """
    return to_holoviews(probe_generalisation_picture(scores), dynamic)
