"""Figures of probe scores, always with interval and null: scores by layer, and a probe next to its controls."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.results import boosting_result, require_variable
from stratalens.analyses.data.targets import MULTICLASS
from stratalens.analyses.data.training_order import is_ordered
from stratalens.analyses.plots.colors import HIGHLIGHT, MUTED, group_colors
from stratalens.analyses.plots.drawn_parts import MAX_LINES, MAX_NUMBERS, drawn_note, evenly_spaced, places
from stratalens.analyses.plots.matrices import VERDICTS
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
from stratalens.analyses.plots.wording import column_of
from stratalens.analyses.stats.estimates import (
    PARTS,
    differs_from_null,
    estimate,
    extreme_pair,
    judged_measure,
    pair_mean,
)
from stratalens.store.errors import InputError

MEAN_OF_PAIRS = "mean of all pairs"
OTHER_PAIRS = "single pairs"
LABEL_WIDTH = 22  # letters of a line of a row's name

Curve = Mapping[str, np.ndarray]  # value, low, high, null and p at every layer
Readers = Mapping[str, Callable[[SliderValues], np.ndarray]]


def layer_sweep(probes: xr.Dataset, name: str | None = None, dynamic: bool | None = None) -> Figure:
    """Draw held-out accuracy by layer for every pair of groups.

    Args:
        probes: result of `sl.probe`. Intervals come from `<name>_low/_high`, else from the folds.
        name: "accuracy", "balanced_accuracy" or "auc"; None = the one that `judged_measure` names.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage and token. The mean of all pairs and, of ordered groups, the pair of
        the first and the last group are bold with intervals, other pairs are thin. Of many pairs, evenly spaced ones
        are drawn, and the legend says how many. A multi-class probe is one series, named by its number of groups and
        its chance.
    """
    return to_holoviews(layer_sweep_spec(probes, name), dynamic)


def layer_sweep_spec(probes: xr.Dataset, name: str | None = None) -> FigureSpec:
    """Describe `layer_sweep` without drawing it."""
    name = measure_of(probes, name)
    array = require_variable(probes, name, "layer_sweep", "sl.probe(ds, target=...)")
    title = f"Probe {plain_measure(name)} by layer"
    if "layer" not in array.coords:
        message = "This result has no layers: its site is outside the blocks."
        return message_spec("layer_sweep", title, message, probes)
    if "layer" not in array.dims:
        probes = probes.expand_dims("layer")
    pairs = [str(p) for p in values_of(probes, "pair")] or ["all groups"]
    result, mean = estimate(probes, name), pair_mean(probes, name)
    result = result if "pair" in result.dims else result.expand_dims(pair=pairs)
    if is_multiclass(probes):
        pairs = [multiclass_label(probes, name)]
        result = result.assign_coords(pair=pairs)
    ordered = is_ordered(probes)
    main = pairs[0] if len(pairs) == 1 else main_pair(probes)
    sliders, fixed = split_dims(probes[name], ("layer", "pair", "fold"))
    layers = np.array(values_of(probes, "layer"), dtype=float)
    later = [str(g) for g in np.atleast_1d(probes["pair_second"].values)] if "pair_second" in probes.coords else []
    later_colors = group_colors(probes, list(dict.fromkeys(later))) if ordered and len(pairs) > 1 else {}
    colors = {p: later_colors[g] for p, g in zip(pairs, later, strict=True)} if later_colors else {}
    colors = colors or dict.fromkeys(pairs, HIGHLIGHT if len(pairs) == 1 else MUTED["light"])
    bold = ([main] if main else []) + ([MEAN_OF_PAIRS] if len(pairs) > 1 else [])
    others = [p for p in pairs if p != main]
    thin = [others[i] for i in evenly_spaced(len(others), max(5, min(MAX_LINES, line_limit(sliders, len(layers)))))]
    colors[MEAN_OF_PAIRS] = HIGHLIGHT

    read = {k: lookup(result[k], ("pair", "layer")) for k in PARTS}
    read_mean = {k: lookup(mean[k], ("layer",)) for k in PARTS}

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        numbers = {k: read[k](slider_values) for k in PARTS}
        curves = {pair: {k: numbers[k][i] for k in PARTS} for i, pair in enumerate(pairs)}
        if len(pairs) > 1:
            curves[MEAN_OF_PAIRS] = {k: read_mean[k](slider_values) for k in PARTS}
        thin_curves, bold_curves = {p: curves[p] for p in thin}, {p: curves[p] for p in bold}
        null = {p: {"value": curves[p]["null"]} for p in bold[:1]}
        return {
            "pairs": _curve_segments(thin_curves, layers, colors),
            "pair_points": _curve_points(thin_curves, layers, colors),
            "null": _curve_segments(null, layers, None),
            "intervals": _curve_intervals(bold_curves, layers, colors),
            "main": _curve_segments(bold_curves, layers, colors),
            "main_points": _curve_points(bold_curves, layers, colors),
        }

    hover = {"series": "pair", "x": "layer", "y": plain_measure(name), "interval": "95 %", "null": "chance or null"}
    marks = [
        Mark("null", "segments", role="foreground", width=1.5, dash="dashed"),
        Mark("pairs", "segments", width=1, alpha=0.35),
        Mark("pair_points", "points", hover=hover, size=4, alpha=0.5),
        Mark("intervals", "segments", width=11, alpha=0.3),  # wider than the point, which would hide a short one
        Mark("main", "segments", width=2.5),
        Mark("main_points", "points", hover=hover, size=8),
    ]
    if len(pairs) == 1:
        marks = [m for m in marks if not m.name.startswith("pair")]
    legend = {plain_text(label): colors[label] for label in bold}
    drawn = drawn_note(len(thin), len(others), "drawn")
    if len(pairs) > 2 and later_colors:
        legend |= {f"other pairs, later group {plain_text(g)}{drawn}": c for g, c in later_colors.items()}
    elif len(pairs) > 1 and thin:
        legend[f"{OTHER_PAIRS}{drawn}"] = MUTED["light"]
    low = _least(result["low"].fillna(result["value"]), result["value"], result["null"] - 0.08)
    high = -_least(-result["high"].fillna(result["value"]), -result["value"])
    bottom, top = min(0.4, low - 0.02), min(1.02, max(0.8, high + 0.03))
    return FigureSpec(
        name="layer_sweep",
        title=title,
        x=Axis("layer (block)", ticks=[(float(v), f"{v:g}") for v in layers[:: max(1, len(layers) // 12)]]),
        y=Axis(f"held-out {plain_measure(name)} (dashed: chance or null)"),
        marks=marks,
        tables=tables,
        limits=lambda slider_values: (layers[0] - 0.6, layers[-1] + 0.6, bottom, top),
        sliders=sliders,
        fixed=fixed,
        site=site_of(probes),
        height=380,
        legend=legend,
    )


def measure_of(probes: object, name: str | None) -> str:
    """Return the measure of a figure: `name`, else the one that judges the result."""
    if name is None:
        return judged_measure(probes) if isinstance(probes, xr.Dataset) else "accuracy"
    return name


def common_measure(results: Iterable[xr.Dataset]) -> str:
    """Return the measure of several results: balanced accuracy where one has unequal classes and all have it."""
    probes = list(results)
    unequal = any(judged_measure(data) == "balanced_accuracy" for data in probes)
    return "balanced_accuracy" if unequal and all("balanced_accuracy" in data for data in probes) else "accuracy"


def plain_measure(name: str) -> str:
    """Return the name of a measure as text.

    >>> plain_measure("balanced_accuracy")
    'balanced accuracy'
    """
    return name.replace("_", " ")


def is_multiclass(probes: xr.Dataset) -> bool:
    """Whether a result is of one probe that distinguishes all groups at once."""
    return [str(pair) for pair in values_of(probes, "pair")] == [MULTICLASS]


def multiclass_label(probes: xr.Dataset, measure: str) -> str:
    """Return the name of a multi-class series with its chance level: "habitat, 4 groups (chance 0.25)"."""
    name, count = column_of(probes) or "all groups", probes.sizes.get("group", 0)
    name = f"{name}, {count} groups" if count else name
    if measure == "accuracy" and "chance" in probes:
        return f"{name} (chance {float(probes['chance'].mean()):.2g})"
    if measure == "balanced_accuracy" and count:
        return f"{name} (chance {1 / count:.2g})"
    return f"{name} (chance {float(pair_mean(probes, measure)['null'].mean()):.2g})"


def main_pair(probes: xr.Dataset | xr.DataArray) -> str | None:
    """Return the pair of the first and the last group; None without an order of groups."""
    return extreme_pair(probes) if is_ordered(probes) else None


def line_limit(sliders: Mapping[str, Sequence[object]], points: int) -> int:
    """Return the number of lines of `points` points whose numbers stay within the limit of a figure."""
    return MAX_NUMBERS // (4 * points * places(sliders))


def _least(*arrays: xr.DataArray) -> float:
    """Return the smallest finite number, 0 if there is none."""
    finite = np.concatenate([array.values[np.isfinite(array.values)].ravel() for array in arrays])
    return float(finite.min()) if finite.size else 0.0


def _curve_segments(curves: Mapping[str, Curve], x: np.ndarray, colors: Mapping[str, str] | None) -> Table:
    """Return lines between neighbouring layers.

    A single layer gives a short horizontal line.
    """
    table: dict[str, list[Any]] = {k: [] for k in ("x0", "y0", "x1", "y1", *(("color",) if colors else ()))}
    single = len(x) == 1
    for name, curve in curves.items():
        y = curve["value"]
        table["x0"].extend(x - 0.5 if single else x[:-1])
        table["x1"].extend(x + 0.5 if single else x[1:])
        table["y0"].extend(y if single else y[:-1])
        table["y1"].extend(y if single else y[1:])
        if colors:
            table["color"].extend([colors[name]] * max(len(x) - 1, 1))
    return table


def _curve_points(curves: Mapping[str, Curve], x: np.ndarray, colors: Mapping[str, str]) -> Table:
    table: dict[str, list[Any]] = {k: [] for k in ("x", "y", "color", "series", "interval", "null")}
    for name, curve in curves.items():
        table["x"].extend(x)
        table["y"].extend(curve["value"])
        table["color"].extend([colors[name]] * len(x))
        table["series"].extend([plain_text(name)] * len(x))
        table["interval"].extend(f"[{a:z.3f}, {b:z.3f}]" for a, b in zip(curve["low"], curve["high"], strict=True))
        table["null"].extend(f"{v:z.3f}" for v in curve["null"])
    return table


def _curve_intervals(curves: Mapping[str, Curve], x: np.ndarray, colors: Mapping[str, str]) -> Table:
    table: dict[str, list[Any]] = {k: [] for k in ("x0", "y0", "x1", "y1", "color")}
    for name, curve in curves.items():
        table["x0"].extend(x)
        table["x1"].extend(x)
        table["y0"].extend(curve["low"])
        table["y1"].extend(curve["high"])
        table["color"].extend([colors[name]] * len(x))
    return table


def control_comparison(
    results: Mapping[str, xr.Dataset], name: str | None = None, pair: str | None = None, dynamic: bool | None = None
) -> Figure:
    """Draw the accuracy of a probe next to the accuracies of its controls.

    Args:
        results: label to result of `sl.probe`, `sl.statistics_probe`, `sl.matched_probe` (one row a sample),
            `sl.weighted_probe` or `sl.residual_probe`.
        name: "accuracy", "balanced_accuracy" or "auc"; None = balanced accuracy where the classes of a result are
            unequal, else accuracy.
        pair: pair that is shown next to the mean of all pairs; default the first and the last of ordered groups.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for stage, layer and token. A result without one of these dims (statistics of
        the output have no layer) has the same value for all its slider values.

    Raises:
        InputError: the results have no stage, layer, token or pair in common, or `pair` is unknown.
    """
    return to_holoviews(control_comparison_spec(results, name, pair), dynamic)


def control_comparison_spec(
    results: Mapping[str, xr.Dataset], name: str | None = None, pair: str | None = None
) -> FigureSpec:
    """Describe `control_comparison` without drawing it."""
    title = "The probe and its controls"
    if not results:
        return message_spec("control_comparison", title, "No controls were passed.")
    name = common_measure(results.values()) if name is None else name
    complete = comparison_rows(results, name)
    rows = common_pairs(complete)
    sliders, fixed = common_sliders(rows, name)
    widest = max(rows.values(), key=lambda d: d[name].size)
    pairs = [str(p) for p in values_of(widest, "pair")]
    if pair is not None and pair not in pairs:
        raise InputError(f"control_comparison: no pair {pair!r} in these results. Valid: {', '.join(pairs)}.")
    chosen = pair or (pairs[0] if len(pairs) == 1 else main_pair(widest))
    with_mean = len(pairs) > 1 or chosen is None
    labels = [plain_text(v) for v in rows]
    heights = -np.arange(len(labels), dtype=float)
    means = [_readers(pair_mean(d, name), fixed) for d in rows.values()]
    singles = [_readers(_one_pair(estimate(d, name), chosen), fixed) for d in rows.values()]
    gap = 0.14 if with_mean and chosen is not None else 0.0
    pair_color = _pair_color(max(complete.values(), key=lambda d: d[name].size), chosen)
    # Names are broken into short lines: on a narrow page, long tick labels would leave no room for the figure.
    names = ["\n".join(textwrap.wrap(plain_text(v, 72), LABEL_WIDTH)) for v in rows]
    lines = max(name.count("\n") + 1 for name in names)

    def row_tables(
        readers: Sequence[Readers], slider_values: SliderValues, y: np.ndarray, color: str
    ) -> tuple[Table, Table]:
        numbers = {k: np.array([read[k](slider_values) for read in readers]) for k in PARTS}
        differs = [differs_from_null(*(float(numbers[k][i]) for k in PARTS)) for i in range(len(labels))]
        low, high = numbers["low"], numbers["high"]
        points: Table = {
            "x": numbers["value"],
            "y": y,
            "color": [color] * len(y),
            "row": labels,
            "interval": [f"[{a:z.3f}, {b:z.3f}]" for a, b in zip(low, high, strict=True)],
            "null": [f"{v:z.3f}" for v in numbers["null"]],
            "verdict": [VERDICTS[d] for d in differs],
        }
        return points, {"x0": low, "y0": y, "x1": high, "y1": y, "color": [color] * len(y)}

    def tables(slider_values: SliderValues) -> dict[str, Table]:
        null = np.array([read["null"](slider_values) for read in means])
        result: dict[str, Table] = {
            "null": {"x0": null, "y0": heights - 0.5, "x1": null, "y1": heights + 0.5},
        }
        if with_mean:
            result["mean"], result["mean_bars"] = row_tables(means, slider_values, heights - gap, HIGHLIGHT)
        if chosen is not None:
            result["pair"], result["pair_bars"] = row_tables(singles, slider_values, heights + gap, pair_color)
        return result

    hover = {
        "row": "probe input",
        "x": plain_measure(name),
        "interval": "95 %",
        "null": "chance or null",
        "verdict": "verdict",
    }
    marks = [Mark("null", "segments", role="foreground", width=1.5, dash="dashed")]
    for row, shown in (("mean", with_mean), ("pair", chosen is not None)):
        if shown:
            marks.append(Mark(f"{row}_bars", "segments", width=5, alpha=0.35))
            marks.append(Mark(row, "points", hover=hover, size=9))
    legend = {plain_text(chosen): pair_color} if chosen is not None else {}
    legend |= {MEAN_OF_PAIRS: HIGHLIGHT} if with_mean else {}
    return FigureSpec(
        name="control_comparison",
        title=title,
        x=Axis(f"held-out {plain_measure(name)} (dashed: chance or null)"),
        y=Axis("", ticks=list(zip(heights.tolist(), names, strict=True))),
        marks=marks,
        tables=tables,
        limits=lambda slider_values: (0.35, 1.02, heights[-1] - 0.5, 0.5),
        sliders=sliders,
        fixed=fixed,
        site=site_of(widest),
        height=max(220, 80 + max(34, 16 * lines + 6) * len(labels)),
        legend=legend,
    )


def comparison_rows(results: Mapping[str, xr.Dataset], name: str = "accuracy") -> dict[str, xr.Dataset]:
    """Return one Dataset a row of the comparison.

    A matched probe has one row a sample, on matched test rows, and one for its matched sample on all test rows. A
    statistics probe of both models has a second row for the boosting.
    """
    functions = "sl.probe, sl.statistics_probe, sl.matched_probe or sl.residual_probe"
    rows: dict[str, xr.Dataset] = {}
    for label, data in results.items():
        require_variable(data, name, "control_comparison", functions)
        if "sample" in data[name].dims:
            for sample in values_of(data, "sample"):
                row = data.sel(sample=sample, drop=True)
                row = row.sel(scored="matched", drop=True) if "scored" in row.dims else row
                rows[f"{label}: {str(sample).replace('_', ' ')}"] = row
            if "scored" in data[name].dims:
                rows[f"{label}: matched, unmatched test rows"] = data.sel(
                    sample="matched", scored="unmatched", drop=True
                )
        else:
            rows[label] = data
            boosting = boosting_result(data)
            if boosting is not None and name in boosting:
                rows[f"{label} (boosting)"] = boosting
    return rows


def common_sliders(rows: Mapping[str, xr.Dataset], name: str) -> tuple[dict[str, list[Hashable]], SliderValues]:
    """Return (sliders, fixed) with the values that all results have.

    A result without a dim has all its values.

    Raises:
        InputError: the results have no value of a dim in common.
    """
    sliders: dict[str, list[Hashable]] = {}
    fixed: SliderValues = {}
    for dim in SLIDER_DIMS:
        by_row = {label: values for label, data in rows.items() if (values := values_of(data[name], dim))}
        if not by_row:
            continue
        shared = [v for v in next(iter(by_row.values())) if all(v in values for values in by_row.values())]
        if not shared:
            raise InputError(f"control_comparison: these results have no {dim} in common: {by_row}")
        if len(shared) > 1:
            sliders[dim] = shared
        else:
            fixed[dim] = shared[0]
    return sliders, fixed


def common_pairs(rows: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Select the pairs that all results have, so that their means are comparable.

    Raises:
        InputError: the results have pairs, but none in common.
    """
    pairs = [[str(p) for p in data["pair"].values] for data in rows.values() if "pair" in data.dims]
    if not pairs:
        return dict(rows)
    shared = [pair for pair in pairs[0] if all(pair in other for other in pairs)]
    if not shared:
        raise InputError("control_comparison: these results have no pair in common")

    def select(data: xr.Dataset) -> xr.Dataset:
        own = [str(p) for p in data["pair"].values]
        return data.isel(pair=[own.index(p) for p in shared])

    return {label: select(data) if "pair" in data.dims else data for label, data in rows.items()}


def _readers(result: xr.Dataset, fixed: SliderValues) -> Readers:
    """Return functions that read one number each; `fixed` completes the slider values."""
    reads = {k: lookup(result[k]) for k in PARTS}

    def with_fixed(read: Callable[[SliderValues], np.ndarray]) -> Callable[[SliderValues], np.ndarray]:
        return lambda slider_values: read({**fixed, **slider_values})

    return {k: with_fixed(read) for k, read in reads.items()}


def _one_pair(result: xr.Dataset, pair: str | None) -> xr.Dataset:
    if pair is None or "pair" not in result.dims:
        return result
    pairs = [str(p) for p in values_of(result, "pair")]
    return result.isel(pair=pairs.index(pair)) if pair in pairs else result.isel(pair=0) * np.nan


def _pair_color(data: xr.Dataset, pair: str | None) -> str:
    """Return the colour of the later group of the pair; groups without an order have none."""
    if pair is None or not is_ordered(data):
        return HIGHLIGHT
    pairs = [str(p) for p in values_of(data, "pair")]
    later = str(data["pair_second"].values[pairs.index(pair)])
    return group_colors(data, [later])[later]
