"""A `FigureSpec` as a Bokeh figure plus the numbers of all its slider places, for pages that run without Python.

The figure is drawn once; a place only replaces columns. Columns that do not
depend on the place are kept once, numbers with four significant digits: seven
stages x 13 layers x 2 tokens of a pair matrix take some 100 kB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import bokeh.embed
import bokeh.models
import bokeh.plotting
import numpy as np
from bokeh.transform import linear_cmap

from stratalens.analyses.plots.spec import Axis, FigureSpec, Mark, SliderValues, Table

# Bokeh's annotations do not know the properties that its models take as arguments.
models: Any = bokeh.models


plotting: Any = bokeh.plotting


embedding: Any = bokeh.embed


INK = "#222222"


QUIET = "#767676"


FONT = "system-ui, sans-serif"


def rounded(value: Any) -> Any:
    """Value as it goes into the page: numbers with four significant digits, NaN as None, text as it is."""
    if isinstance(value, str):
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) and abs(number) < 1e15 else float(f"{number:.4g}")


def column(values: Any) -> list[Any]:
    """One column of a table as a list for the page."""
    return [rounded(v) for v in (values.tolist() if isinstance(values, np.ndarray) else values)]


def frames(picture: FigureSpec) -> dict[str, Any]:
    """All places of a picture: sliders, and per mark its constant and its varying columns.

    Returns:
        JSON-able dict: `sliders` [{dim, values, start}], `places` (count), `same` {mark: {column: list}},
        `vary` {mark: {column: [list per place]}}, `limits` [[x0, x1, y0, y1] per place, or one for all].
    """
    start = picture.default()
    wanted = [mark.name for mark in picture.marks]
    tables = [picture.tables(p) for p in picture.places()]
    limits = [[rounded(v) for v in picture.limits(p)] for p in picture.places()]
    same: dict[str, dict[str, Any]] = {}
    vary: dict[str, dict[str, Any]] = {}
    for mark, last in tables[-1].items():
        if mark not in wanted:
            continue
        same[mark], vary[mark] = {}, {}
        for name, values in last.items():
            raw = [t[mark][name] for t in tables]
            if all(r is values for r in raw):
                same[mark][name] = column(values)
                continue
            cooked = [column(r) for r in raw]
            if all(c == cooked[-1] for c in cooked):
                same[mark][name] = cooked[-1]
            else:
                vary[mark][name] = cooked
    return {
        "sliders": [
            {"dim": d, "values": [str(v) for v in values], "start": list(values).index(start[d])}
            for d, values in picture.sliders.items()
        ],
        "places": len(tables),
        "same": same,
        "vary": vary,
        "limits": limits[:1] if all(item == limits[0] for item in limits) else limits,
    }


def page_item(picture: FigureSpec, target: str) -> dict[str, Any]:
    """Bokeh's JSON of the figure, to be drawn into the element with id `target`."""
    item: dict[str, Any] = embedding.json_item(bokeh_figure(picture), target)
    return item


def bokeh_figure(picture: FigureSpec, place: SliderValues | None = None) -> Any:
    """Draw a picture at a place (default: its own) with Bokeh; no title: the page has it as a heading."""
    place = picture.default() if place is None else place
    x0, x1, y0, y1 = picture.limits(place)
    fig = plotting.figure(
        name=picture.name,
        height=picture.height,
        sizing_mode="stretch_width",
        min_width=200,
        x_range=models.Range1d(x0, x1),
        y_range=models.Range1d(y0, y1),
        y_axis_type="log" if picture.y.log else "linear",
        tools="box_zoom,reset,save",
        active_drag=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    fig.toolbar_inner = True
    fig.toolbar.autohide = True
    fig.toolbar.logo = None
    tables = picture.tables(place)
    for mark in picture.marks:
        if mark.name in tables:
            _draw(fig, mark, tables[mark.name], picture)
    for axis, described in ((fig.xaxis[0], picture.x), (fig.yaxis[0], picture.y)):
        _axis(axis, described)
    if any(mark.kind == "cells" for mark in picture.marks) or picture.x.ticks == []:
        fig.grid.visible = False
    fig.grid.grid_line_alpha = 0.25
    if picture.x.ticks == [] and picture.y.ticks == []:
        fig.axis.visible = False
    return fig


def _axis(axis: Any, described: Axis) -> None:
    axis.axis_label = described.label
    axis.axis_label_text_font = axis.major_label_text_font = FONT
    axis.axis_label_text_font_style = "normal"
    axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
    axis.major_label_text_color = axis.axis_label_text_color = INK
    axis.axis_line_color = axis.major_tick_line_color = QUIET
    axis.minor_tick_line_color = None
    if described.ticks is not None:
        axis.ticker = models.FixedTicker(ticks=[p for p, _ in described.ticks])
        axis.major_label_overrides = {(int(p) if p == int(p) else p): t for p, t in described.ticks}
    if described.rotate:
        axis.major_label_orientation = math.pi / 3


def _draw(fig: Any, mark: Mark, table: Table, picture: FigureSpec) -> None:
    source = models.ColumnDataSource({c: column(v) for c, v in table.items()}, name=mark.name)
    flat = {"ink": INK, "quiet": QUIET, "data": QUIET}[mark.role]
    color = "color" if "color" in table else flat
    tags = [mark.role if "color" not in table else "data"]
    if mark.kind == "points":
        drawn = fig.scatter(
            "x",
            "y",
            source=source,
            size=mark.size,
            fill_color=color,
            fill_alpha=mark.alpha,
            line_color=INK,
            line_width=0.6,
            line_alpha=mark.alpha,
        )
    elif mark.kind == "segments":
        drawn = fig.segment(
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
    elif mark.kind == "cells":
        low, high = picture.clim or (0.0, 1.0)
        fill = linear_cmap("value", list(picture.palette), low, high, nan_color="#c8c8c8")
        drawn = fig.quad(
            left="x0",
            bottom="y0",
            right="x1",
            top="y1",
            source=source,
            fill_color=fill,
            line_color="#ffffff",
            line_width=1,
        )
    else:
        fig.add_layout(
            models.LabelSet(
                x="x",
                y="y",
                text="text",
                source=source,
                text_font={"value": FONT},
                text_font_size=f"{mark.size + 2:g}px",
                text_color="ink" if "ink" in table else INK,
                text_align="left" if mark.offset else mark.align,
                text_baseline="middle",
                x_offset=mark.offset * 0.6,
                y_offset=mark.offset,
                tags=["data" if "ink" in table else "ink"],
                name=mark.name,
            )
        )
        return
    drawn.name = mark.name
    drawn.tags = tags
    if mark.hover:
        tips = [(label, _field(name, table)) for name, label in mark.hover.items()]
        fig.add_tools(models.HoverTool(renderers=[drawn], tooltips=tips))


def _field(name: str, table: Mapping[str, Any]) -> str:
    values = table[name]
    text = len(values) > 0 and isinstance(values[0], str)
    return f"@{{{name}}}" if text else f"@{{{name}}}{{0.[000]}}"
