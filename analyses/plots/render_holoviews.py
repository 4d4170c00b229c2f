"""HoloViews objects of a `FigureSpec`: Bokeh by default, Matplotlib for papers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import mul
from typing import Any, TypeAlias

import holoviews as hv
import holoviews.plotting.bokeh
import numpy as np
from bokeh.models import HoverTool
from bokeh.models.annotations import Legend, LegendItem

from stratalens.analyses.plots.colors import FOREGROUND, MUTED
from stratalens.analyses.plots.notebook_image import attach_image
from stratalens.analyses.plots.spec import Axis, FigureSpec, Mark, SliderValues, Table
from stratalens.store.display import in_notebook

MAX_STATIC_FRAMES = 12  # the time that HoloViews takes grows with the square of the frames of a HoloMap

Figure: TypeAlias = hv.Overlay | hv.HoloMap  # a DynamicMap is a HoloMap


def to_holoviews(spec: FigureSpec, dynamic: bool | None = None) -> Figure:
    """Draw a figure as an Overlay, or as a HoloMap or DynamicMap if it has sliders.

    Args:
        spec: description of the figure.
        dynamic: True returns a DynamicMap, which draws each frame when a slider moves and needs a running
            Python. False returns a HoloMap. None (default) returns a HoloMap up to 12 frames, a DynamicMap
            above. `save(obj, "fig.html")` writes working sliders for both.
    """
    _select_backend()
    if not spec.sliders:
        return attach_spec(draw_overlay(spec, {}), spec)
    count = int(np.prod([len(v) for v in spec.sliders.values()]))
    start = spec.default_values()
    dims = [hv.Dimension(dim, values=list(values), default=start[dim]) for dim, values in spec.sliders.items()]
    if dynamic or (dynamic is None and count > MAX_STATIC_FRAMES):

        def draw(*key: Any) -> Any:
            return draw_overlay(spec, dict(zip(spec.sliders, key, strict=True)))

        return attach_spec(hv.DynamicMap(draw, kdims=dims), spec)
    frames = [(tuple(values.values()), draw_overlay(spec, values)) for values in spec.all_slider_values()]
    return attach_spec(hv.HoloMap(frames, kdims=dims, sort=False), spec)


def _select_backend() -> None:
    """Select Bokeh unless another backend is loaded; load its scripts in a notebook.

    Without the scripts a notebook cell shows text. HoloViews lists its backends in `output_settings` when
    `hv.extension` has loaded them.
    """
    if hv.Store.current_backend not in hv.Store.loaded_backends():
        hv.Store.set_current_backend("bokeh")
    if in_notebook() and not hv.Store.output_settings.backend_list:
        hv.extension("bokeh", logo=False)


def attach_spec(obj: Any, spec: FigureSpec) -> Any:
    """Attach the spec to a HoloViews object, because `save` needs it to write a page; add the image of a notebook."""
    obj.stratalens_spec = spec
    obj.stratalens_options = applied_options(obj)
    return attach_image(obj, lambda: draw_overlay(spec, spec.default_values()))


def applied_options(obj: Any) -> tuple[object, ...]:
    """Return a value that changes when `.opts(...)` changes a figure: the options that HoloViews keeps for it."""
    if isinstance(obj, hv.DynamicMap):
        return (obj.callback,)
    return tuple(frame.id for frame in obj.values()) if isinstance(obj, hv.HoloMap) else (obj.id,)


def draw_overlay(spec: FigureSpec, slider_values: SliderValues) -> Any:
    """Draw one combination of slider values as an Overlay for both backends."""
    tables = spec.tables(slider_values)
    x0, x1, y0, y1 = spec.limits(slider_values)
    layers = [_element(mark, tables[mark.name], spec) for mark in spec.marks if mark.name in tables]
    overlay = hv.Overlay(layers) if len(layers) != 1 else reduce(mul, [*layers, hv.Points([])])
    both = {
        "title": spec.heading(slider_values),
        "xlabel": spec.x.label or " ",
        "ylabel": spec.y.label or " ",
        "xlim": (x0, x1),
        "ylim": (y0, y1),
        "show_legend": False,
        "logy": spec.y.log,
        **_ticks("x", spec.x),
        **_ticks("y", spec.y),
    }
    bokeh = {"responsive": True, "height": spec.height, "min_width": 280, "fontsize": {"title": "11pt"}}
    bokeh["hooks"] = [lambda plot, element: _bokeh_legend(plot.state, spec)]
    overlay = overlay.opts(**both, **bokeh, backend="bokeh")
    if "matplotlib" in hv.Store.loaded_backends():
        overlay = overlay.opts(
            **both,
            aspect="auto",
            hooks=[lambda plot, element: _finish_matplotlib(plot.handles["axis"], spec)],
            fig_inches=6.4,
            fontsize={"title": 9, "labels": 8, "ticks": 8},
            backend="matplotlib",
        )
    return overlay


def _finish_matplotlib(axis: Any, spec: FigureSpec) -> None:
    """Set the shape of a Matplotlib figure, its log ticks and its legend."""
    # HoloViews sets a numeric aspect before the limits are final, which leaves a narrow strip.
    axis.set_box_aspect(1 / min(3.2, max(1.2, 580 / spec.height)))
    axis.apply_aspect()
    box = axis.get_position()
    for color_bar in axis.figure.axes:
        if color_bar is not axis:
            color_bar.set_position([box.x1 + 0.02, box.y0, 0.03, box.height])
    if spec.y.log:
        _plain_decades(axis.yaxis)
    _matplotlib_legend(axis, spec)


def _plain_decades(axis: Any) -> None:
    """Show the ticks of a log axis as numbers (0.5, 1, 2) instead of powers of ten."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _matplotlib_legend(axis: Any, spec: FigureSpec) -> None:
    """Draw the legend next to the figure, where it covers no data."""
    if not spec.legend or axis.get_legend() is not None:
        return
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markeredgewidth": 0.3}
    style["markeredgecolor"] = FOREGROUND["light"]
    handles = [Line2D([], [], color=color, label=name, **style) for name, color in spec.legend.items()]
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=7)


def _bokeh_legend(figure: Any, spec: FigureSpec) -> None:
    """Draw the legend below a Bokeh figure.

    HoloViews empties it whenever a slider moves.
    """
    if not spec.legend:
        return
    legend = figure.select_one({"name": "key"})
    if legend is None:
        style: dict[str, Any] = {"border_line_color": None, "label_text_font_size": "9pt"}
        style |= {"padding": 0, "spacing": 8, "margin": 2}
        columns = max(1, 60 // (max(map(len, spec.legend)) + 4))
        legend = Legend(name="key", orientation="horizontal", ncols=columns, **style)
        figure.add_layout(legend, "below")
    if legend.items:
        return
    invisible, line = [float("nan")], {"line_color": FOREGROUND["light"], "line_width": 0.5}
    for i, (name, color) in enumerate(spec.legend.items()):
        dot = figure.select_one({"name": f"key-{i}"})
        if dot is None:
            dot = figure.scatter(invisible, invisible, size=9, fill_color=color, name=f"key-{i}", **line)
        legend.items.append(LegendItem(label={"value": name}, renderers=[dot]))


def _ticks(which: str, axis: Axis) -> dict[str, Any]:
    if axis.ticks is None:
        return {}
    options: dict[str, Any] = {f"{which}ticks": [(p, t) for p, t in axis.ticks] or 0}
    if axis.rotate:
        options[f"{which}rotation"] = 60
    return options


def _element(mark: Mark, table: Table, spec: FigureSpec) -> Any:
    if mark.kind == "labels":
        return _labels(mark, table)
    if mark.kind == "cells":
        return _cells(mark, table, spec)
    return _points(mark, table) if mark.kind == "points" else _segments(mark, table)


def _hover(mark: Mark) -> list[HoverTool]:
    if not mark.hover:
        return []
    return [HoverTool(tooltips=[(label, f"@{{{column}}}") for column, label in mark.hover.items()])]


def _color(mark: Mark, table: Table) -> Any:
    if "color" in table:
        return hv.dim("color")
    return (FOREGROUND if mark.role == "foreground" else MUTED)["light"]


def _set_options(element: Any, bokeh: Mapping[str, Any], matplotlib: Mapping[str, Any]) -> Any:
    element = element.opts(**bokeh, backend="bokeh")
    if "matplotlib" in hv.Store.loaded_backends():
        element = element.opts(**matplotlib, backend="matplotlib")
    return element


def _other_columns(table: Table, used: list[str]) -> list[str]:
    return [column for column in table if column not in used]


def _points(mark: Mark, table: Table) -> Any:
    kdims = ["x", "y"]
    edge = FOREGROUND["light"]
    color = _color(mark, table)
    bokeh = {"color": color, "size": mark.size, "alpha": mark.alpha, "line_color": edge, "line_width": 0.5}
    matplotlib = {"color": color, "s": (0.75 * mark.size) ** 2, "alpha": mark.alpha, "edgecolor": edge}
    return _set_options(
        hv.Points(table, kdims, _other_columns(table, kdims)),
        {**bokeh, "tools": _hover(mark)},
        {**matplotlib, "linewidth": 0.3},
    )


def _segments(mark: Mark, table: Table) -> Any:
    kdims = ["x0", "y0", "x1", "y1"]
    color = _color(mark, table)
    return _set_options(
        hv.Segments(table, kdims, _other_columns(table, kdims)),
        {"color": color, "line_width": mark.width, "alpha": mark.alpha, "line_dash": mark.dash, "tools": _hover(mark)},
        {"color": color, "linewidth": mark.width * 0.7, "alpha": mark.alpha, "linestyle": mark.dash},
    )


def _cells(mark: Mark, table: Table, spec: FigureSpec) -> Any:
    kdims = ["x0", "y0", "x1", "y1"]
    both = {"cmap": list(spec.palette), "clim": spec.clim, "colorbar": True, "color": "value"}
    bokeh = {"line_color": "#ffffff", "tools": _hover(mark), "colorbar_opts": {"title": spec.colorbar}}
    return _set_options(
        hv.Rectangles(table, kdims, ["value", *_other_columns(table, [*kdims, "value"])]),
        {**both, **bokeh},
        {**both, "clabel": spec.colorbar, "edgecolor": "#ffffff"},
    )


def _labels(mark: Mark, table: Table) -> Any:
    kdims = ["x", "y"]
    color = hv.dim("text_color") if "text_color" in table else FOREGROUND["light"]
    bokeh = {"text_color": color, "text_font_size": f"{mark.size:g}pt"}
    return _set_options(
        hv.Labels(table, kdims, ["text", *_other_columns(table, [*kdims, "text"])]),
        {**bokeh, "text_baseline": "middle", "text_align": mark.align},
        {"color": color, "size": mark.size, "horizontalalignment": mark.align},
    )
