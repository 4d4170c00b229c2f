"""Heat maps: pairs of groups, cosines, and any scalar over two of stage, layer and token."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import xarray as xr

from stratalens.analyses.data.results import require_variable
from stratalens.analyses.data.training_order import group_names
from stratalens.analyses.plots.colors import DIVERGING, SEQUENTIAL, text_colors_on
from stratalens.analyses.plots.drawn_parts import MAX_LINES, drawn_note, evenly_spaced, square_limit
from stratalens.analyses.plots.render_holoviews import Figure, to_holoviews
from stratalens.analyses.plots.spec import (
    SLIDER_DIMS,
    Axis,
    FigureSpec,
    Mark,
    SliderValues,
    Table,
    lookup,
    message_spec,
    plain_text,
    site_of,
    split_dims,
    values_of,
)
from stratalens.analyses.plots.wording import group_words
from stratalens.analyses.stats.estimates import PARTS, differs_from_null, estimate, judged_measure, pair_mean
from stratalens.store.errors import InputError

MAX_NUMBERED_CELLS = 100  # larger maps show their numbers only on hover

VERDICTS = {True: "differs from chance", False: "not distinguishable from chance"}


def pair_matrix(probes: xr.Dataset, name: str | None = None, dynamic: bool | None = None) -> Figure:
    """Draw held-out accuracy for every pair of groups; ordered groups have the earlier one in the row.

    Args:
        probes: result of `sl.probe(pairs="all")`.
        name: "accuracy", "balanced_accuracy" or "auc"; None = the one that `judged_measure` names.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object. "n.s." marks pairs that are not distinguishable from chance, by the permutation p
        if there is one, else by the 95 % interval. Of many groups, evenly spaced ones are drawn, and the title says
        how many.
    """
    return to_holoviews(pair_matrix_spec(probes, name), dynamic)


def pair_matrix_spec(probes: xr.Dataset, name: str | None = None) -> FigureSpec:
    """Describe `pair_matrix` without drawing it."""
    if name is None:
        name = "accuracy" if "accuracy" not in probes else judged_measure(probes)
    require_variable(probes, name, "pair_matrix", 'sl.probe(ds, target=..., pairs="all")')
    title = f"Probe {name.replace('_', ' ')} of each pair"
    if "pair_first" not in probes.coords:
        return message_spec("pair_matrix", title, 'A pair matrix needs probes of pairs: sl.probe(pairs="all").', probes)
    words = group_words(probes)
    probes, every = _drawn_groups(probes, name)
    result = estimate(probes, name)
    groups = group_names(probes)
    title += drawn_note(len(groups), every, "groups")
    first = [groups.index(str(g)) for g in np.atleast_1d(probes["pair_first"].values)]
    second = [groups.index(str(g)) for g in np.atleast_1d(probes["pair_second"].values)]
    sliders, fixed = split_dims(probes[name], ("pair",))
    columns, rows = np.array(second, dtype=float), -np.array(first, dtype=float)
    clim = accuracy_limits(0.5, result["value"])
    read = {k: lookup(result[k], ("pair",) if "pair" in result.dims else ()) for k in PARTS}
    squares = _squares(columns, rows)
    one, other = ("earlier", "later") if words.ordered else ("one", "other")
    squares |= {one: [plain_text(groups[i]) for i in first], other: [plain_text(groups[j]) for j in second]}

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        numbers = {k: np.atleast_1d(read[k](slider_values)) for k in PARTS}
        value = numbers["value"]
        differs = [differs_from_null(*(float(numbers[k][i]) for k in PARTS)) for i in range(len(first))]
        colors = text_colors_on(value, *clim)
        intervals = zip(numbers["low"], numbers["high"], strict=True)
        pairs = squares | {
            "value": value,
            "interval": [f"[{low:z.3f}, {high:z.3f}]" for low, high in intervals],
            "null": [f"{n:z.3f}" for n in numbers["null"]],
            "verdict": [VERDICTS[d] for d in differs],
        }
        verdicts = ["" if d else "n.s." for d in differs]
        return {
            "pairs": pairs,
            "numbers": {**_cell_labels(columns, rows, value), "y": rows + 0.08, "text_color": colors},
            "verdicts": {"x": columns, "y": rows - 0.24, "text": verdicts, "text_color": colors},
        }

    hover = {
        one: words.first,
        other: words.second,
        "value": name.replace("_", " "),
        "interval": "95 %",
        "null": "chance or null",
        "verdict": "verdict",
    }
    n = len(groups)
    marks = [Mark("pairs", "cells", hover=hover)]
    if n <= 10:
        marks += [Mark("numbers", "labels", size=10), Mark("verdicts", "labels", size=7)]
    return FigureSpec(
        name="pair_matrix",
        title=title,
        x=Axis(words.second, ticks=[(float(i), plain_text(groups[i], 16)) for i in range(1, n)], rotate=n > 12),
        y=Axis(words.first, ticks=[(-float(i), plain_text(groups[i], 16)) for i in range(n - 1)]),
        marks=marks,
        tables=tables,
        limits=lambda slider_values: (0.5, n - 0.5, -(n - 1.5), 0.5),
        sliders=sliders,
        fixed=fixed,
        site=site_of(probes),
        clim=clim,
        palette=DIVERGING,
        colorbar=f"{name.replace('_', ' ')} (0.5: chance)",
        height=max(400, 14 * n),
    )


def _drawn_groups(probes: xr.Dataset, name: str) -> tuple[xr.Dataset, int]:
    """Select the pairs of evenly spaced groups if there are too many pairs to draw.

    Returns:
        (probes of the pairs to draw, number of all groups)
    """
    groups = group_names(probes)
    sliders, _ = split_dims(probes[name], ("pair",))
    limit = square_limit(sliders)
    if len(groups) <= limit or "pair" not in probes.dims:
        return probes, len(groups)
    drawn = {groups[i] for i in evenly_spaced(len(groups), limit)}
    ends = zip(probes["pair_first"].values, probes["pair_second"].values, strict=True)
    index = [i for i, pair in enumerate(ends) if {str(g) for g in pair} <= drawn]
    return (probes.isel(pair=index), len(groups)) if index else (probes, len(groups))


def cosine_matrix(cosines: xr.DataArray, dynamic: bool | None = None) -> Figure:
    """Draw cosines between probe directions, over pairs, layers, stages or tokens.

    Args:
        cosines: result of `sl.cosines`: (..., x, x_other).
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for the remaining dims. Of many directions, evenly spaced ones are drawn, and
        the title says how many.
    """
    return to_holoviews(cosine_matrix_spec(cosines), dynamic)


def cosine_matrix_spec(cosines: xr.DataArray) -> FigureSpec:
    """Describe `cosine_matrix` without drawing it."""
    others = [str(d) for d in cosines.dims if str(d).endswith("_other")]
    if len(others) != 1:
        raise InputError(
            f"plots.cosine_matrix needs dims (..., x, x_other); got {cosines.dims}. Compute them with "
            "sl.cosines(probes)."
        )
    over, title = others[0].removesuffix("_other"), "Cosine between probe directions"
    if len(values_of(cosines, over)) < 2:
        return message_spec("cosine_matrix", title, "Cosines need at least two directions.", cosines)
    sliders, fixed = split_dims(cosines, (over,), ("pair",) if over != "pair" else ())
    every = cosines.sizes[over]
    if every > square_limit(sliders):
        index = evenly_spaced(every, min(square_limit(sliders), MAX_LINES))
        cosines = cosines.isel({over: index, others[0]: index})
    labels = [plain_text(v, 24) for v in values_of(cosines, over)]
    n = len(labels)
    title += drawn_note(n, every, f"{over}s")
    grid_rows, grid_columns = np.divmod(np.arange(n * n), n)
    columns, rows = grid_columns.astype(float), -grid_rows.astype(float)
    read = lookup(cosines, (over, others[0]))
    squares = _squares(columns, rows)
    squares |= {"one": [labels[i] for i in grid_rows], "other": [labels[i] for i in grid_columns]}

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        value = read(slider_values).ravel()
        numbers = {**_cell_labels(columns, rows, value), "text_color": text_colors_on(value, -1, 1)}
        return {"cosines": squares | {"value": value}, "numbers": numbers}

    marks = [Mark("cosines", "cells", hover={"one": over, "other": f"other {over}", "value": "cosine"})]
    if n * n <= MAX_NUMBERED_CELLS:
        marks.append(Mark("numbers", "labels", size=8))
    return FigureSpec(
        name="cosine_matrix",
        title=title,
        x=Axis(over, ticks=[(float(i), t) for i, t in enumerate(labels)], rotate=True),
        y=Axis(over, ticks=[(-float(i), t) for i, t in enumerate(labels)]),
        marks=marks,
        tables=tables,
        limits=lambda slider_values: (-0.5, n - 0.5, 0.5 - n, 0.5),
        sliders=sliders,
        fixed=fixed,
        site=site_of(cosines),
        clim=(-1.0, 1.0),
        palette=DIVERGING,
        colorbar="cosine",
        height=max(460, 15 * n),
    )


def stage_layer_map(
    scalar: xr.DataArray | xr.Dataset,
    label: str = "value",
    null: float | None = None,
    clim: tuple[float, float] | None = None,
) -> Figure:
    """Draw a heat map of any scalar over stage (horizontal) and layer (vertical).

    Args:
        scalar: DataArray with the dims stage and layer; token and pair become sliders. For a result of `sl.probe`,
            the mean accuracy over its pairs is drawn.
        label: name of the scalar, with its unit.
        null: its value without any signal; white on the map.
        clim: limits of the colours; default from the data.

    Returns:
        HoloViews object.

    Raises:
        InputError: stage or layer is missing.
    """
    return to_holoviews(scalar_map_spec(scalar, "stage", "layer", label, clim, null))


def layer_token_map(
    scalar: xr.DataArray | xr.Dataset,
    label: str = "value",
    null: float | None = None,
    clim: tuple[float, float] | None = None,
) -> Figure:
    """Draw a heat map of any scalar over layer (horizontal) and token (vertical).

    Args, Returns, Raises: as `stage_layer_map`, with layer and token in place of stage and layer.
    """
    return to_holoviews(scalar_map_spec(scalar, "layer", "token", label, clim, null))


def scalar_map_spec(
    scalar: xr.DataArray | xr.Dataset,
    x: str,
    y: str,
    label: str,
    clim: tuple[float, float] | None = None,
    null: float | None = None,
) -> FigureSpec:
    """Describe a heat map of any scalar over two of stage, layer and token.

    The arguments are those of `stage_layer_map`.
    """
    if isinstance(scalar, xr.Dataset):
        scalar, label, null, clim = _accuracy_of(
            scalar, "layer_token_map" if x == "layer" else "stage_layer_map", label
        )
    if any(d not in scalar.coords for d in (x, y)):
        raise InputError(f"this map needs the dims {x!r} and {y!r}; the data has {tuple(scalar.dims)}")
    scalar = scalar.expand_dims([d for d in (x, y) if d not in scalar.dims])
    title = f"{label[:1].upper()}{label[1:]} by {x} and {y}"
    extra = tuple(str(d) for d in scalar.dims if d not in (*SLIDER_DIMS, x, y))
    sliders, fixed = split_dims(scalar, (x, y), extra)
    xs, ys = values_of(scalar, x), values_of(scalar, y)
    values = scalar.values.astype(float)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return message_spec(f"{y}_{x}_map", title, f"There is no finite {label} to show.", scalar)
    ordered = scalar.isel({x: _positions_of(scalar, x, xs), y: _positions_of(scalar, y, ys)})
    read = lookup(ordered, (y, x))
    grid_rows, grid_columns = np.divmod(np.arange(len(xs) * len(ys)), len(xs))
    columns, rows = grid_columns.astype(float), grid_rows.astype(float)
    squares = _squares(columns, rows)
    squares |= {x: [plain_text(xs[i]) for i in grid_columns], y: [plain_text(ys[i]) for i in grid_rows]}
    low, high = clim or (float(finite.min()), float(finite.max()) or 1.0)
    if null is not None and clim is None:
        half = max(abs(low - null), abs(high - null)) or 1.0
        low, high = null - half, null + half
    palette = DIVERGING if null is not None and low < null else SEQUENTIAL

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        value = read(slider_values).ravel()
        colors = text_colors_on(value, low, high, palette)
        numbers = {**_cell_labels(columns, rows, value), "text_color": colors}
        return {"cells": squares | {"value": value}, "numbers": numbers}

    marks = [Mark("cells", "cells", hover={x: x, y: y, "value": label})]
    if len(xs) * len(ys) <= MAX_NUMBERED_CELLS:
        marks.append(Mark("numbers", "labels", size=8))
    return FigureSpec(
        name=f"{y}_{x}_map",
        title=title,
        x=_names_axis(x, xs),
        y=_names_axis(y, ys),
        marks=marks,
        tables=tables,
        limits=lambda slider_values: (-0.5, len(xs) - 0.5, -0.5, len(ys) - 0.5),
        sliders=sliders,
        fixed=fixed,
        site=site_of(scalar),
        clim=(low, high),
        palette=palette,
        colorbar=label if null is None else f"{label} (white: {null:.3g})",
        height=max(220, 110 + 24 * len(ys)),
    )


def _accuracy_of(
    probes: xr.Dataset, plot: str, label: str
) -> tuple[xr.DataArray, str, float, tuple[float, float] | None]:
    """Return the accuracy of probes, its label, its chance level and the limits of its colours."""
    require_variable(probes, "accuracy", plot, "sl.probe(ds, target=...), or pass a DataArray")
    result, measure = pair_mean(probes), judged_measure(probes).replace("_", " ")
    several = probes.sizes.get("pair", 1) > 1
    name = (f"mean {measure} over pairs" if several else measure) if label == "value" else label
    chance = float(result["null"].mean())
    value = result["value"]
    return value.assign_attrs(probes.attrs), name, chance, accuracy_limits(chance, value)


def accuracy_limits(chance: float, values: xr.DataArray | None = None) -> tuple[float, float]:
    """Return limits of colours that show the differences of a map: around a chance of one half, else from chance up.

    Args:
        chance: level expected without any signal.
        values: numbers of the map; they reach the end of the scale, rounded to the next multiple of 0.05, but a map of
            small differences is at least 0.1 wide on each side. None = the whole range of accuracies.

    Example:
        >>> accuracy_limits(0.5), accuracy_limits(0.25)
        ((0.0, 1.0), (0.25, 1.0))
        >>> accuracy_limits(0.5, xr.DataArray([0.47, 0.67, np.nan])), accuracy_limits(0.25, xr.DataArray([0.51]))
        ((0.3, 0.7), (0.25, 0.55))
    """
    middle = abs(chance - 0.5) < 0.01
    reach = max(chance, 1 - chance)
    if values is not None and bool(np.isfinite(values).any()):
        largest = float(np.nanmax(np.abs(values - chance)))
        reach = min(max(0.1, float(np.ceil(round(20 * largest, 6)) / 20)), reach)
    return (round(chance - reach, 6) if middle else chance, round(min(1.0, chance + reach), 6))


def _squares(columns: np.ndarray, rows: np.ndarray) -> Table:
    """Return unit squares centred on (columns, rows)."""
    return {"x0": columns - 0.5, "y0": rows - 0.5, "x1": columns + 0.5, "y1": rows + 0.5}


def _cell_labels(columns: np.ndarray, rows: np.ndarray, values: np.ndarray) -> Table:
    return {"x": columns, "y": rows, "text": [f"{v:z.2f}" if np.isfinite(v) else "" for v in values]}


def _positions_of(data: xr.DataArray, dim: str, values: Sequence[Hashable]) -> list[int]:
    present = [v.item() if isinstance(v, np.generic) else v for v in np.atleast_1d(data[dim].values)]
    return [present.index(v) for v in values]


def _names_axis(dim: str, values: Sequence[Hashable]) -> Axis:
    label = {"stage": "recorded stage", "layer": "layer (block)", "token": "token position"}.get(dim, dim)
    return Axis(label, ticks=[(float(i), plain_text(v, 16)) for i, v in enumerate(values)])
