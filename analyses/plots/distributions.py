"""How norms, losses and confidence differ between groups, and how training went."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.plots.colors import stage_colors
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
from stratalens.analyses.stats.quantiles import (
    QUANTILES,
    statistic_quantiles,
)
from stratalens.store.errors import InputError


def statistic_distributions_spec(data: xr.Dataset, by: str = "trained_stage") -> FigureSpec:
    """Describe `statistic_distributions` without drawing it."""
    title = "Norms, losses and confidence by group"
    quantiles = data if "quantile" in data.data_vars else statistic_quantiles(data, by)
    array = quantiles["quantile"]
    groups = group_names(quantiles)
    names = [str(s) for s in values_of(quantiles, "statistic")]
    if not groups:
        return message_spec("statistic_distributions", title, "There are no groups to compare.", quantiles)
    trained, untrained = result_order(quantiles)
    tint = stage_colors(groups, trained, untrained)
    sliders, fixed = split_dims(array, ("statistic", "group", "q"))
    shift = (np.arange(len(groups)) - (len(groups) - 1) / 2) * 0.8 / max(len(groups), 1)
    x = (np.arange(len(names))[:, None] + shift[None]).ravel()
    colors = [tint[g] for _ in names for g in groups]
    who = [plain(g) for _ in names for g in groups]
    what = [plain(n) for n in names for _ in groups]
    read = lookup(array, ("statistic", "group", "q"))
    finite = array.values[np.isfinite(array.values)]
    top = float(np.abs(finite).max()) * 1.05 if finite.size else 1.0

    def tables(place: SliderValues) -> dict[str, Table]:
        q = read(place).reshape(-1, len(QUANTILES))
        return {
            "zero": {"x0": [-0.5], "y0": [0.0], "x1": [len(names) - 0.5], "y1": [0.0]},
            "tails": {"x0": x, "y0": q[:, 0], "x1": x, "y1": q[:, 4], "color": colors},
            "middles": {"x0": x, "y0": q[:, 1], "x1": x, "y1": q[:, 3], "color": colors},
            "medians": {"x": x, "y": q[:, 2], "color": colors, "group": who, "statistic": what},
        }

    hover = {"statistic": "statistic", "group": "group", "y": "median (standard deviations)"}
    return FigureSpec(
        name="statistic_distributions",
        title=title,
        x=Axis("statistic", ticks=[(float(i), plain(n, 20)) for i, n in enumerate(names)], rotate=len(names) > 3),
        y=Axis("standard deviations from the mean"),
        marks=[
            Mark("zero", "segments", role="ink", width=1.2, dash="dashed"),
            Mark("tails", "segments", width=1.5, alpha=0.8),
            Mark("middles", "segments", width=6, alpha=0.55),
            Mark("medians", "points", hover=hover, size=8),
        ],
        tables=tables,
        limits=lambda place: (-0.5, len(names) - 0.5, -top, top),
        sliders=sliders,
        fixed=fixed,
        site=site_of(quantiles),
        legend={plain(g): tint[g] for g in groups},
    )


def statistic_distributions(ds: xr.Dataset, by: str = "trained_stage", dynamic: bool | None = None) -> Figure:
    """Draw medians, quartiles and 5-95 % ranges of norms, losses and confidence for each group.

    Args:
        ds: an open store with statistics, or the result of `statistic_quantiles`.
        by: label column that names the groups.
        dynamic: see `to_holoviews`.
    """
    return to_holoviews(statistic_distributions_spec(ds, by), dynamic)


def loss_curves_spec(losses: pd.DataFrame, known: Sequence[str] = ()) -> FigureSpec:
    """Describe `loss_curves` without drawing it."""
    title = "Training loss of each stage"
    missing = [c for c in ("stage", "step", "loss") if c not in losses]
    if missing:
        raise InputError(f"loss curves need the columns stage, step and loss; {', '.join(missing)} missing")
    if losses.empty:
        return message_spec("loss_curves", title, "No training losses were kept.")
    stages: list[Hashable] = list(dict.fromkeys(losses["stage"]))
    tint = stage_colors([str(s) for s in stages], known)
    lines: dict[str, list[Any]] = {k: [] for k in ("x0", "y0", "x1", "y1", "color")}
    dots: dict[str, list[Any]] = {k: [] for k in ("x", "y", "color", "stage")}
    end = -np.inf
    for stage in stages:
        part = losses[losses["stage"] == stage]
        x, y = part["step"].to_numpy(float), part["loss"].to_numpy(float)
        if x.min() <= end:  # its steps are counted from its own start
            x = x + end
        end = float(x.max())
        lines["x0"].extend(x[:-1])
        lines["x1"].extend(x[1:])
        lines["y0"].extend(y[:-1])
        lines["y1"].extend(y[1:])
        lines["color"].extend([tint[str(stage)]] * (len(x) - 1))
        dots["x"].extend(x)
        dots["y"].extend(y)
        dots["color"].extend([tint[str(stage)]] * len(x))
        dots["stage"].extend([plain(stage)] * len(x))
    x0, x1 = padded(float(np.min(dots["x"])), float(np.max(dots["x"])), 0.02)
    tables: dict[str, Table] = {"lines": lines, "steps": dots}
    lowest, highest = float(np.nanmin(dots["y"])), float(np.nanmax(dots["y"]))
    # the first steps are far above all others, and where a loss ends is what is to be seen
    log = lowest > 0
    low, high = (0.85 * lowest, 1.15 * highest) if log else (min(0.0, 1.08 * lowest), 1.08 * highest)
    return FigureSpec(
        name="loss_curves",
        title=title,
        x=Axis("optimiser step, all stages in a row"),
        y=Axis(f"loss (nats per token{', log scale' if log else ''})", log=log),
        marks=[
            Mark("lines", "segments", width=2),
            # many dots would hide the lines: they are there for the hover
            Mark(
                "steps",
                "points",
                hover={"stage": "stage", "x": "step", "y": "loss"},
                size=4,
                alpha=1 if len(dots["x"]) < 100 else 0,
            ),
        ],
        tables=lambda place: tables,
        limits=lambda place: (x0, x1, low, high),
        height=280,
        legend={plain(s): tint[str(s)] for s in stages},
    )


def loss_curves(losses: pd.DataFrame, known: Sequence[str] = ()) -> Figure:
    """Draw the training loss of each stage, one after the other.

    Args:
        losses: columns stage, step, loss (nats per token), in the order of training; steps may be counted
            through or from the start of each stage.
        known: all trained stages in order, so that colours agree with other figures.
    """
    return to_holoviews(loss_curves_spec(losses, known))
