"""Figures of recorded statistics by group, and of the training loss."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.data.training_order import group_names
from stratalens.analyses.plots.colors import group_colors, stage_colors
from stratalens.analyses.plots.render_holoviews import Figure, to_holoviews
from stratalens.analyses.plots.spec import (
    Axis,
    FigureSpec,
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
from stratalens.analyses.stats.quantiles import QUANTILES, statistic_quantiles
from stratalens.store.errors import InputError


def statistic_distributions(ds: xr.Dataset, by: str = "trained_stage", dynamic: bool | None = None) -> Figure:
    """Draw medians, quartiles and 5-95 % ranges of recorded statistics by group.

    Args:
        ds: open store with statistics, or result of `statistic_quantiles`.
        by: label column of the groups.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage, layer and token, where the statistics have several.
    """
    return to_holoviews(statistic_distributions_spec(ds, by), dynamic)


def statistic_distributions_spec(data: xr.Dataset, by: str = "trained_stage") -> FigureSpec:
    """Describe `statistic_distributions` without drawing it."""
    title = "Norms, losses and confidence by group"
    quantiles = data if "quantile" in data.data_vars else statistic_quantiles(data, by)
    array = quantiles["quantile"]
    groups = group_names(quantiles)
    statistics = [str(s) for s in values_of(quantiles, "statistic")]
    if not groups:
        return message_spec("statistic_distributions", title, "There are no groups to compare.", quantiles)
    colors_of = group_colors(quantiles)
    sliders, fixed = split_dims(array, ("statistic", "group", "q"))
    shift = (np.arange(len(groups)) - (len(groups) - 1) / 2) * 0.8 / max(len(groups), 1)
    x = (np.arange(len(statistics))[:, None] + shift[None]).ravel()
    colors = [colors_of[g] for g in groups] * len(statistics)
    group_column = [plain_text(g) for g in groups] * len(statistics)
    statistic_column = [plain_text(n) for n in statistics for _ in groups]
    read = lookup(array, ("statistic", "group", "q"))
    finite = array.values[np.isfinite(array.values)]
    top = float(np.abs(finite).max()) * 1.05 if finite.size else 1.0

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        q = read(slider_values).reshape(-1, len(QUANTILES))
        medians = {"x": x, "y": q[:, 2], "color": colors, "group": group_column, "statistic": statistic_column}
        return {
            "zero": {"x0": [-0.5], "y0": [0.0], "x1": [len(statistics) - 0.5], "y1": [0.0]},
            "tails": {"x0": x, "y0": q[:, 0], "x1": x, "y1": q[:, 4], "color": colors},
            "middles": {"x0": x, "y0": q[:, 1], "x1": x, "y1": q[:, 3], "color": colors},
            "medians": medians,
        }

    ticks = [(float(i), plain_text(n, 20)) for i, n in enumerate(statistics)]
    hover = {"statistic": "statistic", "group": "group", "y": "median (standard deviations)"}
    return FigureSpec(
        name="statistic_distributions",
        title=title,
        x=Axis("statistic", ticks=ticks, rotate=len(statistics) > 3),
        y=Axis("standard deviations from the mean"),
        marks=[
            Mark("zero", "segments", role="foreground", width=1.2, dash="dashed"),
            Mark("tails", "segments", width=1.5, alpha=0.8),
            Mark("middles", "segments", width=6, alpha=0.55),
            Mark("medians", "points", hover=hover, size=8),
        ],
        tables=tables,
        limits=lambda slider_values: (-0.5, len(statistics) - 0.5, -top, top),
        sliders=sliders,
        fixed=fixed,
        site=site_of(quantiles),
        legend={plain_text(g): colors_of[g] for g in groups},
    )


def loss_curves(losses: pd.DataFrame, known: Sequence[str] = ()) -> Figure:
    """Draw the training loss of all stages in sequence.

    Args:
        losses: columns stage, step and loss (nats per token), in training order. Steps count through all stages
            or restart with each stage.
        known: all trained stages in order, so that colours agree with other figures.

    Returns:
        HoloViews object without sliders.

    Raises:
        InputError: a column is missing.
    """
    return to_holoviews(loss_curves_spec(losses, known))


def loss_curves_spec(losses: pd.DataFrame, known: Sequence[str] = ()) -> FigureSpec:
    """Describe `loss_curves` without drawing it."""
    title = "Training loss of each stage"
    missing = [c for c in ("stage", "step", "loss") if c not in losses]
    if missing:
        raise InputError(f"loss curves need the columns stage, step and loss; missing: {', '.join(missing)}")
    if losses.empty:
        return message_spec("loss_curves", title, "No training losses were recorded.")
    stages: list[Hashable] = list(dict.fromkeys(losses["stage"]))
    colors = stage_colors([str(s) for s in stages], known)
    lines: dict[str, list[Any]] = {k: [] for k in ("x0", "y0", "x1", "y1", "color")}
    steps: dict[str, list[Any]] = {k: [] for k in ("x", "y", "color", "stage")}
    end = -np.inf
    for stage in stages:
        rows = losses[losses["stage"] == stage]
        color = colors[str(stage)]
        x, y = rows["step"].to_numpy(float), rows["loss"].to_numpy(float)
        if x.min() <= end:  # the steps of this stage restart
            x = x + end
        end = float(x.max())
        lines["x0"].extend(x[:-1])
        lines["x1"].extend(x[1:])
        lines["y0"].extend(y[:-1])
        lines["y1"].extend(y[1:])
        lines["color"].extend([color] * (len(x) - 1))
        steps["x"].extend(x)
        steps["y"].extend(y)
        steps["color"].extend([color] * len(x))
        steps["stage"].extend([plain_text(stage)] * len(x))
    x0, x1 = pad_limits(float(np.min(steps["x"])), float(np.max(steps["x"])), 0.02)
    tables: dict[str, Table] = {"lines": lines, "steps": steps}
    lowest, highest = float(np.nanmin(steps["y"])), float(np.nanmax(steps["y"]))
    # The first steps are far above all others; a log axis shows the final loss, which matters more.
    log = lowest > 0
    low, high = (0.85 * lowest, 1.15 * highest) if log else (min(0.0, 1.08 * lowest), 1.08 * highest)
    # Many dots would hide the lines; invisible ones still show the hover.
    dot_alpha = 1 if len(steps["x"]) < 100 else 0
    hover = {"stage": "stage", "x": "step", "y": "loss"}
    return FigureSpec(
        name="loss_curves",
        title=title,
        x=Axis("optimiser step, all stages in sequence"),
        y=Axis(f"loss (nats per token{', log scale' if log else ''})", log=log),
        marks=[
            Mark("lines", "segments", width=2),
            Mark("steps", "points", hover=hover, size=4, alpha=dot_alpha),
        ],
        tables=lambda slider_values: tables,
        limits=lambda slider_values: (x0, x1, low, high),
        height=280,
        legend={plain_text(s): colors[str(s)] for s in stages},
    )
