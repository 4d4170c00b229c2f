"""Figure of the groups that one probe of all groups recognises."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stratalens.analyses.data.groups import clusters, groups
from stratalens.analyses.data.results import require_variable
from stratalens.analyses.plots.colors import group_colors
from stratalens.analyses.plots.render_holoviews import Figure, to_holoviews
from stratalens.analyses.plots.spec import (
    Axis,
    FigureSpec,
    Mark,
    SliderValues,
    Table,
    lookup,
    plain_text,
    site_of,
    split_dims,
)
from stratalens.analyses.plots.wording import column_of
from stratalens.analyses.stats.intervals import share_interval
from stratalens.analyses.stats.scores import sum_by_unit


def group_recall(probes: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw the share of every group's rows that a multi-class probe assigns to it.

    Args:
        probes: result of `sl.probe(pairs="multiclass")`.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage, layer and token. The dashed line is 1 / number of groups.

    Raises:
        InputError: the Dataset has no `right`.
    """
    return to_holoviews(group_recall_spec(probes)[0], dynamic)


def group_recall_spec(probes: xr.Dataset) -> tuple[FigureSpec, xr.Dataset]:
    """Describe `group_recall` without drawing it; also return the result of `recall_by_group`."""
    table = recall_by_group(probes)
    names, colors = [str(g) for g in table["group"].values], list(group_colors(table).values())
    labels = [plain_text(g) for g in names]
    sliders, fixed = split_dims(table["recall"], ("group",))
    read = {k: lookup(table[k], ("group",)) for k in ("recall", "recall_low", "recall_high")}
    y = -np.arange(len(names), dtype=float)
    chance, rows = 1 / len(names), table["rows"].values.tolist()

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        value, low, high = (read[k](slider_values) for k in read)
        interval = [f"[{a:z.2f}, {b:z.2f}]" for a, b in zip(low, high, strict=True)]
        points: Table = {"x": value, "y": y, "color": colors, "group": labels, "interval": interval, "rows": rows}
        return {
            "chance": {"x0": [chance], "y0": [y[-1] - 0.6], "x1": [chance], "y1": [0.6]},
            "bars": {"x0": low, "y0": y, "x1": high, "y1": y, "color": colors},
            "recall": points,
        }

    hover = {"group": "group", "x": "recall", "interval": "95 %", "rows": "rows"}
    spec = FigureSpec(
        name="group_recall",
        title=f"Recall of each group of {column_of(table)}" if column_of(table) else "Recall of each group",
        x=Axis("share of its rows recognised (dashed: chance)"),
        y=Axis("", ticks=[(float(p), plain_text(g, 16)) for p, g in zip(y, names, strict=True)]),
        marks=[
            Mark("chance", "segments", role="foreground", width=1.5, dash="dashed"),
            Mark("bars", "segments", width=5, alpha=0.35),
            Mark("recall", "points", hover=hover, size=9),
        ],
        tables=tables,
        limits=lambda slider_values: (-0.02, 1.02, float(y[-1]) - 0.6, 0.6),
        sliders=sliders,
        fixed=fixed,
        site=site_of(probes),
        height=max(180, 90 + 22 * len(names)),
    )
    return spec, table


def recall_by_group(probes: xr.Dataset) -> xr.Dataset:
    """Compute the share of every group's test rows that a multi-class probe classifies correctly.

    Args:
        probes: result of `sl.probe(pairs="multiclass")`.

    Returns:
        Dataset:

        - recall (stage, layer, token, group): float64.
        - recall_low, recall_high (stage, layer, token, group): float64, 95 % interval over entities, as that of the
          accuracy of a probe.
        - rows (group): int64, test rows.

    Raises:
        InputError: the Dataset has no `right`.
    """
    right = require_variable(probes, "right", "group_recall", 'sl.probe(ds, target=..., pairs="multiclass")')
    label_groups = groups(probes, str(probes.attrs["target"]))
    names = [str(g) for g in (probes["group"].values if "group" in probes.coords else label_groups.names)]
    units, own = clusters(probes), [str(n) for n in label_groups.names]
    if "pair" in right.dims:
        probes = probes.isel(pair=0, drop=True)
    dims = [d for d in probes["right"].dims if d != "entity"]
    tested = probes["tested"].transpose(*dims, "entity").values.astype(float)
    hits = probes["right"].transpose(*dims, "entity").values * tested
    shape, rows = tested.shape[:-1], np.zeros(len(names), dtype=np.int64)
    recall, low, high = np.full((3, *shape, len(names)), np.nan)
    for i, name in enumerate(names):
        members = np.flatnonzero(label_groups.codes == own.index(name))
        _, unit = np.unique(units[members], return_inverse=True)
        flat = (x[..., members].reshape(-1, len(members)) for x in (hits, tested))
        right_rows, all_rows = (sum_by_unit(x, unit, int(unit.max(initial=-1)) + 1) for x in flat)
        rows[i] = int((tested[..., members] > 0).reshape(-1, len(members)).any(axis=0).sum())
        with np.errstate(invalid="ignore"):
            recall[..., i] = (right_rows.sum(axis=1) / all_rows.sum(axis=1)).reshape(shape)
        bounds = share_interval(right_rows, all_rows, np.zeros(right_rows.shape[1], dtype=np.int64))
        low[..., i], high[..., i] = (bound.reshape(shape) for bound in bounds)
    coords = {k: c for k, c in probes["right"].coords.items() if k in ("stage", "stage_order", "layer", "token")}
    return xr.Dataset(
        {
            "recall": ((*dims, "group"), recall),
            "recall_low": ((*dims, "group"), low),
            "recall_high": ((*dims, "group"), high),
            "rows": ("group", rows),
        },
        coords={**coords, "group": np.array(names, dtype=object)},
        attrs=probes.attrs,
    )
