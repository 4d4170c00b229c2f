"""What goes wrong is said in the page, never only in a log."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import panel
import xarray as xr

from stratalens.analyses.explorer.data import Plane, Source, Where
from stratalens.analyses.explorer.on_demand import AnalysisPanel
from stratalens.analyses.explorer.result_cache import Answers
from stratalens.analyses.explorer.scatter import Scatter
from stratalens.analyses.explorer.widgets import FILES, Key, Rows, Status, Stepper, Theme, button, choice, text_field
from stratalens.analyses.plots.spec import plain
from stratalens.store.errors import StratalensError


def explain(error: BaseException) -> str:
    """The message for the page; an exception that nobody raised on purpose also leaves its traceback.

    >>> from stratalens.store.errors import InputError
    >>> explain(InputError("no layer 7"))
    'no layer 7'
    """
    if isinstance(error, StratalensError):
        return str(error)
    if isinstance(error, ImportError) and error.name == "datashader":
        return "so many rows are drawn by datashader, which is not installed: pip install 'stratalens[explore]'"
    traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    return f"this is a defect of stratalens ({type(error).__name__}: {error}); the server's window says where"


pn: Any = panel  # its functions have no types


MOST_LISTED = 100


HINT = "Draw a box or a lasso around points, tap one, or find rows by their text: they are listed here."


class Explorer:
    """One reader's page on a store; planes and answers are shared with the other readers of the server.

    Args:
        source: the store.
        answers: what was computed already.
    """

    def __init__(self, source: Source, answers: Answers) -> None:
        self.source = source
        self._doc = pn.state.curdoc
        site = source.sites[0]
        self.site = choice("Site", source.sites, site)
        self.by = choice("Groups (label column)", source.columns, source.columns[0])
        self.steppers = {dim: Stepper(label=dim, sizing_mode="stretch_width") for dim in ("stage", "layer", "token")}
        self._fit_steppers()
        self.note, self.key, self.theme = Status(sizing_mode="stretch_width"), Key(), Theme()
        self.listing = Rows(caption=HINT, sizing_mode="stretch_width")
        self.find = text_field("Find rows (prompt, entity or label; press Enter)", "part of a prompt, a name, a label")
        self.clear = button("Clear selection")
        self.selected = np.empty(0, np.int64)
        self.scatter = Scatter(self.select, self._hover)
        self.demand = AnalysisPanel(answers, self.where, self._later, self._relist)
        self._shown: Where | None = None
        self._busy = self._closed = False
        self.site.param.watch(self._other_site, "value")
        for widget in (self.by, *self.steppers.values()):
            widget.param.watch(lambda event: self.refresh(), "value")
        self.theme.param.watch(lambda event: self._later(partial(self._paint, event.new)), "value")
        self.find.param.watch(lambda event: self._later(partial(self._search, event.new)), "value")
        self.clear.on_click(lambda event: self._later(partial(self.select, np.empty(0, np.int64))))
        self.listing.param.watch(lambda event: self._later(partial(self._point, event.new)), "focus")

    # -- what is shown --------------------------------------------------------
    def where(self) -> Where:
        """The place that the widgets say."""
        chosen: dict[str, Hashable] = {}
        for dim, stepper in self.steppers.items():
            values = self.source.values(self.site.value, dim)
            chosen[dim] = values[stepper.value] if values else None
        return Where(self.site.value, self.by.value, chosen["stage"], chosen["layer"], chosen["token"])

    def refresh(self) -> None:
        """Show the place that the widgets say; while one is being read, only the latest wish is remembered."""
        where = self.where()
        if self._busy or where == self._shown:
            return
        self._busy, self._shown = True, where
        self.note.say(f"Reading {where.words()} …", "busy")
        if self._doc is None:
            self._read(where)
        else:
            threading.Thread(target=self._read, args=(where,), daemon=True).start()

    def _read(self, where: Where) -> None:
        plane: Plane | None = None
        message = ""
        try:
            plane = self.source.plane(where)
        except Exception as error:  # the reader must see it, whatever it is
            message = explain(error)
        self._later(lambda: self._arrived(where, plane, message))

    def _arrived(self, where: Where, plane: Plane | None, message: str) -> None:
        self._busy = False
        if where != self.where():
            self.refresh()
        elif plane is None:
            old = self.scatter.plane
            still = f" The figure still shows {old.where.words()}, by {plain(old.where.by)}." if old else ""
            self.note.say(message.rstrip(".") + "." + still, "error")
            self.demand.draw(self.theme.value)
        else:
            self._show(plane)

    def _show(self, plane: Plane) -> None:
        trained, untrained = self.source.colours(plane.groups)
        if self.scatter.plane is not None and self.scatter.plane.where.by != plane.where.by:
            self.selected = np.empty(0, np.int64)
        self.scatter.show(plane, trained, untrained)
        self._keys()
        rows = plane.rows
        text = (
            f"{len(rows.rows):,} of {plane.total:,} rows, {plane.where.words()}: the half of the entities that w1 and "
            f"w2 were not made from. Diamonds: means of the groups, joined in order"
        )
        text += f". {rows.left_out:,} rows lack this position" if rows.left_out else ""
        self.note.say(text + ".")
        self._relist()
        self.demand.draw(self.theme.value)

    def _keys(self) -> None:
        names, colors = self.scatter.key()
        self.key.param.update(names=names, colors=colors)

    def _paint(self, theme: str) -> None:
        self.scatter.paint(theme)
        self._keys()
        self.demand.draw(theme)

    # -- widgets ----------------------------------------------------------------
    def _fit_steppers(self) -> None:
        for dim, stepper in self.steppers.items():
            values = [plain(v, 40) for v in self.source.values(self.site.value, dim)]
            kept = stepper.options[stepper.value] if stepper.options else "last" if "last" in values else None
            at = values.index(kept) if kept in values else max(0, len(values) - 1)
            stepper.param.update(options=values, value=at, visible=bool(values))

    def _other_site(self, event: Any) -> None:
        self._fit_steppers()
        self.refresh()

    # -- selection ----------------------------------------------------------------
    def select(self, rows: np.ndarray) -> None:
        """Select rows of the store: ringed in the figure, listed in the table."""
        self.selected = np.asarray(rows, dtype=np.int64)
        self.scatter.select(self.selected)
        self.scatter.point_at(None)
        self._guard(self._relist)

    def _relist(self) -> None:
        if not len(self.selected):
            self.listing.param.update(columns=[], rows=[], caption=HINT, focus=-1)
            return
        where, shown = self.where(), self.selected[:MOST_LISTED]
        columns, table = self.source.details(where, shown.tolist())
        scores = self.demand.scores(shown)
        if scores is not None:
            name, values = scores
            columns.insert(2, name)
            for row, value in zip(table, values, strict=True):
                row.insert(2, value)
        more = "" if len(self.selected) <= MOST_LISTED else f", the first {MOST_LISTED} listed"
        caption = f"{len(self.selected):,} rows selected{more}; statistics of {where.words()}"
        self.listing.param.update(columns=columns, rows=table, caption=caption, focus=-1)

    def _search(self, text: str) -> None:
        if not text.strip():
            return
        rows = self.source.search(text.strip(), self.source.ds.sizes["entity"])
        if not len(rows):
            self.select(rows)
            self.listing.caption = f"No row holds {plain(text, 60)!r}."
            return
        self.select(rows)

    def _point(self, index: int) -> None:
        if 0 <= index < min(len(self.selected), MOST_LISTED):
            self.scatter.point_at(int(self.selected[index]), str(self.listing.rows[index][0]))
        else:
            self.scatter.point_at(None)

    def _hover(self, rows: np.ndarray) -> dict[str, list[str]]:
        label = "prompt" if "prompt" in self.source.ds.coords else self.by.value
        return {"row": self.source.texts("entity", rows, 60), "label": self.source.texts(label, rows, 90)}

    # -- plumbing ---------------------------------------------------------------
    def _guard(self, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:  # the reader must see it, whatever it is
            self.note.say(explain(error), "error")

    def _later(self, action: Callable[[], None]) -> None:
        """Run in the page's own loop with the document's lock, which Bokeh's models need when they are changed."""
        if self._closed:
            return  # nobody looks any more
        if self._doc is None:
            self._guard(action)
        else:
            self._doc.add_next_tick_callback(lambda: self._guard(action))

    def close(self) -> None:
        """The reader left: begin nothing more, and change nothing that is gone."""
        self._closed = True
        self.demand.cancel()

    def template(self) -> Any:
        """The page, for Panel to serve."""
        path = Path(self.source.path)
        nouns = {"stage": "stages", "layer": "layers", "entity": "rows", "token": "token positions"}
        dims = ", ".join(f"{n:,} {nouns[str(d)]}" for d, n in self.source.ds.sizes.items() if d in nouns)
        made = pn.Template((FILES / "explorer.html").read_text(encoding="utf-8"))
        title = f"stratalens explorer: {plain(path.name)}"
        made.add_variable("style", (FILES / "explorer.css").read_text(encoding="utf-8"))
        made.add_variable("heading", title)
        made.add_variable("facts", f"{plain(str(path), 200)} · {dims}")
        made.title = title
        wide = {"sizing_mode": "stretch_width"}
        made.add_panel("theme", self.theme)
        chosen = (self.site, self.by, *self.steppers.values())
        flex = {"flex": "1 1 13rem"}
        parts = [pn.Column(w, visible=w.param.visible, min_width=190, styles=flex, margin=0) for w in chosen]
        made.add_panel("places", pn.FlexBox(*parts, align_items="end", gap="0.2rem 1.2rem", **wide))
        figure = pn.pane.Bokeh(self.scatter.figure, height=470, **wide)
        made.add_panel("rows", pn.Column(self.note, figure, self.key, **wide))
        field = pn.Column(self.find, min_width=220, styles={"flex": "1 1 14rem"}, margin=0)  # wraps on a phone
        find = pn.FlexBox(field, self.clear, align_items="end", **wide)
        made.add_panel("selected", pn.Column(find, self.listing, **wide))
        made.add_panel("asked", self.demand.panel())
        return made


def page(ds: xr.Dataset, shared: tuple[Source, Answers] | None = None) -> Explorer:
    """A page on an open store; `page(ds).template()` is what Panel serves.

    Args:
        ds: result of `open_store`.
        shared: what the pages of one server have in common.
    """
    if shared is None:
        source = Source(ds)
        shared = source, Answers(source)
    return Explorer(*shared)
