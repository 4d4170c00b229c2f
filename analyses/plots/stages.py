"""Figures of change over training: directions and centroids that move, scores of unseen groups."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from stratalens.analyses.data.results import require_variable
from stratalens.analyses.data.training_order import group_names, is_ordered
from stratalens.analyses.directions.directions import drift, stage_steps
from stratalens.analyses.plots.colors import HIGHLIGHT, MUTED, group_colors
from stratalens.analyses.plots.drawn_parts import MAX_LINES, MAX_NUMBERS, drawn_note, evenly_spaced, places
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
from stratalens.analyses.plots.wording import group_words
from stratalens.analyses.stats.estimates import extreme_pair
from stratalens.store.errors import InputError, suggest

Reference = Literal["first", "last", "previous"]

REFERENCE_LABELS = {"first": "the first stage", "last": "the last stage", "previous": "the stage before"}


def direction_drift(probes: xr.Dataset, reference: Reference = "last", dynamic: bool | None = None) -> Figure:
    """Draw the cosine of each pair's direction with that of a reference stage.

    Args:
        probes: result of `sl.probe` over at least two stages.
        reference: the first, the last or the previous stage.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for layer and token. The dashed lines enclose 95 % of the cosines of two
        unrelated directions with that many features. Of many pairs, evenly spaced ones are drawn.

    Raises:
        InputError: the Dataset has no `coef`, or `reference` is unknown.
    """
    return to_holoviews(direction_drift_spec(probes, reference), dynamic)


def direction_drift_spec(probes: xr.Dataset, reference: Reference = "last") -> FigureSpec:
    """Describe `direction_drift` without drawing it."""
    title = "How probe directions turn from stage to stage"
    coef = require_variable(probes, "coef", "direction_drift", "sl.probe(ds, target=...)")
    if "stage" not in coef.dims or coef.sizes["stage"] < 2:
        return message_spec("direction_drift", title, "Drift needs at least two recorded stages.", probes)
    if reference not in REFERENCE_LABELS:
        raise InputError(f"direction_drift: reference={reference!r}; {suggest(str(reference), REFERENCE_LABELS)}")
    names = values_of(probes, "stage")
    ordered, band = is_ordered(probes), random_cosine_band(coef)
    sliders, fixed = split_dims(coef, ("stage", "pair"))
    every = probes.sizes.get("pair", 1)
    limit = max(5, min(MAX_LINES, MAX_NUMBERS // (2 * len(names) * places(sliders))))
    colors_of = group_colors(probes) if ordered and "pair_second" in probes.coords else {}
    if every > limit:
        probes = probes.isel(pair=evenly_spaced(every, limit))
    cosine = drift(in_training_order(probes), "stage", reference)["cosine"]
    if "pair" not in cosine.dims:
        cosine = cosine.expand_dims(pair=["all groups"])
    pairs = [plain_text(p) for p in values_of(cosine, "pair")]
    title += drawn_note(len(pairs), every, "pairs")
    later = [str(g) for g in np.atleast_1d(probes["pair_second"].values)] if colors_of else []
    colors = [colors_of[g] for g in later] or [HIGHLIGHT if len(pairs) == 1 else MUTED["light"]] * len(pairs)
    read = lookup(cosine, ("pair", "stage"))
    stages = [plain_text(s, 16) for s in names]
    x, n = np.arange(len(stages), dtype=float), len(stages)

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        y = read(slider_values)
        return {
            "chance": {"x0": [-0.4] * 2, "y0": [-band, band], "x1": [n - 0.6] * 2, "y1": [-band, band]},
            "lines": line_segments(np.tile(x, (len(pairs), 1)), y, colors),
            "cosines": {
                "x": np.tile(x, len(pairs)),
                "y": y.ravel(),
                "color": repeat_values(colors, n),
                "pair": repeat_values(pairs, n),
                "at": stages * len(pairs),
            },
        }

    lowest = float(np.nanmin(cosine.values)) if np.isfinite(cosine.values).any() else 0.0
    bottom = min(-1.5 * band, lowest - 0.05)
    return FigureSpec(
        name="direction_drift",
        title=title,
        x=Axis("recorded stage", ticks=[(float(i), s) for i, s in enumerate(stages)]),
        y=Axis(f"cosine with {REFERENCE_LABELS[reference]} (dashed: unrelated)"),
        marks=[
            Mark("chance", "segments", role="foreground", width=1.2, dash="dashed"),
            Mark("lines", "segments", width=1.5, alpha=0.7),
            Mark("cosines", "points", hover={"pair": "pair", "at": "at stage", "y": "cosine"}, size=7),
        ],
        tables=tables,
        limits=lambda slider_values: (-0.4, n - 0.6, bottom, 1.05),
        sliders=sliders,
        fixed=fixed,
        site=site_of(probes),
        legend={f"later group {plain_text(g)}": colors_of[g] for g in dict.fromkeys(later)} if len(pairs) > 1 else {},
    )


def random_cosine_band(coef: xr.DataArray) -> float:
    """Return the 95 % bound of the absolute cosine of two unrelated directions."""
    known = {"stage", "layer", "token", "pair", "fold"}
    width = int(np.prod([coef.sizes[d] for d in coef.dims if d not in known]))
    return float(1.96 * width**-0.5)


def stage_drift(centroids: xr.Dataset, dynamic: bool | None = None) -> Figure:
    """Draw the distance that each group's centroid moves at each stage.

    Args:
        centroids: result of `sl.centroids` over at least two stages.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for layer and token. Where the groups are stages, a large dot marks the stage
        that trained the group.

    Raises:
        InputError: the Dataset has no `centroid`.
    """
    return to_holoviews(stage_drift_spec(centroids), dynamic)


def stage_drift_spec(centroids: xr.Dataset) -> FigureSpec:
    """Describe `stage_drift` without drawing it."""
    title = "How far each group's centroid moves at each stage"
    centroid = require_variable(centroids, "centroid", "stage_drift", "sl.centroids(ds, by=...)")
    if "stage" not in centroid.dims or centroid.sizes["stage"] < 2:
        return message_spec("stage_drift", title, "Drift needs at least two recorded stages.", centroids)
    steps = stage_steps(centroids)
    stages = [plain_text(s, 16) for s in values_of(steps, "stage")]
    groups = group_names(centroids)
    labels = [plain_text(g) for g in groups]
    colors = list(group_colors(centroids).values())
    sliders, fixed = split_dims(steps, ("stage", "group"))
    x, n = np.arange(len(stages), dtype=float), len(stages)
    read = lookup(steps, ("group", "stage"))
    trained = group_words(centroids).trained
    own = [(i, stages.index(plain_text(g, 16))) for i, g in enumerate(groups) if trained and g in stages]
    top = float(np.nanmax(steps.values)) if np.isfinite(steps.values).any() else 1.0

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        y = read(slider_values)
        return {
            "lines": line_segments(np.tile(x, (len(groups), 1)), y, colors),
            "moves": {
                "x": np.tile(x, len(groups)),
                "y": y.ravel(),
                "color": repeat_values(colors, n),
                "group": repeat_values(labels, n),
                "at": stages * len(groups),
            },
            "own": {
                "x": [x[stage] for _, stage in own],
                "y": [y[group, stage] for group, stage in own],
                "color": [colors[group] for group, _ in own],
                "group": [labels[group] for group, _ in own],
                "at": [stages[stage] for _, stage in own],
            },
        }

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
        limits=lambda slider_values: (-0.4, n - 0.6, 0.0, top * 1.1 or 1.0),
        sliders=sliders,
        fixed=fixed,
        site=site_of(centroids),
        legend=dict(zip(labels, colors, strict=True)),
    )


def probe_generalisation(scores: xr.DataArray, dynamic: bool | None = None) -> Figure:
    """Draw the mean score of every group, seen or unseen, along each pair's probe.

    Args:
        scores: result of `sl.generalise`: (stage, layer, token, pair, group), log-odds of the second group.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage, layer, token and pair. Of many pairs, evenly spaced ones are drawn.

    Raises:
        InputError: `scores` has no dim `group`.
    """
    return to_holoviews(probe_generalisation_spec(scores), dynamic)


def probe_generalisation_spec(scores: xr.DataArray) -> FigureSpec:
    """Describe `probe_generalisation` without drawing it."""
    if "group" not in scores.dims:
        raise InputError(
            f"plots.probe_generalisation needs a dim 'group'; got {scores.dims}. Compute the scores with "
            "sl.generalise(probes, ds)."
        )
    groups = group_names(scores)
    labels = [plain_text(g) for g in groups]
    words, colors = group_words(scores), list(group_colors(scores).values())
    main_pair = extreme_pair(scores)  # the other figures show this pair too
    scores, every = _drawn_pairs(scores, main_pair)
    title = f"Mean score of every group along one pair's probe{drawn_note(scores.sizes.get('pair', 1), every, 'pairs')}"
    sliders, fixed = split_dims(scores, ("group",), ("pair",))
    x = np.arange(len(groups), dtype=float)
    values = lookup(scores, ("group",))
    bounds = [
        lookup(scores[name].reset_coords(drop=True), ("group",)) for name in ("low", "high") if name in scores.coords
    ]
    has_intervals = len(bounds) == 2

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        y = values(slider_values)
        result: dict[str, Table] = {
            "zero": {"x0": [-0.5], "y0": [0.0], "x1": [len(groups) - 0.5], "y1": [0.0]},
            "stems": {"x0": x, "y0": np.zeros(len(x)), "x1": x, "y1": y, "color": colors},
            "scores": {"x": x, "y": y, "color": colors, "group": labels},
        }
        if has_intervals:
            low, high = (read(slider_values) for read in bounds)
            result["intervals"] = {"x0": x, "y0": low, "x1": x, "y1": high, "color": colors}
        return result

    def limits(slider_values: SliderValues) -> Limits:
        y = np.concatenate([values(slider_values), *(read(slider_values) for read in bounds)])
        y = y[np.isfinite(y)]
        low, high = pad_limits(float(min(0.0, *y)), float(max(0.0, *y))) if y.size else (0.0, 1.0)
        return (-0.5, len(groups) - 0.5, low, high)

    return FigureSpec(
        name="probe_generalisation",
        title=title,
        x=Axis(
            f"group, in {words.order}" if words.ordered else "group",
            ticks=[(float(i), plain_text(g, 16)) for i, g in enumerate(groups)],
            rotate=len(groups) > 8,
        ),
        y=Axis("mean score (log-odds; 0: undecided)"),
        marks=[
            Mark("zero", "segments", role="foreground", width=1.2, dash="dashed"),
            Mark("stems", "segments", width=1.5, alpha=0.6),
            *([Mark("intervals", "segments", width=6, alpha=0.4)] if has_intervals else []),
            Mark("scores", "points", hover={"group": "group", "y": "mean score"}, size=11),
        ],
        tables=tables,
        limits=limits,
        sliders=sliders,
        fixed=fixed,
        site=site_of(scores),
        height=320,
        legend=dict(zip(labels, colors, strict=True)),
        start={"pair": main_pair} if main_pair is not None and "pair" in sliders else {},
    )


def _drawn_pairs(scores: xr.DataArray, main: str | None) -> tuple[xr.DataArray, int]:
    """Select evenly spaced pairs if the scores of all would make the page too large.

    Returns:
        (scores of the pairs to draw, number of all pairs)
    """
    every = scores.sizes.get("pair", 1)
    limit = max(6, MAX_NUMBERS // max(1, 3 * scores.size // every))
    if every <= limit:
        return scores, every
    keep = [[str(p) for p in values_of(scores, "pair")].index(main)] if main is not None else []
    return scores.isel(pair=evenly_spaced(every, limit, keep)), every


def in_training_order(data: xr.Dataset) -> xr.Dataset:
    """Reorder the stages of a result by training."""
    present = data["stage"].values.tolist()
    return data.isel(stage=[present.index(s) for s in values_of(data, "stage")])
