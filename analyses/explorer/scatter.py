"""The scatter of single rows: points, or a picture of their density while too many are in view; selection by place.

A box or a lasso chooses rows by where they lie, so it does not matter whether they
are drawn one by one. Above `MAX_POINTS` rows in view datashader paints them; zoom
in, and they become points again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import bokeh.events
import bokeh.models
import bokeh.plotting
import numpy as np

from stratalens.analyses.explorer.data import Plane
from stratalens.analyses.plots.centroids import MAX_POINTS
from stratalens.analyses.plots.colors import INK, LINE, stage_colors, tint
from stratalens.analyses.plots.render_bokeh import FONT
from stratalens.analyses.plots.spec import padded

models: Any = bokeh.models


events: Any = bokeh.events


PIXELS = (700, 480)


MOST_BOLD = 60  # rings; more of them would hide the points that they surround


HOVER = {"row": "row", "group": "group", "w1": "w1", "w2": "w2"}


class Scatter:
    """A Bokeh figure of one `Plane`, and what is chosen in it.

    Args:
        chosen: called with the int64 rows of the store that a box, lasso or tap encloses.
        labels: gives hover texts {name: list} for rows of the store.
    """

    def __init__(
        self, chosen: Callable[[np.ndarray], None], labels: Callable[[np.ndarray], dict[str, list[str]]]
    ) -> None:
        self._chosen, self._labels = chosen, labels
        self.plane: Plane | None = None
        self.theme = "light"
        self._trained: Sequence[str] = ()
        self._colors: list[str] = []
        self._selection = np.empty(0, np.int64)
        self._focus: int | None = None
        self.points = models.ColumnDataSource({k: [] for k in ("x", "y", "color", "row", "group", "label")})
        self.image = models.ColumnDataSource({k: [] for k in ("image", "x", "y", "dw", "dh")})
        self.rings = models.ColumnDataSource({k: [] for k in ("x", "y")})
        self.pointed = models.ColumnDataSource({k: [] for k in ("x", "y", "text")})
        self.means = models.ColumnDataSource({k: [] for k in ("x", "y", "color", "name")})
        self.path = models.ColumnDataSource({k: [] for k in ("x", "y")})
        self.figure = self._figure()
        self.paint("light")

    def _figure(self) -> Any:
        plotting: Any = bokeh.plotting
        fig = plotting.figure(
            name="points",
            height=460,
            min_width=240,
            sizing_mode="stretch_width",
            x_range=models.Range1d(0, 1),
            y_range=models.Range1d(0, 1),
            tools="pan,wheel_zoom,box_select,lasso_select,tap,reset,save",
            active_drag="box_select",
            active_scroll=None,
            background_fill_color=None,
            border_fill_color=None,
            outline_line_color=None,
        )
        fig.toolbar.logo = None
        fig.image_rgba("image", "x", "y", "dw", "dh", source=self.image, name="density")
        fig.line("x", "y", source=self.path, line_width=2.5, name="path")
        dots = fig.scatter(
            "x",
            "y",
            source=self.points,
            size=6,
            fill_color="color",
            fill_alpha=0.6,
            line_color=None,
            name="points",
        )
        self._rings = fig.scatter("x", "y", source=self.rings, size=11, fill_color=None, line_width=2, name="rings")
        means = fig.scatter(
            "x", "y", source=self.means, size=17, marker="diamond", fill_color="color", line_width=1.5, name="means"
        )
        fig.scatter("x", "y", source=self.pointed, size=20, fill_color=None, line_width=3, name="pointed")
        text = models.LabelSet(x="x", y="y", text="text", source=self.pointed, x_offset=12, y_offset=8, name="name")
        text.text_font = {"value": FONT}
        fig.add_layout(text)
        tips = [(title, f"@{name}") for name, title in (("row", "row"), ("group", "group"), ("label", "prompt"))]
        fig.add_tools(models.HoverTool(renderers=[dots], tooltips=tips))
        fig.add_tools(models.HoverTool(renderers=[means], tooltips=[("mean of", "@name"), ("w1", "@x"), ("w2", "@y")]))
        for tool in fig.select({"type": (models.BoxSelectTool, models.LassoSelectTool, models.TapTool)}):
            tool.renderers = []  # we ring rows ourselves; what Bokeh has not selected it would draw in other colours
        fig.on_event(events.SelectionGeometry, self._enclosed)
        fig.on_event(events.Tap, self._tapped)
        fig.on_event(events.RangesUpdate, lambda event: self._zoomed())
        fig.on_event(events.Reset, lambda event: self._reset())
        fig.xaxis.axis_label = "w1: first group to last (activation units)"
        fig.yaxis.axis_label = "w2: widest direction beside w1 (activation units)"
        for axis in fig.axis:
            axis.axis_label_text_font = axis.major_label_text_font = FONT
            axis.axis_label_text_font_style = "normal"
            axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
            axis.minor_tick_line_color = None
        fig.grid.grid_line_alpha = 0.25
        return fig

    def show(self, plane: Plane, trained: Sequence[str], untrained: Sequence[str]) -> None:
        """Draw another plane; the selection stays, wherever its rows are now."""
        same = self.plane is not None and self.plane.where.by == plane.where.by
        self.plane, self._trained = plane, trained
        colors = stage_colors(plane.groups, trained, untrained)
        self._colors = [colors[g] for g in plane.groups]
        if not same:
            self._selection, self._focus = np.empty(0, np.int64), None
        self._reset()

    def paint(self, theme: str) -> None:
        """Colours of the light or the dark page."""
        self.theme = theme
        fig, ink = self.figure, INK[theme]
        for axis in fig.axis:
            axis.major_label_text_color = axis.axis_label_text_color = ink
            axis.axis_line_color = axis.major_tick_line_color = LINE[theme]
        fig.grid.grid_line_color = LINE[theme]
        for renderer in fig.renderers:
            if renderer.name in ("path", "rings", "means", "pointed"):
                renderer.glyph.line_color = ink
        fig.select_one({"name": "name"}).text_color = ink
        if self.plane is not None:
            self._fill()

    def key(self) -> tuple[list[str], list[str]]:
        """Names and colours of the groups, for the page."""
        groups = list(self.plane.groups) if self.plane is not None else []
        return groups, tint(self._colors, self._trained, self.theme)

    def select(self, rows: np.ndarray) -> None:
        """Ring these rows of the store, as far as they are among those shown."""
        self._selection = np.asarray(rows, dtype=np.int64)
        self._ring()

    def point_at(self, row: int | None, text: str = "") -> None:
        """Point at one row of the store."""
        self._focus = row
        at = self._among(np.array([] if row is None else [row], dtype=np.int64))
        xy = self._xy()[at]
        self.pointed.data = {"x": xy[:, 0], "y": xy[:, 1], "text": [text] * len(xy)}

    def in_view(self) -> np.ndarray:
        """Positions in the plane of the rows inside the axes' ranges."""
        xy, x, y = self._xy(), self.figure.x_range, self.figure.y_range
        x0, x1, y0, y1 = sorted((x.start, x.end)) + sorted((y.start, y.end))
        return np.flatnonzero((xy[:, 0] >= x0) & (xy[:, 0] <= x1) & (xy[:, 1] >= y0) & (xy[:, 1] <= y1))

    def _xy(self) -> np.ndarray:
        return np.empty((0, 2), np.float32) if self.plane is None else self.plane.rows.coordinate

    def _among(self, rows: np.ndarray) -> np.ndarray:
        """Positions in the plane of rows of the store (the plane's rows are sorted)."""
        have = np.empty(0, np.int64) if self.plane is None else self.plane.rows.rows
        at = np.searchsorted(have, rows)
        inside = at < len(have)
        return np.asarray(at[inside][have[at[inside]] == rows[inside]])

    def _reset(self) -> None:
        assert self.plane is not None
        xy = self._xy()
        limits = [padded(float(v.min()), float(v.max()), 0.05) if len(v) else (0.0, 1.0) for v in xy.T]
        for which, (low, high) in zip((self.figure.x_range, self.figure.y_range), limits, strict=True):
            which.update(start=low, end=high, reset_start=low, reset_end=high)
        self._fill()

    def _fill(self) -> None:
        if self.plane is None:
            return
        colors = tint(self._colors, self._trained, self.theme)
        xy, codes = self._xy(), self.plane.rows.codes
        view = self.in_view() if len(xy) > MAX_POINTS else np.arange(len(xy))
        many = len(view) > MAX_POINTS
        drawn = np.empty(0, np.int64) if many else view
        rows = self.plane.rows.rows[drawn]
        self.points.data = {
            "x": xy[drawn, 0],
            "y": xy[drawn, 1],
            "color": [colors[g] for g in codes[drawn]],
            "group": [self.plane.groups[g] for g in codes[drawn]],
            **self._labels(rows),
        }
        self.image.data = self._shaded(view, colors) if many else {k: [] for k in ("image", "x", "y", "dw", "dh")}
        means = self.plane.rows.centroid
        known = np.flatnonzero(np.isfinite(means).all(axis=1))
        self.path.data = {"x": means[known, 0], "y": means[known, 1]}
        self.means.data = {
            **self.path.data,
            "color": [colors[g] for g in known],
            "name": [self.plane.groups[g] for g in known],
        }
        self._ring()
        self.point_at(self._focus, (self.pointed.data["text"] or [""])[0])

    def _zoomed(self) -> None:
        """Only a plane too large to be drawn whole is drawn anew for what is in view."""
        if len(self._xy()) > MAX_POINTS:
            self._fill()

    def _ring(self) -> None:
        at = self._among(self._selection)[:MAX_POINTS]
        xy = self._xy()[at]
        many = len(at) > MOST_BOLD
        self._rings.glyph.update(size=8 if many else 11, line_width=1 if many else 2, line_alpha=0.7 if many else 1.0)
        self.rings.data = {"x": xy[:, 0], "y": xy[:, 1]}

    def _shaded(self, view: np.ndarray, colors: Sequence[str]) -> dict[str, list[Any]]:
        """One image of all rows in view, by datashader: density as opacity, group as colour."""
        import datashader
        import datashader.transfer_functions as shading
        import pandas as pd

        assert self.plane is not None
        x, y = self.figure.x_range, self.figure.y_range
        names = [str(i) for i in range(len(self.plane.groups))]
        xy = self._xy()[view]
        table = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]})
        table["group"] = pd.Categorical.from_codes(self.plane.rows.codes[view], categories=pd.Index(names))
        canvas = datashader.Canvas(*PIXELS, x_range=(x.start, x.end), y_range=(y.start, y.end))
        counts = canvas.points(table, "x", "y", agg=datashader.count_cat("group"))
        image = shading.dynspread(shading.shade(counts, color_key=dict(zip(names, colors, strict=True)), min_alpha=90))
        return {
            "image": [np.asarray(image.values)],
            "x": [x.start],
            "y": [y.start],
            "dw": [x.end - x.start],
            "dh": [y.end - y.start],
        }

    def _enclosed(self, event: Any) -> None:
        if self.plane is None or not event.final:
            return
        inside = enclosed(self._xy(), event.geometry)
        self._chosen(self.plane.rows.rows[inside])

    def _tapped(self, event: Any) -> None:
        if self.plane is None or event.x is None or not len(self._xy()):
            return
        x, y = self.figure.x_range, self.figure.y_range
        away = (self._xy() - np.array([event.x, event.y])) / np.array([x.end - x.start, y.end - y.start])
        nearest = int(np.argmin((away**2).sum(axis=1)))
        if float((away[nearest] ** 2).sum()) < 0.015**2:
            self._chosen(self.plane.rows.rows[[nearest]])


def enclosed(xy: np.ndarray, geometry: dict[str, Any]) -> np.ndarray:
    """Which points (n, 2) a selection geometry of Bokeh (a rectangle or a polygon) encloses, bool (n,).

    >>> enclosed(np.array([[0.5, 0.5], [2.0, 0.5]]), {"type": "rect", "x0": 0, "x1": 1, "y0": 1, "y1": 0}).tolist()
    [True, False]
    >>> triangle = {"type": "poly", "x": [0, 4, 0], "y": [0, 0, 4]}
    >>> enclosed(np.array([[1.0, 1.0], [3.0, 3.0]]), triangle).tolist()
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
