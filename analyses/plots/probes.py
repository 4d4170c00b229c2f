"""Scores along layers; chance, intervals and nulls always drawn."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.results import require_variable
from stratalens.analyses.data.training_order import group_names, result_order
from stratalens.analyses.plots.colors import HIGHLIGHT, stage_colors
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
    plain,
    site_of,
    split_dims,
    values_of,
)
from stratalens.analyses.stats.estimates import PARTS, differs_from_null, estimate, extreme_pair, pair_mean
from stratalens.store.errors import InputError

MEAN_OF_PAIRS = "mean of all pairs"


def layer_sweep_spec(probes: xr.Dataset, name: str = "accuracy") -> FigureSpec:
    """Describe `layer_sweep` without drawing it."""
    array = require_variable(probes, name, "layer_sweep", "sl.probe(ds, target=...)")
    title = f"Probe {name} by layer"
    if "layer" not in array.coords:
        return message_spec(
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
    trained, untrained = result_order(probes)
    later = [str(g) for g in np.atleast_1d(probes["pair_second"].values)] if "pair_second" in probes.coords else []
    tint = stage_colors(list(dict.fromkeys(later)), trained or group_names(probes), untrained) if later else {}
    color = {p: tint[g] for p, g in zip(pairs, later, strict=True)} if later else dict.fromkeys(pairs, HIGHLIGHT)

    main_color = color[main] if main else HIGHLIGHT
    bold_color = {MEAN_OF_PAIRS: HIGHLIGHT} | ({main: main_color} if main else {})

    read = {k: lookup(result[k], ("pair", "layer")) for k in PARTS}
    read_mean = {k: lookup(mean[k], ("layer",)) for k in PARTS}

    def curves(place: SliderValues) -> dict[str, dict[str, np.ndarray]]:
        got = {k: read[k](place) for k in PARTS}
        out = {p: {k: got[k][i] for k in PARTS} for i, p in enumerate(pairs)}
        if len(pairs) > 1:
            out[MEAN_OF_PAIRS] = {k: read_mean[k](place) for k in PARTS}
        return out

    def tables(place: SliderValues) -> dict[str, Table]:
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
    return FigureSpec(
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
    return to_holoviews(layer_sweep_spec(probes, name), dynamic)


Readers = Sequence[Mapping[str, Callable[[SliderValues], np.ndarray]]]


def control_rows(results: Mapping[str, xr.Dataset], name: str = "accuracy") -> dict[str, xr.Dataset]:
    """One Dataset per row of the comparison; a matched probe is split into its samples."""
    rows: dict[str, xr.Dataset] = {}
    for label, data in results.items():
        require_variable(
            data, name, "control_comparison", "sl.probe, sl.statistics_probe, sl.matched_probe or sl.residual_probe"
        )
        if "sample" in data[name].dims:
            for sample in values_of(data, "sample"):
                rows[f"{label}: {str(sample).replace('_', ' ')}"] = data.sel(sample=sample, drop=True)
        else:
            rows[label] = data
    return rows


def common_places(rows: Mapping[str, xr.Dataset], name: str) -> tuple[dict[str, list[Hashable]], SliderValues]:
    """(sliders, fixed) of the places that every result has; a result without a dim has all places of it.

    Raises:
        InputError: the results have no place in common.
    """
    sliders: dict[str, list[Hashable]] = {}
    fixed: SliderValues = {}
    for dim in SLIDER_DIMS:
        have = {label: values_of(data[name], dim) for label, data in rows.items() if values_of(data[name], dim)}
        if not have:
            continue
        shared = [v for v in next(iter(have.values())) if all(v in values for values in have.values())]
        if not shared:
            raise InputError(f"control_comparison: these results have no {dim} in common: {have}")
        if len(shared) > 1:
            sliders[dim] = shared
        else:
            fixed[dim] = shared[0]
    return sliders, fixed


def common_pairs(rows: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The same results, narrowed to the pairs that all of them have, so that their means compare.

    Raises:
        InputError: they have pairs, but none in common.
    """
    with_pairs = [data for data in rows.values() if "pair" in data.dims]
    if not with_pairs:
        return dict(rows)
    shared = [str(p) for p in with_pairs[0]["pair"].values]
    for data in with_pairs[1:]:
        own = set(map(str, data["pair"].values))
        shared = [p for p in shared if p in own]
    if not shared:
        raise InputError("control_comparison: these results have no pair in common")

    def narrow(data: xr.Dataset) -> xr.Dataset:
        own = [str(p) for p in data["pair"].values]
        return data.isel(pair=[own.index(p) for p in shared])

    return {label: narrow(data) if "pair" in data.dims else data for label, data in rows.items()}


def control_comparison_spec(
    results: Mapping[str, xr.Dataset], name: str = "accuracy", pair: str | None = None
) -> FigureSpec:
    """Describe `control_comparison` without drawing it."""
    title = "The probe beside its controls"
    if not results:
        return message_spec("control_comparison", title, "No controls were given.")
    complete = control_rows(results, name)
    rows = common_pairs(complete)
    sliders, fixed = common_places(rows, name)
    widest = max(rows.values(), key=lambda d: d[name].size)
    known = [str(p) for p in values_of(widest, "pair")]
    if pair is not None and pair not in known:
        raise InputError(f"control_comparison: no pair {pair!r} in these results; valid: {', '.join(known)}")
    chosen = pair or extreme_pair(widest)
    several = len(known) > 1 or chosen is None
    labels = list(rows)
    heights = -np.arange(len(labels), dtype=float)
    means = [_readers(pair_mean(d, name), fixed) for d in rows.values()]
    singles = [_readers(_one_pair(estimate(d, name), chosen), fixed) for d in rows.values()]
    gap = 0.14 if several and chosen is not None else 0.0

    def row_table(readers: Readers, place: SliderValues, y: np.ndarray, color: str) -> tuple[Table, Table]:
        got = {k: np.array([read[k](place) for read in readers]) for k in PARTS}
        told = [differs_from_null(*(float(got[k][i]) for k in PARTS)) for i in range(len(labels))]
        dots: Table = {
            "x": got["value"],
            "y": y,
            "color": [color] * len(y),
            "row": [plain(v) for v in labels],
            "interval": [f"[{a:z.3f}, {b:z.3f}]" for a, b in zip(got["low"], got["high"], strict=True)],
            "null": [f"{v:z.3f}" for v in got["null"]],
            "verdict": ["beyond chance" if t else "not told from chance" for t in told],
        }
        bars: Table = {"x0": got["low"], "y0": y, "x1": got["high"], "y1": y, "color": [color] * len(y)}
        return dots, bars

    pair_color = _later_color(max(complete.values(), key=lambda d: d[name].size), chosen)

    def tables(place: SliderValues) -> dict[str, Table]:
        null = np.array([read["null"](place) for read in means])
        out: dict[str, Table] = {"null": {"x0": null, "y0": heights - 0.42, "x1": null, "y1": heights + 0.2}}
        out["rows"] = names
        if several:
            out["mean"], out["mean_bars"] = row_table(means, place, heights - gap, HIGHLIGHT)
        if chosen is not None:
            out["pair"], out["pair_bars"] = row_table(singles, place, heights + gap, pair_color)
        return out

    # above each row, not beside it: on a narrow page tick labels would leave no room for the figure
    names: Table = {"x": np.full(len(labels), 0.36), "y": heights + 0.38, "text": [plain(v, 44) for v in labels]}
    hover = {"row": "what was probed", "x": name, "interval": "95 %", "null": "chance or null", "verdict": "verdict"}
    marks = [Mark("null", "segments", role="ink", width=1.5, dash="dashed")]
    if several:
        marks += [Mark("mean_bars", "segments", width=5, alpha=0.35), Mark("mean", "points", hover=hover, size=9)]
    if chosen is not None:
        marks += [Mark("pair_bars", "segments", width=5, alpha=0.35), Mark("pair", "points", hover=hover, size=9)]
    marks.append(Mark("rows", "labels", role="ink", size=9, align="left"))
    legend = {plain(chosen): pair_color} if chosen is not None else {}
    legend |= {MEAN_OF_PAIRS: HIGHLIGHT} if several else {}
    return FigureSpec(
        name="control_comparison",
        title=title,
        x=Axis(f"held-out {name} (dashed: chance or null)"),
        y=Axis("", ticks=[]),
        marks=marks,
        tables=tables,
        limits=lambda place: (0.35, 1.02, heights[-1] - 0.55, 0.65),
        sliders=sliders,
        fixed=fixed,
        site=site_of(widest),
        height=max(220, 80 + 52 * len(labels)),
        legend=legend,
    )


def _readers(result: xr.Dataset, fixed: SliderValues) -> dict[str, Callable[[SliderValues], np.ndarray]]:
    """Numbers at a place of the sliders, at the fixed place in all other dims."""
    reads = {k: lookup(result[k]) for k in PARTS}

    def at_place(read: Callable[[SliderValues], np.ndarray]) -> Callable[[SliderValues], np.ndarray]:
        return lambda place: read({**fixed, **place})

    return {k: at_place(read) for k, read in reads.items()}


def _one_pair(result: xr.Dataset, pair: str | None) -> xr.Dataset:
    if pair is None or "pair" not in result.dims:
        return result
    known = [str(p) for p in values_of(result, "pair")]
    return result.isel(pair=known.index(pair)) if pair in known else result.isel(pair=0) * np.nan


def _later_color(data: xr.Dataset, pair: str | None) -> str:
    """Colour of the later group of the pair: that of the stage it was trained in."""
    if pair is None:
        return HIGHLIGHT
    later = str(data["pair_second"].values[[str(p) for p in values_of(data, "pair")].index(pair)])
    trained, untrained = result_order(data)
    return stage_colors([later], trained, untrained)[later]


def control_comparison(
    results: Mapping[str, xr.Dataset], name: str = "accuracy", pair: str | None = None, dynamic: bool | None = None
) -> Figure:
    """Draw accuracies of several results side by side: the probe, and what its controls leave of it.

    Args:
        results: label to result of `sl.probe`, `sl.statistics_probe`, `sl.matched_probe` (one
            row per sample) or `sl.residual_probe`.
        name: "accuracy" or "auc".
        pair: which pair is shown beside the mean of all; default the first versus the last group.
        dynamic: see `to_holoviews`.

    Returns:
        HoloViews object with sliders for what is left of stage, layer and token; a result that has
        no such dim (statistics of the output have no layer) shows the same value everywhere.
    """
    return to_holoviews(control_comparison_spec(results, name, pair), dynamic)
