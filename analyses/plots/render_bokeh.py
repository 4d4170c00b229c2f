"""Bokeh figures and page data of a `FigureSpec`, for pages that run without Python.

Bokeh draws each figure once; moving a slider only replaces columns. The page holds a column that does not depend on
the sliders once, and numbers with four significant digits. Seven stages x 13 layers x 2 tokens of a pair matrix
take about 100 kB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import BasicTickFormatter, ColumnDataSource, FixedTicker, HoverTool, Range1d
from bokeh.models.annotations import LabelSet
from bokeh.plotting import figure
from bokeh.transform import linear_cmap

from stratalens.analyses.plots.colors import FOREGROUND, MUTED, NOT_A_NUMBER
from stratalens.analyses.plots.spec import Axis, FigureSpec, Mark, Table

# Ticks of log axes: Bokeh's own ones are multiples of five, of which a loss between 0.4 and 2 has none.
LOG_TICKS = [round(m * 10.0**k, 6) for k in range(-5, 6) for m in (1, 2, 5)]
FONT = "system-ui, sans-serif"


def page_value(value: Any) -> Any:
    """Convert a value for the page: numbers to four significant digits, NaN to None.

    Text is unchanged.
    """
    if isinstance(value, str):
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 1e15 else float(f"{number:.4g}")


def page_column(values: Any) -> list[Any]:
    """Convert one column of a table to a list for the page."""
    return [page_value(v) for v in (values.tolist() if isinstance(values, np.ndarray) else values)]


def page_frames(spec: FigureSpec) -> dict[str, Any]:
    """Return the sliders of a figure and its tables for all slider values.

    Returns:
        Dict that JSON can hold:

        - sliders: list of {dim, values, start}
        - places: number of combinations
        - same: {mark: {column: list}}, columns that are equal for all combinations
        - vary: {mark: {column: one list a combination}}, all other columns
        - limits: one [x0, x1, y0, y1] a combination, or a single one if all are equal
    """
    start = spec.default_values()
    marks = {mark.name for mark in spec.marks}
    combinations = spec.all_slider_values()
    tables = [spec.tables(slider_values) for slider_values in combinations]
    limits = [page_column(spec.limits(slider_values)) for slider_values in combinations]
    same: dict[str, dict[str, Any]] = {}
    vary: dict[str, dict[str, Any]] = {}
    for mark, last in tables[-1].items():
        if mark not in marks:
            continue
        same[mark], vary[mark] = {}, {}
        for name, values in last.items():
            if all(table[mark][name] is values for table in tables):
                same[mark][name] = page_column(values)
                continue
            columns = [page_column(table[mark][name]) for table in tables]
            if all(column == columns[-1] for column in columns):
                same[mark][name] = columns[-1]
            else:
                vary[mark][name] = columns
    return {
        "sliders": [
            {"dim": d, "values": [str(v) for v in values], "start": list(values).index(start[d])}
            for d, values in spec.sliders.items()
        ],
        "places": len(tables),
        "same": same,
        "vary": vary,
        "limits": limits[:1] if all(item == limits[0] for item in limits) else limits,
    }


def bokeh_json(spec: FigureSpec, target: str) -> dict[str, Any]:
    """Return Bokeh's JSON of the figure, for the element with id `target`."""
    return dict(json_item(bokeh_figure(spec), ID(target)))


def bokeh_figure(spec: FigureSpec) -> Any:
    """Draw a figure at its initial slider values.

    The figure has no title, because the page shows it as a heading.
    """
    slider_values = spec.default_values()
    x0, x1, y0, y1 = spec.limits(slider_values)
    fig: Any = figure(  # type: ignore[call-arg]  # Bokeh does not declare the options of its tools and axes
        name=spec.name,
        height=spec.height,
        sizing_mode="stretch_width",
        min_width=200,
        x_range=Range1d(start=x0, end=x1),
        y_range=Range1d(start=y0, end=y1),
        y_axis_type="log" if spec.y.log else "linear",
        tools="box_zoom,reset,save",
        active_drag=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    fig.toolbar_location = "above"  # inside the frame it would cover the last column
    fig.toolbar.autohide = True
    fig.toolbar.logo = None
    tables = spec.tables(slider_values)
    for mark in spec.marks:
        if mark.name in tables:
            _draw(fig, mark, tables[mark.name], spec)
    for axis, axis_spec in ((fig.xaxis[0], spec.x), (fig.yaxis[0], spec.y)):
        _draw_axis(axis, axis_spec)
    if spec.y.log and spec.y.ticks is None:
        fig.yaxis[0].ticker = FixedTicker(ticks=LOG_TICKS)
        fig.yaxis[0].formatter = BasicTickFormatter(use_scientific=False, precision="auto")
    if any(mark.kind == "cells" for mark in spec.marks) or spec.x.ticks == []:
        fig.grid.visible = False
    fig.grid.grid_line_alpha = 0.25
    if spec.x.ticks == [] and spec.y.ticks == []:
        fig.axis.visible = False
    return fig


def style_axis_text(axis: Any) -> None:
    """Set the font of an axis and hide its minor ticks."""
    axis.axis_label_text_font = axis.major_label_text_font = FONT
    axis.axis_label_text_font_style = "normal"
    axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
    axis.minor_tick_line_color = None


def _draw_axis(axis: Any, spec: Axis) -> None:
    style_axis_text(axis)
    axis.axis_label = spec.label
    axis.major_label_text_color = axis.axis_label_text_color = FOREGROUND["light"]
    axis.axis_line_color = axis.major_tick_line_color = MUTED["light"]
    if spec.ticks is not None:
        axis.ticker = FixedTicker(ticks=[p for p, _ in spec.ticks])
        axis.major_label_overrides = {(int(p) if p == int(p) else p): t for p, t in spec.ticks}
    if spec.rotate:
        axis.major_label_orientation = math.pi / 3


def _draw(fig: Any, mark: Mark, table: Table, spec: FigureSpec) -> None:
    source = ColumnDataSource({c: page_column(v) for c, v in table.items()}, name=mark.name)
    if mark.kind == "labels":
        fig.add_layout(_labels(mark, table, source))
        return
    color = "color" if "color" in table else (FOREGROUND if mark.role == "foreground" else MUTED)["light"]
    if mark.kind == "points":
        renderer = fig.scatter(
            "x",
            "y",
            source=source,
            size=mark.size,
            fill_color=color,
            fill_alpha=mark.alpha,
            line_color=FOREGROUND["light"],
            line_width=0.6,
            line_alpha=mark.alpha,
        )
    elif mark.kind == "segments":
        renderer = fig.segment(
            "x0",
            "y0",
            "x1",
            "y1",
            source=source,
            line_color=color,
            line_width=mark.width,
            line_alpha=mark.alpha,
            line_dash=mark.dash,
        )
    else:
        low, high = spec.clim or (0.0, 1.0)
        renderer = fig.quad(
            left="x0",
            bottom="y0",
            right="x1",
            top="y1",
            source=source,
            fill_color=linear_cmap("value", list(spec.palette), low, high, nan_color=NOT_A_NUMBER),
            line_color="#ffffff",
            line_width=1,
        )
    renderer.name = mark.name
    renderer.tags = ["data" if "color" in table else mark.role]
    if mark.hover:
        tooltips = [(label, _tooltip_field(name, table)) for name, label in mark.hover.items()]
        fig.add_tools(HoverTool(renderers=[renderer], tooltips=tooltips))


def _labels(mark: Mark, table: Table, source: ColumnDataSource) -> LabelSet:
    colored = "text_color" in table
    return LabelSet(
        x="x",
        y="y",
        text="text",
        source=source,
        text_font={"value": FONT},
        text_font_size=f"{mark.size + 2:g}px",
        text_color="text_color" if colored else FOREGROUND["light"],
        text_align=mark.align,
        text_baseline="middle",
        tags=["data" if colored else "foreground"],
        name=mark.name,
    )


def _tooltip_field(name: str, table: Mapping[str, Any]) -> str:
    values = table[name]
    is_text = len(values) > 0 and isinstance(values[0], str)
    return f"@{{{name}}}" if is_text else f"@{{{name}}}{{0.[000]}}"
