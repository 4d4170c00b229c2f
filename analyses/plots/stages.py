"""What changes from checkpoint to checkpoint: how probe directions turn, and what is forgotten with time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from stratalens.analyses.data.groups import clusters, exposure
from stratalens.analyses.data.groups import groups as label_groups
from stratalens.analyses.data.results import require_variable
from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.directions.directions import drift, stage_steps
from stratalens.analyses.plots.colors import HIGHLIGHT, stage_colors
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
from stratalens.analyses.stats.estimates import extreme_pair
from stratalens.store.errors import InputError, suggest

Reference = Literal["first", "last", "previous"]


AGAINST = {"first": "the first stage", "last": "the last stage", "previous": "the stage before"}


def direction_drift_spec(probes: xr.Dataset, reference: Reference = "last") -> FigureSpec:
    """Describe `direction_drift` without drawing it."""
    title = "How probe directions turn from stage to stage"
    coef = require_variable(probes, "coef", "direction_drift", "sl.probe(ds, target=...)")
    if "stage" not in coef.dims or coef.sizes["stage"] < 2:
        return message_spec("direction_drift", title, "Drift needs at least two recorded stages.", probes)
    if reference not in AGAINST:
        raise InputError(f"direction_drift: reference={reference!r}; {suggest(str(reference), AGAINST)}")
    names = values_of(probes, "stage")
    present = probes["stage"].values.tolist()
    ordered = probes.isel(stage=[present.index(s) for s in names])
    cosine = drift(ordered, "stage", reference)["cosine"]
    if "pair" not in cosine.dims:
        cosine = cosine.expand_dims(pair=["all groups"])
    pairs = [str(p) for p in values_of(cosine, "pair")]
    trained, untrained = result_order(probes)
    later = [str(g) for g in np.atleast_1d(probes["pair_second"].values)] if "pair_second" in probes.coords else []
    tint = stage_colors(list(dict.fromkeys(later)), trained or group_names(probes), untrained) if later else {}
    colors = [tint[g] for g in later] if later else [HIGHLIGHT] * len(pairs)
    known = {"stage", "layer", "token", "pair", "fold"}
    width = int(np.prod([coef.sizes[d] for d in coef.dims if d not in known]))
    band = 1.96 * width**-0.5
    sliders, fixed = split_dims(cosine, ("stage", "pair"))
    read = lookup(cosine, ("pair", "stage"))
    stages = [plain(s, 16) for s in names]
    x, n = np.arange(len(stages), dtype=float), len(stages)

    def tables(place: SliderValues) -> dict[str, Table]:
        y = read(place)
        return {
            "chance": {"x0": [-0.4] * 2, "y0": [-band, band], "x1": [n - 0.6] * 2, "y1": [-band, band]},
            "lines": {
                "x0": np.tile(x[:-1], len(pairs)),
                "y0": y[:, :-1].ravel(),
                "x1": np.tile(x[1:], len(pairs)),
                "y1": y[:, 1:].ravel(),
                "color": np.repeat(colors, n - 1).tolist(),
            },
            "cosines": {
                "x": np.tile(x, len(pairs)),
                "y": y.ravel(),
                "color": np.repeat(colors, n).tolist(),
                "pair": np.repeat([plain(p) for p in pairs], n).tolist(),
                "at": stages * len(pairs),
            },
        }

    lowest = float(np.nanmin(cosine.values)) if np.isfinite(cosine.values).any() else 0.0
    return FigureSpec(
        name="direction_drift",
        title=title,
        x=Axis("recorded stage", ticks=[(float(i), s) for i, s in enumerate(stages)]),
        y=Axis(f"cosine with {AGAINST[reference]} (dashed: unrelated)"),
        marks=[
            Mark("chance", "segments", role="ink", width=1.2, dash="dashed"),
            Mark("lines", "segments", width=1.5, alpha=0.7),
            Mark("cosines", "points", hover={"pair": "pair", "at": "at stage", "y": "cosine"}, size=7),
        ],
        tables=tables,
        limits=lambda place: (-0.4, n - 0.6, min(-1.5 * band, lowest - 0.05), 1.05),
        sliders=sliders,
        fixed=fixed,
        site=site_of(probes),
        legend={f"later group {plain(g)}": c for g, c in tint.items()} if len(pairs) > 1 else {},
    )


def direction_drift(probes: xr.Dataset, reference: Reference = "last", dynamic: bool | None = None) -> Figure:
    """Draw the cosine of every pair's probe direction with the same pair's direction at another stage.

    Args:
        probes: result of `sl.probe` over at least two stages.
        reference: what each direction is compared with: that of the first, the last or the previous stage.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for what is left of layer and token; between the dashed lines lie 95 % of
        the cosines of two unrelated directions in that many features.
    """
    return to_holoviews(direction_drift_spec(probes, reference), dynamic)


def forgetting_table(ds: xr.Dataset, by: str = "trained_stage", statistic: str = "loss") -> xr.Dataset:
    """Mean of a statistic for every group at every stage, and how long ago the stage trained on the group.

    Args:
        ds: open store whose groups are stages (or with a variable `exposure`).
        by: label column of the groups.
        statistic: variable with dims among stage, layer, entity, token.

    Returns:
        Dataset over (stage, group) and what else the statistic has: value, low, high (95 %, normal
        approximation over entities; rows of one entity are averaged first), exposure (stage, group).

    Raises:
        InputError: no such statistic, no stages, or groups that are no stages.
    """
    known = [str(n) for n, v in ds.data_vars.items() if {"stage", "entity"} <= set(v.dims) <= _PLACES]
    if statistic not in ds or statistic not in known:
        raise InputError(f"forgetting: no statistic {statistic!r} by stage and entity; {suggest(statistic, known)}")
    found = label_groups(ds, by)
    since = exposure(ds, found)
    if since is None:
        raise InputError(f"forgetting needs groups that are stages; {by!r} has {', '.join(map(str, found.names))}")
    values, units = ds[statistic].astype("float64").load(), clusters(ds)
    parts = []
    for g in range(len(found)):
        rows = np.flatnonzero(found.codes == g)
        entities = values.isel(entity=rows).groupby(xr.DataArray(units[rows], dims="entity", name="unit")).mean()
        mean, count = entities.mean("unit"), entities.notnull().sum("unit")
        half = (
            1.96 * entities.std("unit", ddof=1) / np.sqrt(count) if len(np.unique(units[rows])) > 1 else mean * np.nan
        )
        parts.append(xr.Dataset({"value": mean, "low": mean - half, "high": mean + half}))
    names = np.array([str(n) for n in found.names], dtype=object)
    table = xr.concat(parts, dim="group", coords="minimal", compat="override").assign_coords(group=names)
    table["exposure"] = since.drop_vars([c for c in since.coords if c not in ("stage", "group")], errors="ignore")
    table["exposure"] = table["exposure"].astype("float64")
    units_of = ds[statistic].attrs.get("units", "")
    return table.assign_attrs({"by": by, "statistic": statistic, "units": units_of})


_PLACES = {"stage", "layer", "entity", "token"}


def not_yet(table: xr.Dataset) -> np.ndarray:
    """(group, stage) where a group is still to come: what forgetting falls back to.

    Stages before any training are left out where others are there: a model that was taught nothing yet may also
    lack the form of the answers, and a loss far above all others would be taken for what was not learned.
    """
    since = table["exposure"].transpose("group", "stage").values < 0
    _, untrained = result_order(table)
    taught = since & ~np.isin(np.array([str(s) for s in table["stage"].values]), untrained)
    return taught if taught.any() else since


def forgetting_spec(data: xr.Dataset, by: str = "trained_stage", statistic: str = "loss") -> FigureSpec:
    """Describe `forgetting` without drawing it."""
    table = data if {"value", "exposure"} <= set(data.data_vars) else forgetting_table(data, by, statistic)
    name = plain(table.attrs.get("statistic", statistic))
    title = f"{name[:1].upper()}{name[1:]} against the time since training"
    groups = group_names(table)
    if "stage" not in table["value"].dims or table.sizes["stage"] < 2:
        return message_spec("forgetting", title, "Forgetting needs at least two recorded stages.", table)
    trained, untrained = result_order(table)
    tint = stage_colors(groups, trained, untrained)
    stages = values_of(table, "stage")
    present = table["stage"].values.tolist()
    table = table.isel(stage=[present.index(s) for s in stages])
    since = table["exposure"].transpose("group", "stage").values.astype(float)
    sliders, fixed = split_dims(table["value"], ("stage", "group"))
    read = {k: lookup(table[k], ("group", "stage")) for k in ("value", "low", "high")}
    colors = np.repeat([tint[g] for g in groups], len(stages)).tolist()
    x = since.ravel()
    to_come = not_yet(table)

    def tables(place: SliderValues) -> dict[str, Table]:
        got = {k: r(place) for k, r in read.items()}
        before = got["value"][to_come]
        level = float(np.nanmean(before)) if np.isfinite(before).any() else np.nan
        y = got["value"]
        return {
            "before": {"x0": [x.min() - 0.5], "y0": [level], "x1": [x.max() + 0.5], "y1": [level]},
            "now": {"x0": [0.0], "y0": [-1e9], "x1": [0.0], "y1": [1e9]},
            "intervals": {"x0": x, "y0": got["low"].ravel(), "x1": x, "y1": got["high"].ravel(), "color": colors},
            "lines": {
                "x0": since[:, :-1].ravel(),
                "y0": y[:, :-1].ravel(),
                "x1": since[:, 1:].ravel(),
                "y1": y[:, 1:].ravel(),
                "color": np.repeat([tint[g] for g in groups], len(stages) - 1).tolist(),
            },
            "means": {
                "x": x,
                "y": y.ravel(),
                "color": colors,
                "group": np.repeat([plain(g) for g in groups], len(stages)).tolist(),
                "at": [plain(s) for s in stages] * len(groups),
            },
        }

    def limits(place: SliderValues) -> tuple[float, float, float, float]:
        every = np.concatenate([r(place).ravel() for r in read.values()])
        every = every[np.isfinite(every)]
        low, high = padded(float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
        return (float(x.min()) - 0.5, float(x.max()) + 0.5, low, high)

    ticks = [(float(v), f"{v:+g}" if v else "0") for v in np.unique(x)]
    unit = f"{plain(table.attrs['units'])}; " if table.attrs.get("units") else ""
    hover = {"group": "group", "at": "at stage", "x": "stages since training", "y": name}
    return FigureSpec(
        name="forgetting",
        title=title,
        x=Axis("stages since training (negative: not yet)", ticks=ticks[:: max(1, len(ticks) // 14)]),
        y=Axis(f"mean {name} ({unit}dashed: before training)"),
        marks=[
            Mark("before", "segments", role="ink", width=1.5, dash="dashed"),
            Mark("now", "segments", role="quiet", width=1),
            Mark("intervals", "segments", width=4, alpha=0.3),
            Mark("lines", "segments", width=1.5, alpha=0.8),
            Mark("means", "points", hover=hover, size=8),
        ],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(table),
        legend={plain(g): tint[g] for g in groups},
    )


def forgetting(
    ds: xr.Dataset, by: str = "trained_stage", statistic: str = "loss", dynamic: bool | None = None
) -> Figure:
    """Draw a statistic of every group against the number of stages since it was trained on: what is forgotten.

    Args:
        ds: an open store with statistics, or the result of `forgetting_table`.
        by: label column of the groups; they have to be stages.
        statistic: loss, answer_loss, entropy, a norm, ...
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for what the statistic has of layer and token; thick bars are 95 %
        intervals over entities, the dashed line is the mean over groups not yet trained on, where there are others
        at stages after the untrained one.
    """
    return to_holoviews(forgetting_spec(ds, by, statistic), dynamic)


def stage_drift_spec(centroids: xr.Dataset) -> FigureSpec:
    """Describe `stage_drift` without drawing it."""
    title = "How far each group's centroid moves at each stage"
    centroid = require_variable(centroids, "centroid", "stage_drift", "sl.centroids(ds, by=...)")
    if "stage" not in centroid.dims or centroid.sizes["stage"] < 2:
        return message_spec("stage_drift", title, "Drift needs at least two recorded stages.", centroids)
    steps = stage_steps(centroids)
    stages = [plain(s, 16) for s in values_of(steps, "stage")]
    groups = group_names(centroids)
    trained, untrained = result_order(centroids)
    tint = stage_colors(groups, trained, untrained)
    sliders, fixed = split_dims(steps, ("stage", "group"))
    x = np.arange(len(stages), dtype=float)
    read = lookup(steps, ("group", "stage"))
    own = {g: stages.index(plain(g, 16)) for g in groups if plain(g, 16) in stages}
    top = float(np.nanmax(steps.values)) if np.isfinite(steps.values).any() else 1.0

    def tables(place: SliderValues) -> dict[str, Table]:
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
    return FigureSpec(
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
    return to_holoviews(stage_drift_spec(centroids), dynamic)


def probe_generalisation_spec(scores: xr.DataArray) -> FigureSpec:
    """Describe `probe_generalisation` without drawing it."""
    if "group" not in scores.dims:
        raise InputError(
            f"plots.probe_generalisation needs a dim 'group'; got {scores.dims}. Make it with sl.generalise(probes, "
            "ds)."
        )
    title = "Mean score of every group along one pair's probe"
    groups = group_names(scores)
    trained, untrained = result_order(scores)
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

    def tables(place: SliderValues) -> dict[str, Table]:
        y = values(place)
        out: dict[str, Table] = {
            "zero": {"x0": [-0.5], "y0": [0.0], "x1": [len(groups) - 0.5], "y1": [0.0]},
            "stems": {"x0": x, "y0": np.zeros(len(x)), "x1": x, "y1": y, "color": colors},
            "scores": {"x": x, "y": y, "color": colors, "group": names},
        }
        if len(bounds) == 2:
            out["intervals"] = {"x0": x, "y0": bounds[0](place), "x1": x, "y1": bounds[1](place), "color": colors}
        return out

    def limits(place: SliderValues) -> tuple[float, float, float, float]:
        y = np.concatenate([values(place), *(read(place) for read in bounds)])
        y = y[np.isfinite(y)]
        low, high = padded(float(min(0.0, *y)), float(max(0.0, *y))) if y.size else (0.0, 1.0)
        return (-0.5, len(groups) - 0.5, low, high)

    return FigureSpec(
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
    return to_holoviews(probe_generalisation_spec(scores), dynamic)
