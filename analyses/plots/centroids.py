"""Figures in a plane of group means: centroids of held-out entities, and single rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.entities import RowPlane, row_plane
from stratalens.analyses.data.groups import Groups, clusters, groups
from stratalens.analyses.data.results import require_variable
from stratalens.analyses.data.slabs import SiteData
from stratalens.analyses.data.training_order import group_names, is_ordered, result_order
from stratalens.analyses.plots.colors import group_colors, stage_colors
from stratalens.analyses.plots.label_placement import label_positions, leader_lines
from stratalens.analyses.plots.palettes import qualitative_colors
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
    values_of,
)
from stratalens.analyses.plots.wording import group_words
from stratalens.store.errors import InputError, no_site_error, suggest
from stratalens.store.format.schema import site_names

MAX_POINTS = 20_000


def centroid_path(projection: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw centroids of held-out entities in the plane of `sl.project`; a path joins groups that have an order.

    The plane is that of Krasheninnikov, Turner, Krueger (2025). Its axes come from other entities than those shown.

    Args:
        projection: result of `sl.project`: coordinate (stage, layer, token, group, component), optionally with
            coordinate_low and coordinate_high.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage, layer and token, where the result has several.

    Raises:
        InputError: the Dataset has no `coordinate`.
    """
    return to_holoviews(centroid_path_spec(projection), dynamic)


def centroid_path_spec(projection: xr.Dataset) -> FigureSpec:
    """Describe `centroid_path` without drawing it."""
    coordinate = require_variable(projection, "coordinate", "centroid_path", "sl.project(ds, by=...)")
    names = group_names(projection)
    title = "Centroids of held-out entities"
    if len(names) < 2 or "group" not in coordinate.dims:
        return message_spec("centroid_path", title, "This figure needs centroids of at least two groups.", projection)
    words, colors = group_words(projection), list(group_colors(projection).values())
    labels = [plain_text(g) for g in names]
    sliders, fixed = split_dims(coordinate, ("group", "component"))
    variables = [n for n in ("coordinate", "coordinate_low", "coordinate_high") if n in projection]
    has_intervals = "coordinate_low" in variables
    read = {n: lookup(projection[n], ("group", "component")) for n in variables}

    def limits(slider_values: SliderValues) -> Limits:
        corners = np.concatenate([read[n](slider_values) for n in variables])
        x0, x1 = pad_limits(float(np.nanmin(corners[:, 0])), float(np.nanmax(corners[:, 0])))
        y0, y1 = pad_limits(float(np.nanmin(corners[:, 1])), float(np.nanmax(corners[:, 1])), 0.2)
        # A straight line has to look straight, so w2 is not stretched to fill the height.
        middle, half = (y0 + y1) / 2, max((y1 - y0) / 2, 0.3 * (x1 - x0))
        return (x0, x1, middle - half, middle + half)

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        x, y = read["coordinate"](slider_values).T
        axis_limits = limits(slider_values)
        label_xy = label_positions(x, y, labels, axis_limits)
        centroids: Table = {"x": x, "y": y, "color": colors, "group": labels}
        result: dict[str, Table] = {
            "path": {"x0": x[:-1], "y0": y[:-1], "x1": x[1:], "y1": y[1:]},
            "leaders": leader_lines(x, y, label_xy, axis_limits),
            "centroids": centroids,
            "names": {"x": label_xy[:, 0], "y": label_xy[:, 1], "text": labels},
        }
        if has_intervals:
            low, high = read["coordinate_low"](slider_values), read["coordinate_high"](slider_values)
            centroids["interval"] = [f"[{a:.3g}, {b:.3g}]" for a, b in zip(low[:, 0], high[:, 0], strict=True)]
            result["intervals"] = {
                "x0": np.r_[low[:, 0], x],
                "y0": np.r_[y, low[:, 1]],
                "x1": np.r_[high[:, 0], x],
                "y1": np.r_[y, high[:, 1]],
                "color": [*colors, *colors],
            }
        return result

    normalized = projection.attrs.get("normalize", "none") not in ("none", False, 0)
    unit = "unit-norm activations" if normalized else "activation units"
    principal = projection.attrs.get("plane") == "principal components"
    x_label, y_label = (f"principal component {i} of other entities ({unit})" for i in (1, 2))
    if not principal:
        first, last = plain_text(names[0], 20), plain_text(names[-1], 20)
        x_label, y_label = f"w1: from {first} to {last} ({unit})", f"w2: widest direction without w1 ({unit})"
    x_name, y_name = ("component 1", "component 2") if principal else ("w1", "w2")
    hover = {"group": "group", "x": x_name, "y": y_name} | ({"interval": f"{x_name}, 95 %"} if has_intervals else {})
    marks = [
        Mark("path", "segments", role="muted", width=1.5),
        Mark("intervals", "segments", width=3, alpha=0.45),
        Mark("leaders", "segments", role="foreground", width=0.8),
        Mark("centroids", "points", hover=hover, size=12),
        Mark("names", "labels", role="foreground", size=9),
    ]
    hidden = ({"path"} if not words.ordered else set()) | (set() if has_intervals else {"intervals"})
    return FigureSpec(
        name="centroid_path",
        title=title,
        x=Axis(x_label),
        y=Axis(y_label),
        marks=[m for m in marks if m.name not in hidden],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(projection),
        height=420,
        legend=dict(zip(labels, colors, strict=True)),
    )


def entity_scatter(
    ds: xr.Dataset, by: str = "trained_stage", site: str = "resid_post", **coordinates: Hashable
) -> Figure:
    """Draw held-out rows in the plane of their group means, coloured by group, with hover.

    Args:
        ds: open store, or result of `entity_plane`.
        by: label column of the groups.
        site: variable with activations.
        coordinates: stage=, layer=, token=. Default: the last value of each.

    Returns:
        HoloViews object. Datashader draws more than 20,000 rows as an image; it is part of the extra `explore`.

    Raises:
        InputError: as `entity_plane`; or there are more than 20,000 rows and datashader is not installed.
    """
    plane = ds if "coordinate" in ds else entity_plane(ds, by, site, 0, **coordinates)
    spec = entity_scatter_spec(plane)
    if plane.sizes["entity"] <= MAX_POINTS:
        return to_holoviews(spec)
    try:
        from holoviews.operation.datashader import datashade, dynspread
    except ImportError as error:
        raise InputError(
            "entity_scatter: more than 20,000 rows need datashader. Install it: pip install 'stratalens[explore]'"
        ) from error
    import datashader
    import holoviews as hv

    table = spec.tables({})["rows"]
    points = hv.Points((table["x"], table["y"], table["group"]), ["x", "y"], ["group"])
    shaded = dynspread(datashade(points, aggregator=datashader.count_cat("group"), color_key=dict(spec.legend)))
    x0, x1, y0, y1 = spec.limits({})
    return shaded.opts(title=spec.heading({}), xlabel=spec.x.label, ylabel=spec.y.label, xlim=(x0, x1), ylim=(y0, y1))


def entity_scatter_spec(plane: xr.Dataset) -> FigureSpec:
    """Describe `entity_scatter` without drawing it."""
    xy = plane["coordinate"].transpose("entity", "component").values.astype(float)
    row_groups = [str(g) for g in plane["group"].values]
    names = [str(g) for g in plane["group_name"].values]
    ordered = is_ordered(plane)
    colors_of = stage_colors(names, plane.attrs["trained"], plane.attrs["untrained"])
    colors_of = colors_of if ordered else qualitative_colors(names)
    x_label, y_label = axis_labels(ordered, len(names))
    columns: Table = {
        "x": xy[:, 0],
        "y": xy[:, 1],
        "color": [colors_of[g] for g in row_groups],
        "group": [plain_text(g) for g in row_groups],
    }
    hover = {"group": "group"}
    for name in ("entity_id", "template", "prompt"):
        if name in plane.coords:
            columns[name] = [plain_text(v, 120) for v in plane[name].values]
            hover[name] = name
    hover |= {"x": str(plane["component"].values[0]), "y": str(plane["component"].values[1])}
    x0, x1 = pad_limits(float(xy[:, 0].min()), float(xy[:, 0].max()))
    y0, y1 = pad_limits(float(xy[:, 1].min()), float(xy[:, 1].max()))
    return FigureSpec(
        name="entity_scatter",
        title="Single rows of held-out entities",
        x=Axis(x_label),
        y=Axis(y_label),
        marks=[Mark("rows", "points", hover=hover, size=5, alpha=0.6)],
        tables=lambda slider_values: {"rows": columns},
        limits=lambda slider_values: (x0, x1, y0, y1),
        fixed={d: plane.attrs[d] for d in ("stage", "layer", "token") if d in plane.attrs},
        site=plain_text(plane.attrs["site"]),
        height=440,
        legend={plain_text(g): c for g, c in colors_of.items()},
    )


def axis_labels(ordered: bool, groups: int) -> tuple[str, str]:
    """Return the labels of the two axes of a plane of group means."""
    if ordered:
        return "w1: first group to last (activation units)", "w2: widest direction without w1 (activation units)"
    if groups == 2:
        return "between the group means (activation units)", "widest direction across it (activation units)"
    first, second = (f"principal axis {i} of the group means (activation units)" for i in (1, 2))
    return first, second


def entity_plane(
    ds: xr.Dataset,
    by: str = "trained_stage",
    site: str = "resid_post",
    seed: int = 0,
    **coordinates: Hashable,
) -> xr.Dataset:
    """Project rows of one half of the entities into the plane of the other half.

    Ordered groups: w1 = unit(mean of last group - mean of first group); w2 = first principal component of the group
    means without w1 (Krasheninnikov, Turner, Krueger 2025). Groups without an order: the first two principal
    components of their means; of two groups, the line through their means and the widest direction across it.

    Args:
        ds: open store; one stage, layer and token of `site` is read, block by block.
        by: label column of the groups.
        site: variable with activations.
        seed: selects the half of the entities that defines the axes.
        coordinates: stage=, layer=, token=. Default: the last value of each.

    Returns:
        Dataset of the held-out rows that were recorded and have the token position:

        - coordinate (entity, component): float64, in activation units, with the coords group and all label columns
        - centroid (group_name, component): float64, means of `coordinate`

        Its attributes are site, by, seed, ordered, stage, layer, token, trained and untrained.

    Raises:
        InputError: the site, the column or a coordinate is unknown; there are fewer than two groups; or a group
            has no entity in one half.
        NotRecordedError: no row was recorded there.
    """
    label_groups, plane, chosen = row_plane_at(ds, by, site, seed, coordinates)
    names = np.asarray([str(n) for n in label_groups.names], dtype=object)
    components = ["w1", "w2"] if label_groups.ordered else ["axis 1", "axis 2"]
    coords = {str(k): v[plane.rows] for k, v in ds.coords.items() if v.dims == ("entity",)}
    result = xr.Dataset(
        {
            "coordinate": (("entity", "component"), plane.coordinate.astype(np.float64)),
            "centroid": (("group_name", "component"), plane.centroid),
        },
        coords={**coords, "component": np.array(components, dtype=object), "group_name": names},
        attrs={"site": site, "by": by, "seed": seed, "ordered": int(label_groups.ordered)}
        | {k: str(v) for k, v in chosen.items()},
    )
    result = result.assign_coords(group=("entity", names[plane.codes]))
    result.attrs["trained"], result.attrs["untrained"] = result_order(ds.assign_coords(group=names))
    return result


def row_plane_at(
    ds: xr.Dataset,
    by: str,
    site: str,
    seed: int,
    coordinates: Mapping[str, Hashable],
    fit: Callable[[Groups, np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> tuple[Groups, RowPlane, SliderValues]:
    """Return the groups, the projected rows and their stage, layer and token.

    The arguments are those of `entity_plane`; `fit` takes groups, activations and groups of rows, see `row_plane`.
    """
    if site not in ds:
        raise no_site_error(site, site_names(ds))
    chosen: SliderValues = {}
    index: dict[str, list[int]] = {}
    for dim in ("stage", "layer", "token"):
        if dim not in ds[site].dims:
            continue
        values = values_of(ds[site], dim)
        chosen[dim] = coordinates.get(dim, values[-1])
        if chosen[dim] not in values:
            raise InputError(f"entity_plane: no {dim} {chosen[dim]!r}; {suggest(str(chosen[dim]), map(str, values))}")
        index[dim] = [ds[site][dim].values.tolist().index(chosen[dim])]
    label_groups = groups(ds, by)
    units = clusters(ds)
    label_groups.require(classes=2, per_class=2, units=units, why="one half defines the axes, the other is shown")
    flag = ds[site].attrs.get("recorded", "recorded")
    narrow = ds[[site, *([flag] if flag in ds else [])]].isel(index)
    wanted = np.asarray(label_groups.codes) >= 0
    if flag in narrow:
        wanted = wanted & np.asarray(narrow[flag].values, dtype=bool).reshape(-1)
    source = SiteData(narrow, site)
    (slab,) = source.slabs(source.rows(wanted=wanted))
    codes, ordered = np.asarray(label_groups.codes), label_groups.ordered
    axes = None if fit is None else partial(fit, label_groups)
    return label_groups, row_plane(slab, codes, units, len(label_groups), seed, ordered, axes), chosen
