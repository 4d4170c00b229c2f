"""Scores along layers; chance, intervals and nulls always drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.plots.estimates import PARTS, estimate, extreme_pair, pair_mean
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
    plain,
    require,
    site_of,
    split_dims,
    values_of,
)

MEAN_OF_PAIRS = "mean of all pairs"


def layer_sweep_picture(probes: xr.Dataset, name: str = "accuracy") -> Picture:
    """Describe `layer_sweep` without drawing it."""
    array = require(probes, name, "layer_sweep", "sl.probe(ds, target=...)")
    title = f"Probe {name} by layer"
    if "layer" not in array.coords:
        return message_picture(
            "layer_sweep", title, "This result has no layers: its site lies outside the blocks.", probes
        )
    if "layer" not in array.dims:
        probes = probes.expand_dims("layer")
    pairs = [str(p) for p in values_of(probes, "pair")] or ["all groups"]
    result = estimate(probes, name)
    result = result if "pair" in result.dims else result.expand_dims(pair=pairs)
    mean = pair_mean(probes, name)
    main = extreme_pair(probes) or (pairs[0] if len(pairs) == 1 else None)
    sliders, fixed = split_dims(probes[name], ("layer", "pair", "fold"))
    layers = np.array(values_of(probes, "layer"), dtype=float)
    trained, untrained = trained_order(probes)
    later = [str(g) for g in np.atleast_1d(probes["pair_second"].values)] if "pair_second" in probes.coords else []
    tint = stage_colors(list(dict.fromkeys(later)), trained or group_names(probes), untrained) if later else {}
    color = {p: tint[g] for p, g in zip(pairs, later, strict=True)} if later else dict.fromkeys(pairs, HIGHLIGHT)

    main_color = color[main] if main else HIGHLIGHT
    bold_color = {MEAN_OF_PAIRS: HIGHLIGHT} | ({main: main_color} if main else {})

    read = {k: lookup(result[k], ("pair", "layer")) for k in PARTS}
    read_mean = {k: lookup(mean[k], ("layer",)) for k in PARTS}

    def curves(place: Place) -> dict[str, dict[str, np.ndarray]]:
        got = {k: read[k](place) for k in PARTS}
        out = {p: {k: got[k][i] for k in PARTS} for i, p in enumerate(pairs)}
        if len(pairs) > 1:
            out[MEAN_OF_PAIRS] = {k: read_mean[k](place) for k in PARTS}
        return out

    def tables(place: Place) -> dict[str, Table]:
        every = curves(place)
        bold = [p for p in (main, MEAN_OF_PAIRS) if p in every]
        thin = [p for p in pairs if p not in bold]
        out = {
            "pairs": _chain({p: every[p] for p in thin}, layers, color),
            "pair_points": _dots({p: every[p] for p in thin}, layers, color),
            "null": _chain({p: {"value": every[p]["null"]} for p in bold[:1]}, layers, None),
            "intervals": _bars({p: every[p] for p in bold}, layers, bold_color),
            "main": _chain({p: every[p] for p in bold}, layers, bold_color),
            "main_points": _dots({p: every[p] for p in bold}, layers, bold_color),
        }
        return out

    hover = {"series": "pair", "x": "layer", "y": name, "interval": "95 %", "null": "chance or null"}
    marks = [
        Mark("null", "segments", role="ink", width=1.5, dash="dashed"),
        Mark("pairs", "segments", width=1, alpha=0.35),
        Mark("pair_points", "points", hover=hover, size=4, alpha=0.5),
        Mark("intervals", "segments", width=5, alpha=0.3),
        Mark("main", "segments", width=2.5),
        Mark("main_points", "points", hover=hover, size=8),
    ]
    if len(pairs) == 1:
        marks = [m for m in marks if not m.name.startswith("pair")]
    legend = {plain(main): main_color} if main else {}
    legend |= {MEAN_OF_PAIRS: HIGHLIGHT} if len(pairs) > 1 else {}
    legend |= {f"other pairs, later group {plain(g)}": c for g, c in tint.items()} if len(pairs) > 2 else {}
    low = float(np.nanmin([np.nanmin(result["low"].fillna(result["value"])), np.nanmin(result["value"])]))
    high = float(np.nanmax([np.nanmax(result["high"].fillna(result["value"])), np.nanmax(result["value"])]))
    return Picture(
        name="layer_sweep",
        title=title,
        x=Axis("layer (block)", ticks=[(float(v), f"{v:g}") for v in layers[:: max(1, len(layers) // 12)]]),
        y=Axis(f"held-out {name} (dashed: chance or null)"),
        marks=marks,
        tables=tables,
        limits=lambda place: (
            layers[0] - 0.6,
            layers[-1] + 0.6,
            min(0.4, low - 0.02),
            min(1.02, max(0.8, high + 0.03)),
        ),
        sliders=sliders,
        fixed=fixed,
        site=site_of(probes),
        height=380,
        legend=legend,
    )


def _chain(curves: Mapping[str, Mapping[str, np.ndarray]], x: np.ndarray, color: Mapping[str, str] | None) -> Table:
    """Lines as segments between neighbours; a single layer gives a short level stroke."""
    table: dict[str, list[Any]] = {k: [] for k in ("x0", "y0", "x1", "y1", *(("color",) if color else ()))}
    for name, curve in curves.items():
        y = curve["value"]
        if len(x) == 1:
            table["x0"].append(x[0] - 0.5)
            table["x1"].append(x[0] + 0.5)
            table["y0"].append(y[0])
            table["y1"].append(y[0])
        else:
            table["x0"].extend(x[:-1])
            table["x1"].extend(x[1:])
            table["y0"].extend(y[:-1])
            table["y1"].extend(y[1:])
        if color:
            table["color"].extend([color[name]] * max(len(x) - 1, 1))
    return table


def _dots(curves: Mapping[str, Mapping[str, np.ndarray]], x: np.ndarray, color: Mapping[str, str]) -> Table:
    table: dict[str, list[Any]] = {k: [] for k in ("x", "y", "color", "series", "interval", "null")}
    for name, curve in curves.items():
        table["x"].extend(x)
        table["y"].extend(curve["value"])
        table["color"].extend([color[name]] * len(x))
        table["series"].extend([plain(name)] * len(x))
        table["interval"].extend(f"[{a:z.3f}, {b:z.3f}]" for a, b in zip(curve["low"], curve["high"], strict=True))
        table["null"].extend(f"{v:z.3f}" for v in curve["null"])
    return table


def _bars(curves: Mapping[str, Mapping[str, np.ndarray]], x: np.ndarray, color: Mapping[str, str]) -> Table:
    table: dict[str, list[Any]] = {k: [] for k in ("x0", "y0", "x1", "y1", "color")}
    for name, curve in curves.items():
        table["x0"].extend(x)
        table["x1"].extend(x)
        table["y0"].extend(curve["low"])
        table["y1"].extend(curve["high"])
        table["color"].extend([color[name]] * len(x))
    return table


def layer_sweep(probes: xr.Dataset, name: str = "accuracy", dynamic: bool | None = None) -> Figure:
    """Draw held-out accuracy against layer: first-versus-last pair and mean of pairs bold, all other pairs thin.

    Args:
        probes: result of `sl.probe`; intervals from `<name>_low/_high`, else from its folds.
        name: "accuracy" or "auc".
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for what is left of stage and token.
    """
    return to_holoviews(layer_sweep_picture(probes, name), dynamic)
