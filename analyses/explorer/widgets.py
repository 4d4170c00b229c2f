"""The page's own widgets, on native HTML elements: slider, table of rows, status line, key, light or dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import panel
import param
from panel.custom import JSComponent

FILES = Path(__file__).with_name("assets")


STYLE = (FILES / "widgets.css").read_text(encoding="utf-8")


pn: Any = panel  # its functions have no types


class Native(JSComponent):
    """Base: the styles that all widgets of the page share."""

    _stylesheets = [STYLE]  # noqa: RUF012 - read by Panel as a class attribute

    __abstract = True

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)  # type: ignore[no-untyped-call]


class Stepper(Native):
    """A slider over the named values of stage, layer or token."""

    label = param.String()
    options = param.List(item_type=str)
    value = param.Integer(default=0)
    _esm = FILES / "stepper.js"


class Rows(Native):
    """A table of rows; `focus` is the one that is pointed at, -1 for none."""

    columns = param.List()
    rows = param.List()
    caption = param.String()
    focus = param.Integer(default=-1)
    _esm = FILES / "rows.js"


class Status(Native):
    """One line, and a bar where `share` (0 .. 1) is not negative; kind is "quiet", "busy" or "error"."""

    text = param.String()
    kind = param.String(default="quiet")
    share = param.Number(default=-1.0)
    _esm = FILES / "status.js"

    def say(self, text: str, kind: str = "quiet", share: float = -1.0) -> None:
        """Replace what stands there."""
        self.param.update(text=text, kind=kind, share=share)


class Key(Native):
    """Names and colours of the groups."""

    names = param.List()
    colors = param.List()
    _esm = FILES / "key.js"


class Caption(Native):
    """Heading of a figure and its sentence."""

    title = param.String()
    sentence = param.String()
    _esm = FILES / "caption.js"


class Theme(Native):
    """Button between a light and a dark page; `value` says which it is."""

    value = param.String(default="light")
    _esm = FILES / "theme.js"


def choice(label: str, options: Any, value: Any) -> Any:
    """A labelled drop-down list."""
    return pn.widgets.Select(
        label=label, options=options, value=value, stylesheets=[STYLE], min_width=120, sizing_mode="stretch_width"
    )


def button(label: str, primary: bool = False) -> Any:
    """A button."""
    classes = ["x-primary"] if primary else []
    return pn.widgets.Button(label=label, css_classes=classes, stylesheets=[STYLE], align="end")


def text_field(label: str, placeholder: str) -> Any:
    """A labelled field; its value changes on Enter."""
    return pn.widgets.TextInput(label=label, placeholder=placeholder, stylesheets=[STYLE], sizing_mode="stretch_width")
