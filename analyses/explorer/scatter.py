"""The figure of single rows: points, or an image of their density while too many are in view.

The view starts at the means of the groups, with their 95 % regions, if these are small next to the cloud of rows. A
box or a lasso selects rows by position, so it works on points and on the image. Datashader draws the image when
more than `MAX_POINTS` rows are in view; after zooming in, the rows are points again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from bokeh.events import RangesUpdate, Reset, SelectionGeometry, Tap
from bokeh.models import (
    BoxSelectTool,
    ColumnDataSource,
    HoverTool,
    LassoSelectTool,
    Range1d,
    TapTool,
)
from bokeh.models.annotations import LabelSet
from bokeh.plotting import figure

from stratalens.analyses.explorer.data import GroupPlane, Rows
from stratalens.analyses.plots.centroids import MAX_POINTS
from stratalens.analyses.plots.colors import FOREGROUND, style_axes, theme_colors
from stratalens.analyses.plots.render_bokeh import FONT, style_axis_text
from stratalens.analyses.plots.spec import pad_limits

IMAGE_SIZE = (700, 480)
MAX_BOLD_RINGS = 60  # more bold rings would hide the points inside them
MAX_RINGS = 500  # of more selected rows, the others fade instead
FADED = 0.12  # opacity of rows outside a selection of more than `MAX_RINGS`
ZOOM_SHARE = 0.2  # means that take less of both axes than this are zoomed to at the start
ZOOMED_ALPHA = 0.3  # opacity of rows while the view is zoomed to the means
NO_ROWS: Rows = np.empty(0, np.int64)


def _source(*columns: str) -> ColumnDataSource:
    return ColumnDataSource({name: [] for name in columns})


class Scatter:
    """A Bokeh figure of one `GroupPlane` with a selection.

    Args:
        on_select: called with the int64 rows of the store that a box, lasso or tap selects.
        hover_texts: returns hover texts {name: list} for rows of the store.
    """

    def __init__(self, on_select: Callable[[Rows], None], hover_texts: Callable[[Rows], dict[str, list[str]]]) -> None:
        self._on_select, self._hover_texts = on_select, hover_texts
        self.plane: GroupPlane | None = None
        self.theme = "light"
        self._trained: Sequence[str] = ()
        self._colors: list[str] = []
        self._selection = NO_ROWS
        self._highlighted: int | None = None
        self._isolated: int | None = None
        self.zoom: bool | None = None  # to the means; None = where they are small next to the rows
        self.points = _source("x", "y", "color", "row", "group", "label")
        self.image = _source("image", "x", "y", "dw", "dh")
        self.rings = _source("x", "y", "color")
        self.pointed = _source("x", "y", "text")
        self.center = _source("x", "y", "rows")
        self.means = _source("x", "y", "color", "name")
        self.regions = _source("x", "y", "width", "height", "angle", "color")
        self.path = _source("x", "y")
        self.figure = self._create_figure()
        self.set_theme("light")

    def _create_figure(self) -> Any:
        fig: Any = figure(  # type: ignore[call-arg]  # Bokeh does not declare the options of its tools
            name="points",
            height=460,
            min_width=240,
            sizing_mode="stretch_width",
            x_range=Range1d(start=0, end=1),
            y_range=Range1d(start=0, end=1),
            tools="pan,wheel_zoom,box_select,lasso_select,tap,reset,save",
            active_drag="box_select",
            active_scroll=None,
            background_fill_color=None,
            border_fill_color=None,
            outline_line_color=None,
        )
        fig.toolbar.logo = None
        self._density = fig.image_rgba("image", "x", "y", "dw", "dh", source=self.image, name="density")
        shape = {"x": "x", "y": "y", "width": "width", "height": "height", "angle": "angle"}
        style = {"fill_color": "color", "fill_alpha": 0.18, "line_color": "color", "line_width": 1.5}
        fig.ellipse(**shape, source=self.regions, name="regions", **style)
        fig.line("x", "y", source=self.path, line_width=2.5, name="path")
        dots = {"size": 6, "fill_color": "color", "fill_alpha": 0.6, "line_color": None}
        self._points = points = fig.scatter("x", "y", source=self.points, name="points", **dots)
        circles = {"size": 11, "fill_color": "color", "fill_alpha": 0.0, "line_width": 2}
        self._rings = fig.scatter("x", "y", source=self.rings, name="rings", **circles)
        diamonds = {"size": 17, "marker": "diamond", "fill_color": "color", "line_width": 1.5}
        means = fig.scatter("x", "y", source=self.means, name="means", **diamonds)
        star = {"size": 22, "marker": "star", "line_width": 2}
        center = fig.scatter("x", "y", source=self.center, name="selection mean", **star)
        fig.scatter("x", "y", source=self.pointed, size=20, fill_color=None, line_width=3, name="pointed")
        label = LabelSet(x="x", y="y", text="text", source=self.pointed, x_offset=12, y_offset=8, name="name")
        label.text_font = {"value": FONT}
        fig.add_layout(label)
        fig.add_tools(
            HoverTool(renderers=[points], tooltips=[("row", "@row"), ("group", "@group"), ("prompt", "@label")]),
            HoverTool(renderers=[means], tooltips=[("mean of", "@name"), ("x", "@x"), ("y", "@y")]),
            HoverTool(renderers=[center], tooltips=[("mean of the selection", "@rows rows"), ("x", "@x"), ("y", "@y")]),
        )
        for tool in fig.select({"type": (BoxSelectTool, LassoSelectTool, TapTool)}):
            tool.renderers = []  # the rings show the selection; Bokeh would change the colour of all other points
        fig.on_event(SelectionGeometry, self._select_enclosed)
        fig.on_event(Tap, self._select_tapped)
        fig.on_event(RangesUpdate, lambda event: self._redraw_after_zoom())
        fig.on_event(Reset, lambda event: self._reset())
        for axis in fig.axis:
            style_axis_text(axis)
        fig.grid.grid_line_alpha = 0.25
        return fig

    def show(self, plane: GroupPlane, colors: Sequence[str], trained: Sequence[str]) -> None:
        """Draw a plane; rows stay selected if the plane has the same groups as before.

        Args:
            plane: rows of groups. A path joins the means of groups that have an order.
            colors: colour of each group, on a light page.
            trained: names whose colours show an order, in order.
        """
        same_groups = self.plane is not None and self.plane.view.by == plane.view.by
        self.plane, self._trained, self._colors = plane, trained, list(colors)
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = plane.axis_labels()
        if not same_groups:
            self._selection, self._highlighted, self._isolated = NO_ROWS, None, None
        self._reset()

    def set_theme(self, theme: str) -> None:
        """Apply the colours of the light or the dark page."""
        self.theme = theme
        foreground = FOREGROUND[theme]
        style_axes(self.figure, theme)
        for renderer in self.figure.renderers:
            if renderer.name in ("path", "rings", "means", "pointed", "selection mean"):
                renderer.glyph.line_color = foreground
            if renderer.name == "selection mean":  # seen on the colours of all groups
                renderer.glyph.fill_color = FOREGROUND["light" if theme == "dark" else "dark"]
        self.figure.select_one({"name": "name"}).text_color = foreground
        if self.plane is not None:
            self._fill()

    def legend(self) -> tuple[list[str], list[str]]:
        """Return the names and colours of the groups."""
        groups = list(self.plane.groups) if self.plane is not None else []
        return groups, theme_colors(self._colors, self._trained, self.theme)

    def select(self, rows: Rows) -> None:
        """Draw rings around these rows of the store, and a star at their mean, where the plane has them."""
        self._selection = np.asarray(rows, dtype=np.int64)
        self._draw_rings()

    def isolate(self, group: int | None) -> None:
        """Show the rows of one group alone, None for all groups."""
        self._isolated = group
        self._fill()

    @property
    def zoomed(self) -> bool:
        """Whether the view starts at the means instead of all rows."""
        if self.plane is None or not len(self._xy()):
            return False
        if self.zoom is not None:
            return self.zoom
        limits = self._mean_limits()
        spans = np.ptp(self._xy(), axis=0)
        return limits is not None and bool((np.ptp(limits, axis=1) < ZOOM_SHARE * spans).all())

    def set_zoom(self, zoom: bool) -> None:
        """Show the surroundings of the means, or all rows."""
        self.zoom = zoom
        self._reset()

    def _mean_limits(self) -> np.ndarray | None:
        """Return limits of shape (2, 2) around means and regions, by axis; None without means."""
        if self.plane is None:
            return None
        means = self.plane.rows.centroid
        known = np.isfinite(means).all(axis=1)
        if not known.any():
            return None
        radius = np.nan_to_num(self.plane.regions[known, 0] / 2)[:, None]
        return np.stack([(means[known] - radius).min(axis=0), (means[known] + radius).max(axis=0)], axis=1)

    def highlight(self, row: int | None, text: str = "") -> None:
        """Highlight one row of the store with a label."""
        self._highlighted = row
        xy = self._xy()[self._positions_of(NO_ROWS if row is None else np.array([row], dtype=np.int64))]
        self.pointed.data = {"x": xy[:, 0], "y": xy[:, 1], "text": [text] * len(xy)}

    def in_view(self) -> npt.NDArray[np.int64]:
        """Return the positions in the plane of the rows inside the axis ranges."""
        xy, x, y = self._xy(), self.figure.x_range, self.figure.y_range
        x0, x1, y0, y1 = sorted((x.start, x.end)) + sorted((y.start, y.end))
        inside = (xy[:, 0] >= x0) & (xy[:, 0] <= x1) & (xy[:, 1] >= y0) & (xy[:, 1] <= y1)
        return np.flatnonzero(inside & self._shown())

    def _shown(self) -> npt.NDArray[np.bool_]:
        """Return a bool array of shape (rows of the plane,): of the isolated group, where there is one."""
        if self.plane is None or self._isolated is None:
            return np.ones(len(self._xy()), dtype=bool)
        return np.asarray(self.plane.rows.codes == self._isolated)

    def _xy(self) -> np.ndarray:
        return np.empty((0, 2), np.float32) if self.plane is None else self.plane.rows.coordinate

    def _positions_of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the positions in the plane of rows of the store.

        The rows of the plane are sorted.
        """
        plane_rows = NO_ROWS if self.plane is None else self.plane.rows.rows
        positions = np.searchsorted(plane_rows, rows)
        inside = positions < len(plane_rows)
        positions, rows = positions[inside], rows[inside]
        return np.asarray(positions[plane_rows[positions] == rows])

    def _reset(self) -> None:
        ranges = (self.figure.x_range, self.figure.y_range)
        limits = self._mean_limits() if self.zoomed else None
        for c, (axis_range, v) in enumerate(zip(ranges, self._xy().T, strict=True)):
            low, high = pad_limits(float(v.min()), float(v.max()), 0.05) if len(v) else (0.0, 1.0)
            if limits is not None:
                low, high = pad_limits(float(limits[c, 0]), float(limits[c, 1]), 0.6)
            axis_range.update(start=low, end=high, reset_start=low, reset_end=high)
        self._fill()

    def _fill(self) -> None:
        if self.plane is None:
            return
        colors = theme_colors(self._colors, self._trained, self.theme)
        groups, rows = self.plane.groups, self.plane.rows
        xy, codes = rows.coordinate, rows.codes
        view = self.in_view() if len(xy) > MAX_POINTS else np.flatnonzero(self._shown())
        as_image = len(view) > MAX_POINTS
        drawn = NO_ROWS if as_image else view
        self.points.data = {
            "x": xy[drawn, 0],
            "y": xy[drawn, 1],
            "color": [colors[g] for g in codes[drawn]],
            "group": [groups[g] for g in codes[drawn]],
            **self._hover_texts(rows.rows[drawn]),
        }
        image: Any = self._density_image(self.plane, view, colors) if as_image else {n: [] for n in self.image.data}
        self.image.data = image
        means = rows.centroid
        known = np.flatnonzero(np.isfinite(means).all(axis=1))
        joined = known if self.plane.ordered else known[:0]
        self.path.data = {"x": means[joined, 0], "y": means[joined, 1]}
        self.means.data = {
            "x": means[known, 0],
            "y": means[known, 1],
            "color": [colors[g] for g in known],
            "name": [groups[g] for g in known],
        }
        drawn_regions = np.flatnonzero(np.isfinite(self.plane.regions).all(axis=1) & np.isfinite(means).all(axis=1))
        self.regions.data = {
            "x": means[drawn_regions, 0],
            "y": means[drawn_regions, 1],
            **{n: self.plane.regions[drawn_regions, c] for c, n in enumerate(("width", "height", "angle"))},
            "color": [colors[g] for g in drawn_regions],
        }
        self._draw_rings()
        self.highlight(self._highlighted, (self.pointed.data["text"] or [""])[0])

    def _redraw_after_zoom(self) -> None:
        if len(self._xy()) > MAX_POINTS:
            self._fill()

    def _draw_rings(self) -> None:
        positions = self._positions_of(self._selection)
        fade = len(positions) > MAX_RINGS
        drawn = positions[:: max(1, -(-len(positions) // MAX_POINTS))]  # evenly spaced ones of very many
        xy = self._xy()[drawn]
        many = len(xy) > MAX_BOLD_RINGS
        self._rings.glyph.update(
            size=6 if fade else 8 if many else 11,
            line_width=1 if many else 2,
            line_alpha=0.0 if fade else 0.7 if many else 1.0,
            fill_alpha=0.7 if fade else 0.0,
        )
        plain = ZOOMED_ALPHA if self.zoomed else 0.6
        self._points.glyph.fill_alpha = FADED if fade else plain
        self._density.glyph.global_alpha = 2 * FADED if fade else plain / 0.6
        colors = theme_colors(self._colors, self._trained, self.theme)
        codes = np.empty(0, np.int64) if self.plane is None else self.plane.rows.codes[drawn]
        self.rings.data = {"x": xy[:, 0], "y": xy[:, 1], "color": [colors[g] for g in codes]}
        mean = self._xy()[positions].mean(axis=0, keepdims=True) if len(positions) > 1 else np.empty((0, 2))
        self.center.data = {"x": mean[:, 0], "y": mean[:, 1], "rows": [len(positions)] * len(mean)}

    def _density_image(self, plane: GroupPlane, view: np.ndarray, colors: Sequence[str]) -> dict[str, list[Any]]:
        """Draw all rows in view with datashader: opacity is density, colour is group."""
        import datashader
        import datashader.transfer_functions as shading
        import pandas as pd

        x, y = self.figure.x_range, self.figure.y_range
        names = [str(i) for i in range(len(plane.groups))]
        xy = plane.rows.coordinate[view]
        table = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]})
        table["group"] = pd.Categorical.from_codes(plane.rows.codes[view], categories=pd.Index(names))
        canvas = datashader.Canvas(*IMAGE_SIZE, x_range=(x.start, x.end), y_range=(y.start, y.end))
        counts = canvas.points(table, "x", "y", agg=datashader.count_cat("group"))
        image = shading.dynspread(shading.shade(counts, color_key=dict(zip(names, colors, strict=True)), min_alpha=90))
        return {
            "image": [np.asarray(image.values)],
            "x": [x.start],
            "y": [y.start],
            "dw": [x.end - x.start],
            "dh": [y.end - y.start],
        }

    def _select_enclosed(self, event: Any) -> None:
        if self.plane is None or not event.final:
            return
        self._on_select(self.plane.rows.rows[enclosed_points(self._xy(), event.geometry) & self._shown()])

    def _select_tapped(self, event: Any) -> None:
        if self.plane is None or event.x is None or not len(self._xy()):
            return
        x, y = self.figure.x_range, self.figure.y_range
        offset = (self._xy() - np.array([event.x, event.y])) / np.array([x.end - x.start, y.end - y.start])
        squared_distance = (offset**2).sum(axis=1)
        nearest = int(np.argmin(squared_distance))
        if float(squared_distance[nearest]) < 0.015**2:
            self._on_select(self.plane.rows.rows[[nearest]])


def enclosed_points(xy: np.ndarray, geometry: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Return a bool array of shape (points,): inside a Bokeh rectangle or polygon.

    >>> square = {"type": "rect", "x0": 0, "x1": 1, "y0": 1, "y1": 0}
    >>> enclosed_points(np.array([[0.5, 0.5], [2.0, 0.5]]), square).tolist()
    [True, False]
    >>> triangle = {"type": "poly", "x": [0, 4, 0], "y": [0, 0, 4]}
    >>> enclosed_points(np.array([[1.0, 1.0], [3.0, 3.0]]), triangle).tolist()
    [True, False]
    """
    x, y = xy[:, 0].astype(float), xy[:, 1].astype(float)
    if geometry["type"] == "rect":
        x0, x1, y0, y1 = sorted((geometry["x0"], geometry["x1"])) + sorted((geometry["y0"], geometry["y1"]))
        return np.asarray((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))
    if geometry["type"] != "poly":
        return np.zeros(len(xy), dtype=bool)
    px, py = np.asarray(geometry["x"], dtype=float), np.asarray(geometry["y"], dtype=float)
    inside = np.zeros(len(xy), dtype=bool)
    for i in range(len(px)):  # ray casting, one edge at a time
        j = i - 1
        crosses = (py[i] > y) != (py[j] > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < (px[j] - px[i]) * (y - py[i]) / (py[j] - py[i]) + px[i])
    return inside
