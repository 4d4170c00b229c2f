"""What changes from checkpoint to checkpoint: how probe directions turn, and what is forgotten with time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from stratalens.analyses.directions import drift
from stratalens.analyses.labels import clusters
from stratalens.analyses.labels import groups as label_groups
from stratalens.analyses.ordering import exposure
from stratalens.analyses.plots.hv_backend import Figure, to_holoviews
from stratalens.analyses.plots.palette import HIGHLIGHT, group_names, stage_colors, trained_order
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
from stratalens.store.errors import InputError, near

Reference = Literal["first", "last", "previous"]
AGAINST = {"first": "the first stage", "last": "the last stage", "previous": "the stage before"}


def direction_drift_picture(probes: xr.Dataset, reference: Reference = "last") -> Picture:
    """Describe `direction_drift` without drawing it."""
    title = "How probe directions turn from stage to stage"
    coef = require(probes, "coef", "direction_drift", "sl.probe(ds, target=...)")
    if "stage" not in coef.dims or coef.sizes["stage"] < 2:
        return message_picture("direction_drift", title, "Drift needs at least two recorded stages.", probes)
    if reference not in AGAINST:
        raise InputError(f"direction_drift: reference={reference!r}; {near(str(reference), AGAINST)}")
    names = values_of(probes, "stage")
    present = probes["stage"].values.tolist()
    ordered = probes.isel(stage=[present.index(s) for s in names])
    cosine = drift(ordered, "stage", reference)["cosine"]
    if "pair" not in cosine.dims:
        cosine = cosine.expand_dims(pair=["all groups"])
    pairs = [str(p) for p in values_of(cosine, "pair")]
    trained, untrained = trained_order(probes)
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

    def tables(place: Place) -> dict[str, Table]:
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
    return Picture(
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
    return to_holoviews(direction_drift_picture(probes, reference), dynamic)


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
        raise InputError(f"forgetting: no statistic {statistic!r} by stage and entity; {near(statistic, known)}")
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
    _, untrained = trained_order(table)
    taught = since & ~np.isin(np.array([str(s) for s in table["stage"].values]), untrained)
    return taught if taught.any() else since


def forgetting_picture(data: xr.Dataset, by: str = "trained_stage", statistic: str = "loss") -> Picture:
    """Describe `forgetting` without drawing it."""
    table = data if {"value", "exposure"} <= set(data.data_vars) else forgetting_table(data, by, statistic)
    name = plain(table.attrs.get("statistic", statistic))
    title = f"{name[:1].upper()}{name[1:]} against the time since training"
    groups = group_names(table)
    if "stage" not in table["value"].dims or table.sizes["stage"] < 2:
        return message_picture("forgetting", title, "Forgetting needs at least two recorded stages.", table)
    trained, untrained = trained_order(table)
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

    def tables(place: Place) -> dict[str, Table]:
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

    def limits(place: Place) -> tuple[float, float, float, float]:
        every = np.concatenate([r(place).ravel() for r in read.values()])
        every = every[np.isfinite(every)]
        low, high = padded(float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
        return (float(x.min()) - 0.5, float(x.max()) + 0.5, low, high)

    ticks = [(float(v), f"{v:+g}" if v else "0") for v in np.unique(x)]
    unit = f"{plain(table.attrs['units'])}; " if table.attrs.get("units") else ""
    hover = {"group": "group", "at": "at stage", "x": "stages since training", "y": name}
    return Picture(
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
    return to_holoviews(forgetting_picture(ds, by, statistic), dynamic)
