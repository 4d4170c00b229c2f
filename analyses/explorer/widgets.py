"""The page's own widgets, built from native HTML elements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import param
from panel.custom import JSComponent

ASSETS = Path(__file__).with_name("assets")
STYLE = (ASSETS / "widgets.css").read_text(encoding="utf-8")


class PageWidget(JSComponent):
    """Base class with the styles of all widgets."""

    _stylesheets = [STYLE]  # noqa: RUF012 - Panel reads a class attribute

    __abstract = True

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)  # type: ignore[no-untyped-call]


class ValueSlider(PageWidget):
    """A slider over the named values of stage, layer or token."""

    label = param.String()
    options = param.List(item_type=str)
    value = param.Integer(default=0)
    _esm = ASSETS / "slider.js"


class RowTable(PageWidget):
    """A table of rows.

    `focus` is the highlighted row, -1 for none. `means` has the mean of each column, or is empty.
    """

    columns = param.List()
    rows = param.List()
    means = param.List()
    caption = param.String()
    ids = param.List(doc="ids of all selected rows, for the clipboard")
    focus = param.Integer(default=-1)
    _esm = ASSETS / "rows.js"


class StatusLine(PageWidget):
    """A status message of kind "info", "busy" or "error".

    It has a progress bar if `share` (0 to 1) is not negative; at 0 the bar moves without a value.
    """

    text = param.String()
    kind = param.String(default="info")
    share = param.Number(default=-1.0)
    _esm = ASSETS / "status.js"

    def set_message(self, text: str, kind: str = "info", share: float = -1.0) -> None:
        """Replace the message."""
        self.param.update(text=text, kind=kind, share=share)


class Legend(PageWidget):
    """Names and colours of the groups; `isolated` is the group that is shown alone, -1 for all."""

    names = param.List()
    colors = param.List()
    isolated = param.Integer(default=-1)
    _esm = ASSETS / "legend.js"


class PositionMap(PageWidget):
    """A table of buttons, one a layer and token, with one number each.

    `values` has one number a cell, row by row; None = not computed. `current` is the cell of the view. A press of a
    button sets `chosen` to [cell, number of presses].
    """

    columns = param.List()
    rows = param.List()
    values = param.List()
    colors = param.List()
    text_colors = param.List()
    current = param.Integer(default=0)
    chosen = param.List()
    caption = param.String()
    _esm = ASSETS / "map.js"


class FigureCaption(PageWidget):
    """Heading of a figure and its statement."""

    title = param.String()
    sentence = param.String()
    _esm = ASSETS / "caption.js"


class ThemeButton(PageWidget):
    """Button that switches between a light and a dark page.

    `value` is the current theme.
    """

    value = param.String(default="light")
    _esm = ASSETS / "theme.js"


def drop_down(label: str, options: Any, value: Any) -> Any:
    """Return a labelled drop-down list."""
    return pn.widgets.Select(
        label=label, options=options, value=value, stylesheets=[STYLE], min_width=120, sizing_mode="stretch_width"
    )


def button(label: str, primary: bool = False) -> Any:
    """Return a button."""
    classes = ["x-primary"] if primary else []
    return pn.widgets.Button(label=label, css_classes=classes, stylesheets=[STYLE], align="end")


def file_button(label: str, filename: str, content: Callable[[], Any]) -> Any:
    """Return a button that saves a file; `content` returns the file when the button is pressed."""
    return pn.widgets.FileDownload(
        callback=content,
        filename=filename,
        label=label,
        icon=None,
        stylesheets=[STYLE],
        align="end",
        embed=False,
    )


def text_field(label: str, placeholder: str) -> Any:
    """Return a labelled text field; its value changes on Enter."""
    return pn.widgets.TextInput(label=label, placeholder=placeholder, stylesheets=[STYLE], sizing_mode="stretch_width")
