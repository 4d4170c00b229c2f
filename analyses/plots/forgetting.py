"""Figure of forgetting: a statistic of each group by the number of stages since its training."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.data.groups import clusters, exposure
from stratalens.analyses.data.groups import groups as label_groups
from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.plots.colors import group_colors
from stratalens.analyses.plots.render_holoviews import Figure, to_holoviews
from stratalens.analyses.plots.spec import (
    Axis,
    FigureSpec,
    Limits,
    Mark,
    SliderValues,
    Table,
    line_segments,
    lookup,
    message_spec,
    pad_limits,
    plain_text,
    repeat_values,
    site_of,
    split_dims,
    values_of,
)
from stratalens.analyses.plots.stages import in_training_order
from stratalens.store.errors import InputError, suggest

FAR_SHARE = 2  # an untrained model that makes the figure this many times as high is left out

_STATISTIC_DIMS = {"stage", "layer", "entity", "token"}


def forgetting(
    ds: xr.Dataset, by: str = "trained_stage", statistic: str = "loss", dynamic: bool | None = None
) -> Figure:
    """Draw a statistic of every group against the number of stages since its training.

    Args:
        ds: open store with statistics, or result of `forgetting_table`.
        by: label column of the groups, which have to be stages.
        statistic: loss, answer_loss, entropy, a norm, ...
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for layer and token, where the statistic has several. Thick bars are 95 %
        intervals over entities. The dashed line is the mean of groups before their training; it leaves out the
        untrained stage if other stages precede the training of a group.

    Raises:
        InputError: as `forgetting_table`.
    """
    return to_holoviews(forgetting_spec(ds, by, statistic), dynamic)


def forgetting_spec(data: xr.Dataset, by: str = "trained_stage", statistic: str = "loss") -> FigureSpec:
    """Describe `forgetting` without drawing it."""
    table = data if {"value", "exposure"} <= set(data.data_vars) else forgetting_table(data, by, statistic)
    name = plain_text(table.attrs.get("statistic", statistic))
    title = f"{name[:1].upper()}{name[1:]} by time since training"
    groups = group_names(table)
    if "stage" not in table["value"].dims or table.sizes["stage"] < 2:
        return message_spec("forgetting", title, "Forgetting needs at least two recorded stages.", table)
    colors_of = group_colors(table)
    colors = [colors_of[g] for g in groups]
    table = in_training_order(table)
    stages = [plain_text(s) for s in values_of(table, "stage")]
    since = table["exposure"].transpose("group", "stage").values.astype(float)
    sliders, fixed = split_dims(table["value"], ("stage", "group"))
    read = {k: lookup(table[k], ("group", "stage")) for k in ("value", "low", "high")}
    row_colors = repeat_values(colors, len(stages))
    x = since.ravel()
    before_training = before_training_mask(table)

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        value, low, high = (r(slider_values) for r in read.values())
        before = value[before_training]
        level = float(np.nanmean(before)) if np.isfinite(before).any() else np.nan
        return {
            "before": {"x0": [x.min() - 0.5], "y0": [level], "x1": [x.max() + 0.5], "y1": [level]},
            "now": {"x0": [0.0], "y0": [-1e9], "x1": [0.0], "y1": [1e9]},
            "intervals": {"x0": x, "y0": low.ravel(), "x1": x, "y1": high.ravel(), "color": row_colors},
            "lines": line_segments(since, value, colors),
            "means": {
                "x": x,
                "y": value.ravel(),
                "color": row_colors,
                "group": repeat_values([plain_text(g) for g in groups], len(stages)),
                "at": stages * len(groups),
            },
        }

    trained_only = _leave_out_untrained(table)

    def limits(slider_values: SliderValues) -> Limits:
        y = np.concatenate([r(slider_values)[:, trained_only].ravel() for r in read.values()])
        y = y[np.isfinite(y)]
        low, high = pad_limits(float(y.min()), float(y.max())) if y.size else (0.0, 1.0)
        return (float(x.min()) - 0.5, float(x.max()) + 0.5, low, high)

    outside = "" if trained_only.all() else "; untrained model outside"
    ticks = [(float(v), f"{v:+g}" if v else "0") for v in np.unique(x)]
    unit = f"{plain_text(table.attrs['units'])}; " if table.attrs.get("units") else ""
    hover = {"group": "group", "at": "at stage", "x": "stages since training", "y": name}
    return FigureSpec(
        name="forgetting",
        title=title,
        x=Axis("stages since training (negative: before)", ticks=ticks[:: max(1, len(ticks) // 14)]),
        y=Axis(f"mean {name} ({unit}dashed: before training{outside})"),
        marks=[
            Mark("before", "segments", role="foreground", width=1.5, dash="dashed"),
            Mark("now", "segments", role="muted", width=1),
            Mark("intervals", "segments", width=4, alpha=0.3),
            Mark("lines", "segments", width=1.5, alpha=0.8),
            Mark("means", "points", hover=hover, size=8),
        ],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(table),
        legend={plain_text(g): colors_of[g] for g in groups},
    )


def _leave_out_untrained(table: xr.Dataset) -> np.ndarray:
    """Return a bool array of shape (stage,): the stages that set the limits of the figure.

    An untrained model may be so far from all others that these would be one line; its values then leave the figure.
    """
    stages, values = [str(s) for s in table["stage"].values], table["value"].transpose("stage", ...).values
    trained = ~np.isin(stages, result_order(table)[1])
    if trained.all() or not trained.any():
        return np.ones(len(stages), dtype=bool)
    numbers = [part[np.isfinite(part)] for part in (values[trained], values)]
    if not numbers[0].size:
        return np.ones(len(stages), dtype=bool)
    far = np.ptp(numbers[1]) > FAR_SHARE * max(float(np.ptp(numbers[0])), 1e-12)
    return trained if far else np.ones(len(stages), dtype=bool)


def forgetting_table(ds: xr.Dataset, by: str = "trained_stage", statistic: str = "loss") -> xr.Dataset:
    """Compute the mean of a statistic by group and stage, and the time since training.

    Args:
        ds: open store whose groups are stages, or that has a variable `exposure`.
        by: label column of the groups.
        statistic: variable with dims among stage, layer, entity, token.

    Returns:
        Dataset:

        - value, low, high (stage, group and the other dims of the statistic): mean over entities and its 95 %
          interval, normal approximation; rows of one entity are averaged first
        - exposure (stage, group): float64, stages since training

    Raises:
        InputError: the statistic is unknown, there are no stages, or the groups are not stages.
    """
    known = [str(n) for n, v in ds.data_vars.items() if {"stage", "entity"} <= set(v.dims) <= _STATISTIC_DIMS]
    if statistic not in ds or statistic not in known:
        raise InputError(f"forgetting: no statistic {statistic!r} by stage and entity; {suggest(statistic, known)}")
    groups = label_groups(ds, by)
    since = exposure(ds, groups)
    if since is None:
        raise InputError(f"forgetting needs groups that are stages; {by!r} has {', '.join(map(str, groups.names))}")
    values, units = ds[statistic].astype("float64").load(), clusters(ds)
    means = []
    for g in range(len(groups)):
        rows = np.flatnonzero(groups.codes == g)
        entities = values.isel(entity=rows).groupby(xr.DataArray(units[rows], dims="entity", name="unit")).mean()
        mean, count = entities.mean("unit"), entities.notnull().sum("unit")
        half = mean * np.nan
        if len(np.unique(units[rows])) > 1:
            half = 1.96 * entities.std("unit", ddof=1) / np.sqrt(count)
        means.append(xr.Dataset({"value": mean, "low": mean - half, "high": mean + half}))
    names = np.array([str(n) for n in groups.names], dtype=object)
    table = xr.concat(means, dim="group", coords="minimal", compat="override").assign_coords(group=names)
    since = since.drop_vars([c for c in since.coords if c not in ("stage", "group")], errors="ignore")
    table["exposure"] = since.astype("float64")
    return table.assign_attrs(
        {"by": by, "ordered": 1, "statistic": statistic, "units": ds[statistic].attrs.get("units", "")}
    )


def before_training_mask(table: xr.Dataset) -> np.ndarray:
    """Return a bool array of shape (group, stage): stages before a group is trained.

    Untrained stages are left out if others remain. A model without any training may not know the form of the
    answers either, and its loss, far above all others, would be attributed to the missing knowledge.
    """
    before = table["exposure"].transpose("group", "stage").values < 0
    _, untrained = result_order(table)
    partly_trained = before & ~np.isin(np.array([str(s) for s in table["stage"].values]), untrained)
    return partly_trained if partly_trained.any() else before
