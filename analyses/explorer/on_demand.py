"""The panel that computes probes and projections on demand, with their figures and statements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import panel as pn
import xarray as xr

from stratalens.analyses.explorer.background_task import BackgroundTask, Progress
from stratalens.analyses.explorer.data import Rows, ViewState
from stratalens.analyses.explorer.result_cache import (
    ANALYSES,
    METHODS,
    PAIR_CHOICES,
    SCOPES,
    AnalysisRequest,
    ResultCache,
)
from stratalens.analyses.explorer.widgets import FigureCaption, PositionMap, StatusLine, button, drop_down
from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.plots.colors import apply_theme, colors_at, heat_palette, text_color_on
from stratalens.analyses.plots.matrices import accuracy_limits, pair_matrix_spec, scalar_map_spec
from stratalens.analyses.plots.probes import layer_sweep_spec
from stratalens.analyses.plots.render_bokeh import bokeh_figure
from stratalens.analyses.plots.spec import FigureSpec, plain_text
from stratalens.analyses.report import group_sentences, sentences
from stratalens.analyses.report.phrases import Sentence, name_intervals_once
from stratalens.analyses.stats.estimates import estimate, extreme_pair

CaptionedSpec = tuple[FigureSpec, Sentence]

IDLE = "No result yet for this analysis, stage, layer and token. One step computes one stage, layer and token."


class AnalysisPanel:
    """Widgets and figures of the analyses on demand.

    Args:
        cache: results.
        view: returns the state of the widgets of the page.
        run_in_page: runs a function in the event loop of the page.
        on_change: called in that loop when the table of rows has to change.
    """

    def __init__(
        self,
        cache: ResultCache,
        view: Callable[[], ViewState],
        run_in_page: Callable[[Callable[[], None]], None],
        on_change: Callable[[], None],
    ) -> None:
        self.cache, self._view, self._run_in_page, self._on_change = cache, view, run_in_page, on_change
        self.kind = drop_down("Analysis", {v: k for k, v in ANALYSES.items()}, "probes")
        self.method = drop_down("Method", {v: k for k, v in METHODS.items()}, "logistic")
        self.pairs = drop_down("Which groups", {v: k for k, v in PAIR_CHOICES.items()}, "ends")
        self.scope = drop_down("Where", {v: k for k, v in SCOPES.items()}, "layers")
        self.start, self.stop = button("Compute", primary=True), button("Cancel")
        self.stop.disabled = True
        self.status = StatusLine(text=IDLE, sizing_mode="stretch_width")
        self.map, self.fill = PositionMap(sizing_mode="stretch_width"), button("Compute all cells")
        self.fill.on_click(lambda event: self.compute("tokens"))
        self.figures = pn.FlexBox(sizing_mode="stretch_width", align_items="start", gap="0 1.5rem")
        self.task: BackgroundTask | None = None
        self._theme = "light"
        self._shown: Any = None
        self._reported: tuple[AnalysisRequest, ViewState] | None = None  # the status line is about this request
        self.start.on_click(lambda event: self.compute())
        self.stop.on_click(lambda event: self.cancel())
        for widget in (self.kind, self.method, self.pairs):
            widget.param.watch(self._options_changed, "value")

    def set_ordered(self, ordered: bool) -> None:
        """Offer the analyses of groups with or without a known order."""
        kinds = {k: v for k, v in ANALYSES.items() if ordered or k != "order"}
        pairs = {k: v for k, v in PAIR_CHOICES.items() if ordered or k != "ends"}
        for widget, choices in ((self.kind, kinds), (self.pairs, pairs)):
            values = list(choices)
            value = widget.value if widget.value in choices else values[0]
            widget.param.update(options={text: key for key, text in choices.items()}, value=value)
        self._options_changed(None)

    def panel(self) -> Any:
        """Return the widgets and figures for the page."""
        drop_downs, buttons = (self.kind, self.method, self.pairs, self.scope), (self.start, self.stop)
        columns = [pn.Column(widget, styles={"flex": "1 1 13rem"}, margin=0) for widget in drop_downs]
        columns += [pn.Column(widget, styles={"flex": "0 0 auto"}, margin=0) for widget in buttons]
        row = pn.FlexBox(*columns, align_items="end", gap="0.2rem 1rem", sizing_mode="stretch_width")
        return pn.Column(row, self.status, self.figures, sizing_mode="stretch_width")

    def request(self) -> AnalysisRequest:
        """Return the request that the widgets describe."""
        view = self._view()
        request = AnalysisRequest(self.kind.value, view.site, view.by)
        if request.kind == "probes":
            request = replace(request, method=self.method.value, pairs=self.pairs.value)
        return request

    def compute(self, scope: str | None = None) -> None:
        """Start the computation, unless one is running; `scope` None = that of its widget."""
        if self._running():
            return
        request, view = self.request(), self._view()
        keys = self.cache.missing_keys(request, view, scope or self.scope.value)
        if not keys:
            self.status.set_message("All results are computed already; they are shown below.")
            return
        self.start.disabled = self.fill.disabled = True
        self.stop.disabled = False
        self.status.set_message(f"Computing 0 of {len(keys)} …", "busy", 0.0)
        self.task = BackgroundTask(
            keys,
            function=partial(self.cache.compute, request),
            on_result=partial(self.cache.add, request),
            on_progress=lambda progress: self._run_in_page(lambda: self._show_progress(progress)),
        ).start()

    def cancel(self) -> None:
        """End the computation at its next check, which comes within a second."""
        if self.task is not None and self._running():
            self.task.cancel()
            self.status.set_message("Stopping …", "busy", self.status.share)

    def draw(self, theme: str) -> None:
        """Show the results of the current request."""
        self._theme = theme
        request, view = self.request(), self._view()
        if self._shown == (request, view, theme):
            return
        self._shown = (request, view, theme)
        if self.status.kind == "error" and self._reported != (request, view):
            self.status.set_message("")
        self._draw_map(request, view)
        specs = available_figures(self.cache, request, view)
        trained = self.cache.data.stages()
        self.figures[:] = [_draw_figure(spec, sentence, trained, theme) for spec, sentence in specs]
        if specs and self.status.text == IDLE:
            self.status.set_message("")
        elif not specs and not self._running() and self.status.kind == "info" and self._reported != (request, view):
            self.status.set_message(IDLE)

    def scores(self, rows: Rows) -> tuple[str, list[float | None]] | None:
        """Return (column name, out-of-fold probe scores) of some rows.

        The result is None if there is no probe yet.
        """
        request, view = self.request(), self._view()
        result = self.cache.get(request, view.position) if request.kind == "probes" else None
        if result is None or "score" not in result or "pair" not in result["score"].dims:
            return None
        pairs = [str(p) for p in result["pair"].values]
        pair = extreme_pair(result) or pairs[0]
        score = result["score"].isel(pair=pairs.index(pair))
        values = score.squeeze([d for d in score.dims if d != "entity"]).isel(entity=rows).values
        return f"score {plain_text(pair, 30)}", [float(v) if np.isfinite(v) else None for v in values]

    def _draw_map(self, request: AnalysisRequest, view: ViewState) -> None:
        """Show the results at this stage by layer and token."""
        layers = self.cache.data.values(view.site, "layer") or [None]
        tokens = self.cache.data.values(view.site, "token") or [None]
        numbers = self.cache.layer_token_values(request, view.stage)
        grid = np.array([[numbers.get((view.stage, a, t), (np.nan, 0))[0] for a in layers] for t in tokens])
        null = float(np.mean([n for _, n in numbers.values()])) if numbers else 0.5
        limits = (-1.0, 1.0) if request.kind == "order" else accuracy_limits(round(null, 3), xr.DataArray(grid))
        colors = colors_at(grid.ravel(), *limits, heat_palette(limits[0] < null, self._theme))
        what = {"order": "Rank correlation of the inner groups", "probes": "Probe accuracy"}[request.kind]
        place = f"stage {plain_text(view.stage, 30)}" if view.stage is not None else plain_text(view.site)
        known, total = int(np.isfinite(grid).sum()), grid.size
        self.map.param.update(
            columns=["-" if a is None else plain_text(a, 12) for a in layers],
            rows=["-" if t is None else plain_text(t, 24) for t in tokens],
            values=[None if np.isnan(v) else round(float(v), 4) for v in grid.ravel()],
            colors=colors,
            text_colors=[text_color_on(c) for c in colors],
            current=tokens.index(view.token) * len(layers) + layers.index(view.layer),
            caption=f"{what} by layer and token at {place}; neutral: {null:.2g}. {known} of {total} computed. "
            "Choose a cell to go there; an empty cell is computed.",
        )

    def _running(self) -> bool:
        return self.task is not None and self.task.running

    def _show_progress(self, progress: Progress) -> None:
        share = progress.done / progress.total
        if progress.state == "running":
            stopping = self.status.text.startswith("Stopping")
            left = f", about {time_left(progress.seconds_left)} left" if progress.seconds_left is not None else ""
            text = self.status.text if stopping else f"Computing: {progress.done} of {progress.total} done{left} …"
            self.status.set_message(text, "busy", share)
        else:
            self.start.disabled = self.fill.disabled = False
            self.stop.disabled = True
            text = {
                "done": f"Done: {progress.total} of {progress.total}.",
                "cancelled": f"Cancelled: {progress.done} of {progress.total} done; these results are kept.",
                "failed": progress.error,
            }[progress.state]
            self.status.set_message(text, "error" if progress.state == "failed" else "info")
            self._reported = (self.request(), self._view())
        self._redraw()

    def _options_changed(self, event: Any) -> None:
        self.method.disabled = self.pairs.disabled = self.kind.value != "probes"
        self._run_in_page(self._redraw)

    def _redraw(self) -> None:
        self._shown = None
        self.draw(self._theme)
        self._on_change()


def time_left(seconds: float) -> str:
    """Return a rounded duration.

    >>> time_left(0.2), time_left(47), time_left(200)
    ('1 s', '47 s', '4 min')
    """
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{-(-int(seconds) // 60)} min"


def available_figures(cache: ResultCache, request: AnalysisRequest, view: ViewState) -> list[CaptionedSpec]:
    """Return the figures of all results that a request has, most important first."""
    result = cache.get(request, view.position)
    if request.kind == "probes":
        return _probe_figures(cache, request, view, result)
    return _order_figures(cache, request, view, result)


def _probe_figures(
    cache: ResultCache, request: AnalysisRequest, view: ViewState, result: xr.Dataset | None
) -> list[CaptionedSpec]:
    figures: list[CaptionedSpec] = []
    by_layer = cache.across_layers(request, view.stage, view.token)
    if by_layer is not None and view.layer is not None:
        spec = layer_sweep_spec(by_layer)
        figures.append((spec, sentences.sweep_sentence(by_layer, spec)))
    if result is not None and result.sizes.get("pair", 1) > 1 and request.pairs == "all":
        figures.append(_pair_matrix(result))
    grid = cache.stage_layer_grid(request, "accuracy_mean", view.token)
    if grid is not None and int(grid.notnull().any("layer").sum()) > 1:
        label = {"ends": "accuracy of the first group against the last", "multiclass": "accuracy of all groups"}
        null = 0.5 if by_layer is None else round(float(estimate(by_layer)["null"].mean()), 3)
        figures.append(_map(grid, label.get(request.pairs, "mean accuracy"), accuracy_limits(null, grid), null))
    if not figures and result is not None:  # a site without layers has only its pairs
        figures.append(_pair_matrix(result))
    return figures


def _order_figures(
    cache: ResultCache, request: AnalysisRequest, view: ViewState, result: xr.Dataset | None
) -> list[CaptionedSpec]:
    figures: list[CaptionedSpec] = []
    if result is not None:
        spec = centroid_path_spec(result)
        figures.append((spec, group_sentences.path_sentence(result, spec)))
    grid = cache.stage_layer_grid(request, "inner_rank_correlation", view.token)
    if grid is not None and int(grid.notnull().sum()) > 1:
        figures.append(_map(grid, "rank correlation of inner groups", (-1.0, 1.0), 0.0))
    return figures


def _pair_matrix(result: xr.Dataset) -> CaptionedSpec:
    spec = pair_matrix_spec(result)
    return spec, sentences.matrix_sentence(result, spec)


def _map(scalar: xr.DataArray, label: str, limits: tuple[float, float], null: float) -> CaptionedSpec:
    spec = scalar_map_spec(scalar, "stage", "layer", label, limits, null)
    return spec, sentences.map_sentence(scalar, spec, label, null)


def _draw_figure(spec: FigureSpec, sentence: Sentence, trained: list[str], theme: str) -> Any:
    """Return a figure with its caption as a Panel object."""
    slider_values = spec.default_values()
    figure = bokeh_figure(spec)
    apply_theme(figure, trained, theme)
    caption = FigureCaption(
        title=spec.heading(slider_values),
        sentence=name_intervals_once(sentence(slider_values)),
        sizing_mode="stretch_width",
    )
    pane = pn.pane.Bokeh(figure, sizing_mode="stretch_width", height=spec.height)
    styles = {"flex": "1 1 26rem", "min-width": "0"}
    return pn.Column(caption, pane, sizing_mode="stretch_width", min_width=260, styles=styles)
