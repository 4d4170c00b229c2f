"""The plane of training-order recency: centroids of held-out entities along (w1, w2)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.entities import RowPlane, row_plane
from stratalens.analyses.data.groups import Groups, clusters
from stratalens.analyses.data.groups import groups as label_groups
from stratalens.analyses.data.results import require_variable
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.plots.colors import stage_colors
from stratalens.analyses.plots.label_placement import leaders, place_names
from stratalens.analyses.plots.render_holoviews import Figure, to_holoviews
from stratalens.analyses.plots.spec import (
    Axis,
    FigureSpec,
    Mark,
    SliderValues,
    Table,
    lookup,
    message_spec,
    padded,
    plain,
    site_of,
    split_dims,
    values_of,
)
from stratalens.store.errors import InputError, no_site_error, suggest
from stratalens.store.format.schema import site_names


def centroid_path_spec(projection: xr.Dataset) -> FigureSpec:
    """Describe `centroid_path` without drawing it."""
    coordinate = require_variable(projection, "coordinate", "centroid_path", "sl.project(ds, by=...)")
    groups = group_names(projection)
    title = "Centroids of held-out entities"
    if len(groups) < 2 or "group" not in coordinate.dims:
        return message_spec("centroid_path", title, "A path needs centroids of at least two groups.", projection)
    trained, untrained = result_order(projection)
    colors = [stage_colors(groups, trained, untrained)[g] for g in groups]
    sliders, fixed = split_dims(projection["coordinate"], ("group", "component"))
    intervals = "coordinate_low" in projection

    names = [n for n in ("coordinate", "coordinate_low", "coordinate_high") if n in projection]
    read = {n: lookup(projection[n], ("group", "component")) for n in names}

    def tables(place: SliderValues) -> dict[str, Table]:
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

    def limits(place: SliderValues) -> tuple[float, float, float, float]:
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
    return FigureSpec(
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
    return to_holoviews(centroid_path_spec(projection), dynamic)


MAX_POINTS = 20_000


def entity_plane(
    ds: xr.Dataset,
    by: str = "trained_stage",
    site: str = "resid_post",
    seed: int = 0,
    **place: Hashable,
) -> xr.Dataset:
    """Project single rows into (w1, w2) made from the other half of the entities.

    Args:
        ds: open store; `site` is read at one stage, layer and token, block by block.
        by: label column of the groups.
        site: variable with activations.
        seed: which half of the entities the axes are made from.
        place: stage=, layer=, token=; what is not named is taken at its last value.

    Returns:
        Dataset `coordinate` (entity, component) in activation units for the rows of the held-out half,
        with coords group, entity_id and label columns; `centroid` (group_name, component), their means;
        attributes site, by, stage, layer, token. Rows that were not recorded there, or lack the token
        position, are left out.

    w1 = unit(mean of last group - mean of first group); w2 = first principal component of the group
    means without w1 (Krasheninnikov, Turner, Krueger 2025).

    Raises:
        InputError: unknown site, column or place; fewer than two groups; a group without an entity in one half.
        NotRecordedError: nothing was recorded there.
    """
    found, plane, chosen = place_plane(ds, by, site, seed, place)
    names = np.asarray([str(n) for n in found.names], dtype=object)
    coords = {str(k): v[plane.rows] for k, v in ds.coords.items() if v.dims == ("entity",)}
    result = xr.Dataset(
        {
            "coordinate": (("entity", "component"), plane.coordinate.astype(np.float64)),
            "centroid": (("group_name", "component"), plane.centroid),
        },
        coords={**coords, "component": np.array(["w1", "w2"], dtype=object), "group_name": names},
        attrs={"site": site, "by": by, "seed": seed, **{k: str(v) for k, v in chosen.items()}},
    )
    result = result.assign_coords(group=("entity", names[plane.codes]))
    result.attrs["trained"], result.attrs["untrained"] = result_order(ds.assign_coords(group=names))
    return result


def place_plane(
    ds: xr.Dataset, by: str, site: str, seed: int, place: Mapping[str, Hashable]
) -> tuple[Groups, RowPlane, SliderValues]:
    """Groups, rows in the plane, and the place they were read at; arguments and errors as `entity_plane`."""
    if site not in ds:
        raise no_site_error(site, site_names(ds))
    chosen: SliderValues = {}
    index: dict[str, list[int]] = {}
    for dim in ("stage", "layer", "token"):
        if dim not in ds[site].dims:
            continue
        values = values_of(ds[site], dim)
        chosen[dim] = place.get(dim, values[-1])
        if chosen[dim] not in values:
            raise InputError(f"entity_plane: no {dim} {chosen[dim]!r}; {suggest(str(chosen[dim]), map(str, values))}")
        index[dim] = [ds[site][dim].values.tolist().index(chosen[dim])]
    found = label_groups(ds, by)
    found.require(classes=2, per_class=2, units=(units := clusters(ds)), why="one half makes the axes, one is shown")
    flag = ds[site].attrs.get("recorded", "recorded")
    narrow = ds[[site, *([flag] if flag in ds else [])]].isel(index)
    wanted = np.asarray(found.codes) >= 0
    if flag in narrow:
        wanted = wanted & np.asarray(narrow[flag].values, dtype=bool).reshape(-1)
    source = SiteData(narrow, site)
    (slab,) = source.slabs(source.rows(wanted=wanted))
    return found, row_plane(slab, np.asarray(found.codes), units, len(found), seed), chosen


def entity_scatter_spec(plane: xr.Dataset) -> FigureSpec:
    """Describe `entity_scatter` without drawing it."""
    xy = plane["coordinate"].transpose("entity", "component").values.astype(float)
    group = [str(g) for g in plane["group"].values]
    known = [g for g in (*plane.attrs["untrained"], *plane.attrs["trained"]) if g in group]
    tint = stage_colors(list(dict.fromkeys([*known, *group])), plane.attrs["trained"], plane.attrs["untrained"])
    columns: Table = {"x": xy[:, 0], "y": xy[:, 1], "color": [tint[g] for g in group]}
    columns["group"] = [plain(g) for g in group]
    hover = {"group": "group"}
    for name in ("entity_id", "template", "prompt"):
        if name in plane.coords:
            columns[name] = [plain(v, 120) for v in plane[name].values]
            hover[name] = name
    hover |= {"x": "w1", "y": "w2"}
    x0, x1 = padded(float(xy[:, 0].min()), float(xy[:, 0].max()))
    y0, y1 = padded(float(xy[:, 1].min()), float(xy[:, 1].max()))
    return FigureSpec(
        name="entity_scatter",
        title="Single rows in the recency plane",
        x=Axis("w1: first group to last (activation units)"),
        y=Axis("w2: widest direction beside w1 (activation units)"),
        marks=[Mark("rows", "points", hover=hover, size=5, alpha=0.6)],
        tables=lambda place: {"rows": columns},
        limits=lambda place: (x0, x1, y0, y1),
        fixed={d: plane.attrs[d] for d in ("stage", "layer", "token") if d in plane.attrs},
        site=plain(plane.attrs["site"]),
        height=440,
        legend={plain(g): c for g, c in tint.items()},
    )


def entity_scatter(ds: xr.Dataset, by: str = "trained_stage", site: str = "resid_post", **place: Hashable) -> Figure:
    """Draw held-out rows in the recency plane, coloured by group, with hover.

    Args:
        ds: an open store, or the result of `entity_plane`.
        by: label column of the groups.
        site: variable with activations.
        place: stage=, layer=, token=; what is not named is taken at its last value.

    Returns:
        HoloViews object; above 20,000 rows they are rasterised by datashader, which has to be installed
        (extra `explore`).
    """
    plane = ds if "coordinate" in ds else entity_plane(ds, by, site, 0, **place)
    picture = entity_scatter_spec(plane)
    if plane.sizes["entity"] <= MAX_POINTS:
        return to_holoviews(picture)
    try:
        from holoviews.operation.datashader import datashade, dynspread
    except ImportError as error:
        raise InputError(
            "entity_scatter: above 20,000 rows it needs datashader: pip install 'stratalens[explore]'"
        ) from error
    import datashader
    import holoviews as hv

    table = picture.tables({})["rows"]
    points = hv.Points((table["x"], table["y"], table["group"]), ["x", "y"], ["group"])
    shaded = dynspread(datashade(points, aggregator=datashader.count_cat("group"), color_key=dict(picture.legend)))
    x0, x1, y0, y1 = picture.limits({})
    return shaded.opts(
        title=picture.heading({}), xlabel=picture.x.label, ylabel=picture.y.label, xlim=(x0, x1), ylim=(y0, y1)
    )
