"""The page of one reader: its widgets, and their effect on the figures and the table."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn
import xarray as xr

from stratalens.analyses.explorer.address import requested_state, rows_of_text, rows_text, show_in_address, state_of
from stratalens.analyses.explorer.axes import AXES
from stratalens.analyses.explorer.data import DIMS, ExplorerData, GroupPlane, Rows, ViewState
from stratalens.analyses.explorer.on_demand import AnalysisPanel
from stratalens.analyses.explorer.result_cache import ResultCache
from stratalens.analyses.explorer.scatter import NO_ROWS, Scatter
from stratalens.analyses.explorer.selection import (
    LABEL_FILE,
    MAX_LISTED_ROWS,
    label_command,
    labels_csv,
    plural,
    rows_csv,
    selection_caption,
)
from stratalens.analyses.explorer.widgets import (
    ASSETS,
    Legend,
    RowTable,
    StatusLine,
    ThemeButton,
    ValueSlider,
    button,
    drop_down,
    file_button,
    text_field,
)
from stratalens.analyses.plots.spec import plain_text
from stratalens.store.errors import StratalensError

HINT = "Draw a box or a lasso around points, tap a point, or search rows by text. The selected rows are listed here."


class Explorer:
    """The page of one reader.

    All readers of the server share the data and the results.

    Args:
        data: the store.
        cache: results of earlier computations.
    """

    def __init__(self, data: ExplorerData, cache: ResultCache) -> None:
        self.data = data
        self._document = pn.state.curdoc
        self._location = pn.state.location  # callbacks of the page do not know it
        self.site = drop_down("Site", data.sites, data.sites[0])
        # The texts are the values, because Panel compares disabled options with the texts that the browser shows.
        self._columns, unusable = data.column_options()
        texts = list(self._columns)
        self.by = drop_down("Groups (label column)", texts, texts[0])
        self.by.disabled_options = [text for text in unusable if text != texts[0]]
        self.axes = drop_down("Axes", {text: key for key, text in AXES.items()}, "groups")
        self.x, self.y = drop_down("Horizontal direction", [], None), drop_down("Vertical direction", [], None)
        self.sliders = {dim: ValueSlider(label=dim, sizing_mode="stretch_width") for dim in DIMS}
        self._update_sliders()
        self._update_directions()
        state = requested_state()
        self._apply(state)
        self.status, self.legend, self.theme = StatusLine(sizing_mode="stretch_width"), Legend(), ThemeButton()
        self.table = RowTable(caption=HINT, sizing_mode="stretch_width")
        self.find = text_field("Find rows (prompt, entity or label; press Enter)", "text of a prompt, a name, a label")
        self.clear, self.zoom = button("Clear selection"), button("Zoom to the means")
        self._asked = state.get("find", "")  # a search of the address; it runs once the first plane is shown
        self._asked_rows = rows_of_text(state.get("rows", ""), data.ds.sizes["entity"])  # the same of a selection
        self.save = file_button("Save as CSV", "selected-rows.csv", self._selected_csv)
        self.labels = file_button("Save as labels", LABEL_FILE, self._selection_labels)
        self.save.disabled = self.labels.disabled = True
        self.selected, self._searched, self._in_address = NO_ROWS, "", ""
        self.scatter = Scatter(self.select, self._hover_texts)
        self.analyses = AnalysisPanel(cache, self.view, self._run_in_page, self._update_table)
        self._shown: ViewState | None = None
        self._reading = self._closed = False
        self.analyses.set_ordered(data.ordered(self.column))
        self.site.param.watch(self._site_changed, "value")
        self.by.param.watch(self._column_changed, "value")
        self.axes.param.watch(lambda event: self._show_directions(), "value")
        for widget in (self.by, self.axes, self.x, self.y, *self.sliders.values()):
            widget.param.watch(lambda event: self.refresh(), "value")
        self.theme.param.watch(lambda event: self._run_in_page(partial(self._set_theme, event.new)), "value")
        self.find.param.watch(lambda event: self._run_in_page(partial(self._search, event.new)), "value")
        self.clear.on_click(lambda event: self._run_in_page(partial(self.select, NO_ROWS)))
        self.zoom.on_click(lambda event: self._run_in_page(self._toggle_zoom))
        self.legend.param.watch(lambda event: self._run_in_page(partial(self._isolate, event.new)), "isolated")
        self.analyses.map.param.watch(lambda event: self._run_in_page(partial(self._go_to, event.new)), "chosen")
        self.table.param.watch(lambda event: self._run_in_page(partial(self._highlight, event.new)), "focus")

    @property
    def column(self) -> str:
        """Name of the chosen label column."""
        return self._columns[self.by.value]

    # -- the plane ------------------------------------------------------------
    def view(self) -> ViewState:
        """Return the state of the widgets."""
        chosen: dict[str, Hashable] = {}
        for dim, slider in self.sliders.items():
            values = self.data.values(self.site.value, dim)
            chosen[dim] = values[slider.value] if values else None
        directions = (self.x.value or "", self.y.value or "") if self.axes.value == "directions" else ("", "")
        position = (chosen["stage"], chosen["layer"], chosen["token"])
        return ViewState(self.site.value, self.column, *position, self.axes.value, *directions, self.data.seed)

    def refresh(self) -> None:
        """Show the current state of the widgets.

        While a plane is being read, only the latest state is shown next.
        """
        view = self.view()
        if self._reading or view == self._shown:
            return
        self._reading, self._shown = True, view
        self.status.set_message(f"Reading {view.description()} …", "busy")
        if self._document is None:
            self._read(view)
        else:
            threading.Thread(target=self._read, args=(view,), daemon=True).start()

    def _read(self, view: ViewState) -> None:
        plane: GroupPlane | None = None
        message = ""
        try:
            plane = self.data.plane(view)
        except Exception as error:  # the page shows every error
            message = error_message(error)
        self._run_in_page(lambda: self._plane_read(view, plane, message))

    def _plane_read(self, view: ViewState, plane: GroupPlane | None, message: str) -> None:
        self._reading = False
        if view != self.view():
            self.refresh()
        elif plane is None:
            text = message.rstrip(".") + "."
            old = self.scatter.plane
            if old is not None:
                text += f" The figure still shows {old.view.description()}, by {plain_text(old.view.by)}."
            self.status.set_message(text, "error")
            self.analyses.draw(self.theme.value)
        else:
            self._show(plane)

    def _show(self, plane: GroupPlane) -> None:
        colors, trained = self.data.colors(plane)
        if self.scatter.plane is not None and self.scatter.plane.view.by != plane.view.by:
            self.selected, self._searched, self._in_address = NO_ROWS, "", ""
            self.legend.isolated = -1
        self.scatter.show(plane, colors, trained)
        self._update_address()
        self._update_legend()
        self._update_zoom()
        rows = plane.rows
        text = (
            f"{len(rows.rows):,} of {plane.total:,} rows, {plane.view.description()}. These are the rows of one half "
            f"of the entities; the other half defines the axes. Diamonds are the means of the "
            f"groups{', joined in order' if plane.ordered else ''}, ellipses their 95 % regions over entities."
        )
        text += f" {rows.left_out:,} rows do not have this token position." if rows.left_out else ""
        self.status.set_message(text)
        self._update_table()
        self.analyses.draw(self.theme.value)
        if self._asked:
            text, self._asked = self._asked, ""
            self.find.value = text
        elif len(self._asked_rows):
            asked, self._asked_rows = self._asked_rows, NO_ROWS
            self.select(asked)

    # -- widgets ----------------------------------------------------------------
    def _update_legend(self) -> None:
        names, colors = self.scatter.legend()
        self.legend.param.update(names=names, colors=colors)

    def _set_theme(self, theme: str) -> None:
        self.scatter.set_theme(theme)
        self._update_legend()
        self.analyses.draw(theme)

    def _update_zoom(self) -> None:
        self.zoom.label = "Show all rows" if self.scatter.zoomed else "Zoom to the means"

    def _toggle_zoom(self) -> None:
        self.scatter.set_zoom(not self.scatter.zoomed)
        self._update_zoom()

    def _isolate(self, group: int) -> None:
        self.scatter.isolate(group if group >= 0 else None)

    def _go_to(self, chosen: list[int]) -> None:
        """Move the sliders to a cell of the map; an empty cell is also computed."""
        if not chosen:
            return
        cell = chosen[0]
        empty = self.analyses.map.values[cell] is None
        row, column = divmod(cell, len(self.analyses.map.columns))
        for dim, position in (("token", row), ("layer", column)):
            if self.sliders[dim].options:
                self.sliders[dim].value = position
        if empty:
            self.analyses.compute("here")

    def _update_address(self) -> None:
        if self.scatter.plane is not None:
            view = self.scatter.plane.view
            show_in_address(self._location, state_of(view, self._searched, self._in_address))

    def _column_changed(self, event: Any) -> None:
        self._update_directions()
        self.analyses.set_ordered(self.data.ordered(self.column))

    def _update_directions(self) -> None:
        """Offer the directions between the groups of the column."""
        options, start = self.data.directions(self.column)
        for widget, value in zip((self.x, self.y), start, strict=True):
            widget.param.update(options=options, value=value or None)
        self._show_directions()

    def _show_directions(self) -> None:
        self.x.visible = self.y.visible = self.axes.value == "directions"

    def _update_sliders(self) -> None:
        """Set the values of the sliders for the current site.

        Each slider stays at its value where possible.
        """
        for dim, slider in self.sliders.items():
            values = [plain_text(v, 40) for v in self.data.values(self.site.value, dim)]
            current = slider.options[slider.value] if slider.options else "last"
            position = values.index(current) if current in values else max(0, len(values) - 1)
            slider.param.update(options=values, value=position, visible=bool(values))

    def _apply(self, state: Mapping[str, str]) -> None:
        """Set the widgets to the state of an address; names that the store does not have change nothing."""
        if state.get("site") in self.data.sites:
            self.site.value = state["site"]
            self._update_sliders()
        texts = {name: text for text, name in self._columns.items() if text not in self.by.disabled_options}
        if state.get("by") in texts:
            self.by.value = texts[state["by"]]
            self._update_directions()
        if state.get("axes") in AXES:
            self.axes.value = state["axes"]
        for name, widget in (("x", self.x), ("y", self.y)):
            if state.get(name) in widget.options:
                widget.value = state[name]
        self._show_directions()
        for dim, slider in self.sliders.items():
            if state.get(dim) in slider.options:
                slider.value = slider.options.index(state[dim])

    def _site_changed(self, event: Any) -> None:
        self._update_sliders()
        self.refresh()

    # -- selected rows ------------------------------------------------------------
    def select(self, rows: Rows, searched: str = "") -> None:
        """Select rows of the store: rings in the figure, rows in the table.

        Args:
            rows: int64 array of shape (n,), positions along `entity`.
            searched: text whose search selected the rows; it becomes part of the address.
        """
        self.selected = np.asarray(rows, dtype=np.int64)
        self._searched = searched
        self._in_address = "" if searched else rows_text(self.selected, self.data.ds.sizes["entity"])
        self._update_address()
        self.scatter.select(self.selected)
        self.scatter.highlight(None)
        self._show_errors(self._update_table)

    def _update_table(self) -> None:
        self.save.disabled = not len(self.selected)
        self.labels.disabled = self.save.disabled or "prompt" not in self.data.ds.coords  # a prompt table needs them
        if not len(self.selected):
            self.table.param.update(columns=[], rows=[], means=[], ids=[], caption=HINT, focus=-1)
            return
        view, listed = self.view(), self.selected[:MAX_LISTED_ROWS]
        columns, table = self.data.row_details(view, listed.tolist())
        means = self.data.row_means(view, self.selected, columns)
        scores = self.analyses.scores(self.selected)
        if scores is not None:
            name, values = scores
            columns.insert(2, name)
            known = [value for value in values if value is not None]
            means.insert(2, sum(known) / len(known) if known else None)
            for row, value in zip(table, values[: len(listed)], strict=True):
                row.insert(2, value)
        caption = selection_caption(self.data, view, self.selected, bool(self._searched or self._in_address))
        ids = self.data.label_texts("entity", self.selected)
        means = means if len(self.selected) > 1 else []
        self.table.param.update(columns=columns, rows=table, means=means, ids=ids, caption=caption, focus=-1)

    def _selected_csv(self) -> StringIO:
        """Return the selected rows with labels and statistics as CSV."""
        return rows_csv(self.data, self.view(), self.selected)

    def _selection_labels(self) -> StringIO:
        """Return the selection as a label column; the caption of the table then has the command that adds it."""
        self._run_in_page(self._show_label_command)
        return labels_csv(self.data, self.selected)

    def _show_label_command(self) -> None:
        self.table.caption = label_command(self.data)

    def _search(self, text: str) -> None:
        if not text.strip():
            return
        rows = self.data.search(text.strip(), self.data.ds.sizes["entity"])
        self.select(rows, text.strip())
        if not len(rows):
            self.table.caption = f"No row contains {plain_text(text, 60)!r}."

    def _highlight(self, index: int) -> None:
        if 0 <= index < min(len(self.selected), MAX_LISTED_ROWS):
            self.scatter.highlight(int(self.selected[index]), str(self.table.rows[index][0]))
        else:
            self.scatter.highlight(None)

    def _hover_texts(self, rows: Rows) -> dict[str, list[str]]:
        label = "prompt" if "prompt" in self.data.ds.coords else self.column
        return {"row": self.data.label_texts("entity", rows, 60), "label": self.data.label_texts(label, rows, 90)}

    # -- event loop -------------------------------------------------------------
    def _show_errors(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # the page shows every error
            self.status.set_message(error_message(error), "error")

    def _run_in_page(self, action: Callable[[], None]) -> None:
        """Run in the event loop of the page.

        Changes of Bokeh models need the lock of the document, which the loop holds.
        """
        if self._closed:
            return
        if self._document is None:
            self._show_errors(action)
        else:
            self._document.add_next_tick_callback(lambda: self._show_errors(action))

    def close(self) -> None:
        """Stop all work, because the reader has left the page."""
        self._closed = True
        self.analyses.cancel()

    def template(self) -> Any:
        """Return the page for Panel to serve."""
        path = Path(self.data.path)
        nouns = {"stage": "stage", "layer": "layer", "entity": "row", "token": "token position"}
        dims = ", ".join(plural(n, nouns[str(d)]) for d, n in self.data.ds.sizes.items() if d in nouns)
        template: Any = pn.Template((ASSETS / "explorer.html").read_text(encoding="utf-8"))
        template.location = True  # the template embeds it
        template.title = f"stratalens explorer: {plain_text(path.name)}"
        template.add_variable("style", (ASSETS / "explorer.css").read_text(encoding="utf-8"))
        template.add_variable("heading", template.title)
        template.add_variable("description", f"{plain_text(str(path), 200)} · {dims}")
        template.add_panel("theme", self.theme)
        wide = {"sizing_mode": "stretch_width"}
        flex = {"flex": "1 1 11.5rem"}
        columns = [
            pn.Column(w, visible=w.param.visible, min_width=150, styles=flex, margin=0)
            for w in (self.site, self.by, self.axes, self.x, self.y, *self.sliders.values())
        ]
        template.add_panel("view", pn.FlexBox(*columns, align_items="end", gap="0.2rem 1.2rem", **wide))
        figure = pn.pane.Bokeh(self.scatter.figure, height=470, **wide)
        template.add_panel("rows", pn.Column(self.status, figure, self.legend, self.zoom, **wide))
        template.add_panel("map", pn.Column(self.analyses.map, self.analyses.fill, **wide))
        field = pn.Column(self.find, min_width=220, styles={"flex": "1 1 14rem"}, margin=0)  # wraps on a phone
        find = pn.FlexBox(field, self.clear, self.save, self.labels, align_items="end", **wide)
        template.add_panel("selected", pn.Column(find, self.table, **wide))
        template.add_panel("analyses", self.analyses.panel())
        return template


def page(ds: xr.Dataset, shared: tuple[ExplorerData, ResultCache] | None = None, by: str | None = None) -> Explorer:
    """Create a page on an open store; Panel serves `page(ds).template()`.

    Args:
        ds: result of `open_store`.
        shared: data and results that the pages of one server share.
        by: label column at the start; None = the most useful one. `shared` has its own.
    """
    if shared is None:
        data = ExplorerData(ds, by)
        shared = data, ResultCache(data)
    return Explorer(*shared)


def error_message(error: BaseException) -> str:
    """Return the message for the page.

    The traceback of an unexpected exception goes to standard error.

    >>> from stratalens.store.errors import InputError
    >>> error_message(InputError("no layer 7"))
    'no layer 7'
    """
    if isinstance(error, StratalensError):
        return str(error)
    if isinstance(error, ImportError) and error.name == "datashader":
        return "so many rows need datashader. Install it: pip install 'stratalens[explore]'"
    traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    return (
        f"this is a defect of stratalens ({type(error).__name__}: {error}); the terminal of the server has the details"
    )
