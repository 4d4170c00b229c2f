"""Draws a `FigureSpec` as HoloViews objects (Bokeh first, Matplotlib for papers). No numbers are made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import mul
from typing import Any, TypeAlias

import bokeh.models
import holoviews as hv
import holoviews.plotting.bokeh
import numpy as np

from stratalens.analyses.plots.spec import Axis, FigureSpec, Mark, SliderValues, Table
from stratalens.store.display import in_notebook

MAX_STATIC_FRAMES = 12  # HoloViews needs time that grows with the square of the frames of a HoloMap


models: Any = bokeh.models  # its annotations do not know the properties that its models take as arguments


INK = "#222222"


QUIET = "#767676"


Figure: TypeAlias = hv.Overlay | hv.HoloMap  # what a plot returns; a DynamicMap is a HoloMap


def to_holoviews(picture: FigureSpec, dynamic: bool | None = None) -> Figure:
    """Return an Overlay, or with sliders a HoloMap (few frames) or a DynamicMap (many; needs a running Python).

    Args:
        picture: what to draw.
        dynamic: True or False chooses DynamicMap or HoloMap; None: DynamicMap above
            12 frames. `save(obj, "fig.html")` writes working sliders for both.
    """
    _ready()
    if not picture.sliders:
        return remember(frame(picture, {}), picture)
    count = int(np.prod([len(v) for v in picture.sliders.values()]))
    at = picture.default()
    dims = [hv.Dimension(dim, values=list(values), default=at[dim]) for dim, values in picture.sliders.items()]
    if dynamic or (dynamic is None and count > MAX_STATIC_FRAMES):

        def draw(*key: Any) -> Any:
            return frame(picture, dict(zip(picture.sliders, key, strict=True)))

        return remember(hv.DynamicMap(draw, kdims=dims), picture)
    frames = [(tuple(place.values()), frame(picture, place)) for place in picture.places()]
    return remember(hv.HoloMap(frames, kdims=dims, sort=False), picture)


def _ready() -> None:
    """Bokeh, unless another backend was chosen; in a notebook also its scripts, without which a cell shows text."""
    if hv.Store.current_backend not in hv.Store.loaded_backends():
        hv.Store.set_current_backend("bokeh")
    if in_notebook() and not hv.extension._loaded:
        hv.extension("bokeh", logo=False)


def remember(obj: Any, picture: FigureSpec) -> Any:
    """Leave the picture with the object, so that saving it as a page can use it."""
    obj.stratalens_picture = picture
    return obj


def frame(picture: FigureSpec, place: SliderValues) -> Any:
    """One drawn place of the sliders, as an Overlay with options for both backends."""
    tables = picture.tables(place)
    x0, x1, y0, y1 = picture.limits(place)
    pixel = (y1 - y0) / picture.height
    layers = [_element(mark, tables[mark.name], picture, pixel) for mark in picture.marks if mark.name in tables]
    overlay = hv.Overlay(layers) if len(layers) != 1 else reduce(mul, [*layers, hv.Points([])])
    both = {
        "title": picture.heading(place),
        "xlabel": picture.x.label or " ",
        "ylabel": picture.y.label or " ",
        "xlim": (x0, x1),
        "ylim": (y0, y1),
        "show_legend": False,
        "logy": picture.y.log,
        **_ticks("x", picture.x),
        **_ticks("y", picture.y),
    }
    bokeh = {"responsive": True, "height": picture.height, "min_width": 280, "fontsize": {"title": "11pt"}}
    bokeh["hooks"] = [lambda plot, element: _bokeh_key(plot.state, picture)]
    overlay = overlay.opts(**both, **bokeh, backend="bokeh")
    if "matplotlib" in hv.Store.loaded_backends():
        size = {"title": 9, "labels": 8, "ticks": 8}
        wide = min(3.2, max(1.2, 580 / picture.height))

        def shape(plot: Any, element: Any) -> None:
            # HoloViews sets a numeric aspect before the limits are final, and a narrow strip is left
            axis = plot.handles["axis"]
            axis.set_box_aspect(1 / wide)
            axis.apply_aspect()
            box = axis.get_position()
            for bar in axis.figure.axes:
                if bar is not axis:  # a colour bar is as high as what it explains
                    bar.set_position([box.x1 + 0.02, box.y0, 0.03, box.height])
            if picture.y.log:
                _plain_decades(axis.yaxis)
            _matplotlib_key(axis, picture)

        overlay = overlay.opts(
            **both, aspect="auto", hooks=[shape], fig_inches=6.4, fontsize=size, backend="matplotlib"
        )
    return overlay


def _plain_decades(axis: Any) -> None:
    """Ticks of a log axis as numbers: 0.5, 1, 2, and no powers of ten."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _matplotlib_key(axis: Any, picture: FigureSpec) -> None:
    """Names of the colours, beside the figure: over it they would cover data."""
    if not picture.legend or axis.get_legend() is not None:
        return
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], marker="o", linestyle="", color=c, markeredgecolor=INK, markeredgewidth=0.3, label=name)
            for name, c in picture.legend.items()]  # fmt: skip
    axis.legend(handles=dots, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=7)


def _bokeh_key(figure: Any, picture: FigureSpec) -> None:
    """The same for Bokeh, below the figure. HoloViews empties it whenever it draws another place of the sliders."""
    if not picture.legend:
        return
    key = figure.select_one({"name": "key"})
    if key is None:
        look = {"border_line_color": None, "label_text_font_size": "9pt", "padding": 0, "spacing": 8, "margin": 2}
        columns = max(1, 60 // (max(map(len, picture.legend)) + 4))
        key = models.Legend(name="key", orientation="horizontal", ncols=columns, **look)
        figure.add_layout(key, "below")
    if key.items:
        return
    nowhere, line = [float("nan")], {"line_color": INK, "line_width": 0.5}
    for i, (name, color) in enumerate(picture.legend.items()):
        dot = figure.select_one({"name": f"key-{i}"})
        if dot is None:
            dot = figure.scatter(nowhere, nowhere, size=9, fill_color=color, name=f"key-{i}", **line)
        key.items.append(models.LegendItem(label={"value": name}, renderers=[dot]))


def _ticks(which: str, axis: Axis) -> dict[str, Any]:
    if axis.ticks is None:
        return {}
    options: dict[str, Any] = {f"{which}ticks": [(p, t) for p, t in axis.ticks] or 0}
    if axis.rotate:
        options[f"{which}rotation"] = 60
    return options


def _element(mark: Mark, table: Table, picture: FigureSpec, pixel: float) -> Any:
    if mark.kind == "labels":
        return _labels(mark, table, pixel)
    return _ELEMENTS[mark.kind](mark, table, picture)


def _hover(mark: Mark) -> list[Any]:
    if not mark.hover:
        return []
    return [models.HoverTool(tooltips=[(label, f"@{{{column}}}") for column, label in mark.hover.items()])]


def _color(mark: Mark, table: Table) -> Any:
    if "color" in table:
        return hv.dim("color")
    return INK if mark.role == "ink" else QUIET


def _apply(element: Any, bokeh: Mapping[str, Any], matplotlib: Mapping[str, Any]) -> Any:
    element = element.opts(**bokeh, backend="bokeh")
    if "matplotlib" in hv.Store.loaded_backends():
        element = element.opts(**matplotlib, backend="matplotlib")
    return element


def _extra(table: Table, used: tuple[str, ...]) -> list[str]:
    return [column for column in table if column not in used]


def _points(mark: Mark, table: Table, picture: FigureSpec) -> Any:
    element = hv.Points(table, ["x", "y"], _extra(table, ("x", "y")))
    color = _color(mark, table)
    return _apply(
        element,
        {
            "color": color,
            "size": mark.size,
            "alpha": mark.alpha,
            "line_color": INK,
            "line_width": 0.5,
            "tools": _hover(mark),
        },
        {"color": color, "s": (0.75 * mark.size) ** 2, "alpha": mark.alpha, "edgecolor": INK, "linewidth": 0.3},
    )


def _segments(mark: Mark, table: Table, picture: FigureSpec) -> Any:
    kdims = ["x0", "y0", "x1", "y1"]
    element = hv.Segments(table, kdims, _extra(table, tuple(kdims)))
    color = _color(mark, table)
    return _apply(
        element,
        {"color": color, "line_width": mark.width, "alpha": mark.alpha, "line_dash": mark.dash, "tools": _hover(mark)},
        {"color": color, "linewidth": mark.width * 0.7, "alpha": mark.alpha, "linestyle": mark.dash},
    )


def _cells(mark: Mark, table: Table, picture: FigureSpec) -> Any:
    kdims = ["x0", "y0", "x1", "y1"]
    element = hv.Rectangles(table, kdims, ["value", *_extra(table, (*kdims, "value"))])
    common = {"cmap": list(picture.palette), "clim": picture.clim, "colorbar": True}
    return _apply(
        element,
        {
            **common,
            "color": "value",
            "line_color": "#ffffff",
            "tools": _hover(mark),
            "colorbar_opts": {"title": picture.colorbar},
        },
        {**common, "color": "value", "clabel": picture.colorbar, "edgecolor": "#ffffff"},
    )


def _labels(mark: Mark, table: Table, pixel: float) -> Any:
    element = hv.Labels(table, ["x", "y"], ["text", *_extra(table, ("x", "y", "text"))])
    ink = hv.dim("ink") if "ink" in table else INK
    up = 1.4 * mark.offset * pixel  # in units of the axis
    return _apply(
        element,
        {
            "text_color": ink,
            "text_font_size": f"{mark.size:g}pt",
            "yoffset": up,
            "text_baseline": "middle",
            "text_align": mark.align,
        },
        {"color": ink, "size": mark.size, "yoffset": up, "horizontalalignment": mark.align},
    )


_ELEMENTS: dict[str, Callable[[Mark, Table, FigureSpec], Any]] = {
    "points": _points,
    "segments": _segments,
    "cells": _cells,
}
