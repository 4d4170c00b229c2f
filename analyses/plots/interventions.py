"""Figures of interventions: effect by dose with the band of random directions; effects by layer and direction."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from stratalens.analyses.data.results import require_variable
from stratalens.analyses.plots.colors import DIVERGING, text_colors_on
from stratalens.analyses.plots.drawn_parts import MAX_LINES, drawn_note, evenly_spaced
from stratalens.analyses.plots.matrices import MAX_NUMBERED_CELLS
from stratalens.analyses.plots.palettes import qualitative_colors
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

_MADE_BY = "sl.intervene(...)"
_BAND = (0.025, 0.975)
_PART = {"effect": "effect", "slope": "slope (effect per unit of dose)"}


def dose_response(effects: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw the effect of each direction by dose, with the band of the random directions.

    Args:
        effects: result of `sl.intervene`. Without doses (ablation, interchange) the directions are side by side.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage and layer. Thick bars are 95 % intervals over entities. The grey band
        has 95 % of the random directions. Of many directions, evenly spaced ones are drawn.
    """
    return to_holoviews(dose_response_spec(effects), dynamic)


def dose_response_spec(effects: xr.Dataset) -> FigureSpec:
    """Describe `dose_response` without drawing it."""
    require_variable(effects, "effect", "dose_response", _MADE_BY)
    unit = _unit(effects)
    title = f"Effect of {_verb(effects)} on {plain_text(effects.attrs.get('outcome', 'the outcome'))}"
    every = effects.sizes["direction"]
    effects = effects.isel(direction=evenly_spaced(every, min(every, MAX_LINES)))
    if not bool(np.isfinite(effects["effect"]).any()):
        return message_spec("dose_response", title, "No direction was tested: all have length zero here.", effects)
    names = [plain_text(name, 24) for name in values_of(effects, "direction")]
    known = qualitative_colors(names)
    colors = [known[name] for name in names]
    doses = np.array(values_of(effects, "dose"), dtype=float)
    order = np.argsort(doses)
    doses = doses[order]
    side_by_side = len(doses) == 1
    x = np.arange(len(names), dtype=float)[:, None] if side_by_side else np.tile(doses, (len(names), 1))
    sliders, fixed = split_dims(effects["effect"], ("direction", "dose"))
    parts = ("effect", "effect_low", "effect_high") + (("effect_p",) if "effect_p" in effects else ())
    read = {part: lookup(effects[part].isel(dose=order), ("direction", "dose")) for part in parts}
    has_null = effects.sizes.get("random", 0) > 0
    read_null = lookup(effects["null"].isel(dose=order), ("dose", "random")) if has_null else None
    left, right = float(x.min()), float(x.max())
    margin = 0.5 if side_by_side else max(0.06 * (right - left), 1e-9)

    def band(slider_values: SliderValues) -> np.ndarray:
        if read_null is None:
            return np.full((2, len(doses)), np.nan)
        drawn = read_null(slider_values)
        known_draws = np.where(np.isfinite(drawn).any(axis=1, keepdims=True), drawn, 0.0)
        limits = np.nanquantile(known_draws, _BAND, axis=1)
        return np.where(np.isfinite(drawn).any(axis=1), limits, np.nan)

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        value, low, high = (read[part](slider_values) for part in parts[:3])
        null_low, null_high = band(slider_values)
        flat = x.ravel()
        intervals = zip(low.ravel(), high.ravel(), strict=True)
        p = read["effect_p"](slider_values).ravel() if "effect_p" in read else np.full(value.size, np.nan)
        at = np.array([left - margin, right + margin]) if side_by_side else doses
        own_low, own_high = (np.repeat(v, 2) if side_by_side else v for v in (null_low, null_high))
        edges = np.stack([own_low, own_high])
        return {
            "zero": {"x0": [left - margin], "y0": [0.0], "x1": [right + margin], "y1": [0.0]},
            "band": {"x0": at, "y0": own_low, "x1": at, "y1": own_high},
            "edges": {k: v for k, v in line_segments(np.stack([at, at]), edges, ["", ""]).items() if k != "color"},
            "intervals": {
                "x0": flat,
                "y0": low.ravel(),
                "x1": flat,
                "y1": high.ravel(),
                "color": repeat_values(colors, len(doses)),
            },
            "lines": line_segments(x, value, colors),
            "effects": {
                "x": flat,
                "y": value.ravel(),
                "color": repeat_values(colors, len(doses)),
                "direction": repeat_values(names, len(doses)),
                "interval": [f"[{a:z.3g}, {b:z.3g}]" for a, b in intervals],
                "null": [f"[{a:z.3g}, {b:z.3g}]" for a, b in zip(null_low, null_high, strict=True)] * len(names),
                "p": ["" if np.isnan(one) else f"{one:.2g}" for one in p],
            },
        }

    def limits(slider_values: SliderValues) -> Limits:
        shown = [read[part](slider_values).ravel() for part in parts[:3]]
        y = np.concatenate([*shown, band(slider_values).ravel(), [0.0]])
        y = y[np.isfinite(y)]
        return (left - margin, right + margin, *pad_limits(float(y.min()), float(y.max())))

    hover = {"direction": "direction", "y": "effect", "interval": "95 %", "null": "random directions", "p": "p"}
    dose_axis = Axis(plain_text(effects.attrs.get("dose", "dose (length of the added vector)")))
    return FigureSpec(
        name="dose_response",
        title=title + drawn_note(len(names), every, "directions"),
        x=Axis("direction", ticks=list(enumerate(names)), rotate=len(names) > 4) if side_by_side else dose_axis,
        y=Axis(f"effect{unit}; grey: random" if has_null else f"effect{unit}"),
        marks=[
            Mark("band", "segments", role="muted", width=10, alpha=0.3),
            Mark("edges", "segments", role="muted", width=1, dash="dashed"),
            Mark("zero", "segments", role="foreground", width=1),
            Mark("intervals", "segments", width=4, alpha=0.35),
            Mark("lines", "segments", width=1.5, alpha=0.8),
            Mark("effects", "points", hover={"x": "dose", **hover} if not side_by_side else hover, size=8),
        ],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(effects),
        legend=dict(zip(names, colors, strict=True)),
    )


def intervention_map(effects: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw the effect of each direction at each layer as a map.

    Args:
        effects: result of `sl.intervene`. With several doses the map shows the slope over the dose, else the effect.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with a slider for stage. White is no effect. "n.s." marks places where at least 5 % of the
        random directions are as strong.
    """
    return to_holoviews(intervention_map_spec(effects), dynamic)


def intervention_map_spec(effects: xr.Dataset) -> FigureSpec:
    """Describe `intervention_map` without drawing it."""
    require_variable(effects, "effect", "intervention_map", _MADE_BY)
    part = "slope" if "slope" in effects else "effect"
    title = f"{part.capitalize()} by layer and direction"
    if "layer" not in effects["effect"].coords:
        message = "These interventions have no layers: their site is outside the blocks."
        return message_spec("intervention_map", title, message, effects)
    shown = effects if part == "slope" else effects.isel(dose=-1)
    shown = shown.expand_dims("layer") if "layer" not in shown[part].dims else shown
    values = shown[part].values.astype(float)
    finite = np.abs(values[np.isfinite(values)])
    if not finite.size:
        return message_spec("intervention_map", title, "No direction was tested: all have length zero.", effects)
    layers: list[Hashable] = values_of(shown, "layer")
    names = [plain_text(name, 24) for name in values_of(shown, "direction")]
    wanted = [name for name in (part, f"{part}_low", f"{part}_high", f"{part}_p") if name in shown]
    read = {name: lookup(shown[name], ("direction", "layer")) for name in wanted}
    sliders, fixed = split_dims(shown[part], ("layer", "direction"))
    grid_rows, grid_columns = np.divmod(np.arange(len(names) * len(layers)), len(layers))
    columns, rows = grid_columns.astype(float), -grid_rows.astype(float)
    limit = float(finite.max()) or 1.0
    squares: Table = {"x0": columns - 0.5, "y0": rows - 0.5, "x1": columns + 0.5, "y1": rows + 0.5}
    squares |= {
        "layer": [plain_text(layers[i]) for i in grid_columns],
        "direction": [names[i] for i in grid_rows],
    }

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        numbers = {name: one(slider_values).ravel() for name, one in read.items()}
        value, p = numbers[part], numbers.get(f"{part}_p", np.full(columns.size, np.nan))
        intervals = zip(numbers[f"{part}_low"], numbers[f"{part}_high"], strict=True)
        text_color = text_colors_on(value, -limit, limit)
        weak = ["n.s." if one > 0.05 else "" for one in p]
        return {
            "cells": squares
            | {
                "value": value,
                "interval": [f"[{low:z.3g}, {high:z.3g}]" for low, high in intervals],
                "p": ["" if np.isnan(one) else f"{one:.2g}" for one in p],
            },
            "numbers": {
                "x": columns,
                "y": rows + 0.08,
                "text": ["" if np.isnan(one) else f"{one:z.2g}" for one in value],
                "text_color": text_color,
            },
            "verdicts": {"x": columns, "y": rows - 0.24, "text": weak, "text_color": text_color},
        }

    marks = [
        Mark(
            "cells",
            "cells",
            hover={"layer": "layer", "direction": "direction", "value": part, "interval": "95 %", "p": "p"},
        )
    ]
    if len(names) * len(layers) <= MAX_NUMBERED_CELLS:
        marks += [Mark("numbers", "labels", size=8), Mark("verdicts", "labels", size=7)]
    return FigureSpec(
        name="intervention_map",
        title=title,
        x=Axis("layer", ticks=[(float(i), plain_text(layer)) for i, layer in enumerate(layers)]),
        y=Axis("direction", ticks=[(-float(i), name) for i, name in enumerate(names)]),
        marks=marks,
        tables=tables,
        limits=lambda slider_values: (-0.5, len(layers) - 0.5, 0.5 - len(names), 0.5),
        sliders=sliders,
        fixed=fixed,
        site=site_of(effects),
        clim=(-limit, limit),
        palette=DIVERGING,
        colorbar=f"{_PART[part]}{_unit(effects)} on {plain_text(effects.attrs.get('outcome', 'the outcome'))}",
        height=max(240, 120 + 26 * len(names)),
    )


def _unit(effects: xr.Dataset) -> str:
    unit = plain_text(effects.attrs.get("unit", ""))
    return f" ({unit})" if unit else ""


def _verb(effects: xr.Dataset) -> str:
    verbs = {"steer": "steering", "ablate": "ablation", "patch": "interchange"}
    return verbs.get(str(effects.attrs.get("kind")), "an intervention")
