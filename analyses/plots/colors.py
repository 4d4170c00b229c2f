"""Colours of stages, groups, scores and pages; each colour is defined here once, or in palettes.

Stage colours get lighter from early to late. On a light page they lead from navy over blue and mauve to orange, with a
contrast of 3 : 1 at least. They are equally spaced for the reader who sees the smallest difference, of those with
normal vision, protanopia and deuteranopia: neighbours of six differ by 18 units of CIE 1976 Lab, those of plasma by 9.
A dark page uses the lighter part of plasma. The untrained stage is a neutral grey, because it is the baseline and not a
step of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import xarray as xr
from bokeh.models import InlineStyleSheet
from bokeh.palettes import Plasma256, interp_palette

from stratalens.analyses.data.training_order import group_names, is_ordered, result_order
from stratalens.analyses.plots.palettes import QUALITATIVE, QUALITATIVE_DARK, qualitative_colors

# Colours of the page, by theme.
FOREGROUND = {"light": "#222222", "dark": "#eceef2"}
MUTED = {"light": "#767676", "dark": "#9aa0aa"}
AXIS_LINE = {"light": "#8a8f98", "dark": "#7c828d"}

# Colours of data.
UNTRAINED = "#6f6f6f"
UNTRAINED_DARK = "#a3a3a3"
HIGHLIGHT = "#0b6e4f"
HIGHLIGHT_DARK = "#4fd1a5"
NOT_A_NUMBER = "#c8c8c8"

# fmt: off
LIGHT_RAMP: tuple[str, ...] = tuple(interp_palette((
    "#0a0a3c", "#0e1458", "#121e75", "#162993", "#1a33b1", "#2341d0", "#4e54d4", "#6b5bc7", "#825cb4",
    "#965ea3", "#ab5f92", "#b46281", "#bb656f", "#c1685d", "#c86c4b", "#cf6f37", "#d87420",
), 256))
# fmt: on
DIVERGING: tuple[str, ...] = tuple(
    interp_palette(("#7f3b08", "#e08214", "#fdd8a8", "#f7f7f7", "#cfcbe6", "#8073ac", "#2d004b"), 255)
)
SEQUENTIAL: tuple[str, ...] = tuple(interp_palette(("#f7f7f7", "#cfcbe6", "#8073ac", "#2d004b"), 255))


# The same on a dark page: the neutral colour is that of the page, and both ends are lighter.
DIVERGING_DARK: tuple[str, ...] = tuple(
    interp_palette(("#ffd9a0", "#f0a04b", "#7d5a2c", "#262a32", "#544c8c", "#9a8ee6", "#dcd6ff"), 255)
)
SEQUENTIAL_DARK: tuple[str, ...] = tuple(interp_palette(("#262a32", "#544c8c", "#9a8ee6", "#dcd6ff"), 255))
NOT_A_NUMBER_DARK = "#4a4f59"
PAPER_DARK = "#1a1d23"  # background of figures on a dark page


def heat_palette(diverging: bool, theme: str = "light") -> tuple[str, ...]:
    """Return the palette of a heat map for a light or a dark page.

    >>> heat_palette(True)[127], heat_palette(True, "dark")[127]
    ('#f7f7f7', '#262a32')
    """
    if theme == "dark":
        return DIVERGING_DARK if diverging else SEQUENTIAL_DARK
    return DIVERGING if diverging else SEQUENTIAL


def ramp(n: int, dark: bool = False) -> list[str]:
    """Return `n` colours ordered from early to late, for a light or a dark page.

    >>> ramp(1)
    ['#0a0a3c']
    >>> len(set(ramp(7))), len(set(ramp(7, dark=True)))
    (7, 7)
    """
    table, first, last = (Plasma256, 84, 250) if dark else (LIGHT_RAMP, 0, 255)
    return [table[round(i)] for i in np.linspace(first, last, n)] if n else []


def stage_colors(names: Sequence[str], known: Sequence[str] = (), untrained: Sequence[str] = ()) -> dict[str, str]:
    """Map each name to its colour.

    Args:
        names: stages or groups.
        known: all trained stages in training order. A name among them has the same colour in every
            figure, even in a figure that shows only some of them. Default: `names`.
        untrained: names drawn in grey, because they precede any training.

    Example:
        >>> stage_colors(["s3"], known=["s1", "s2", "s3"]) == {"s3": ramp(3)[2]}
        True
    """
    order = [n for n in dict.fromkeys([*known, *names]) if n not in untrained]
    colors = dict(zip(order, ramp(len(order)), strict=True))
    return {name: UNTRAINED if name in untrained else colors[name] for name in names}


def colors_at(values: np.ndarray, low: float, high: float, palette: tuple[str, ...] = DIVERGING) -> list[str]:
    """Map `values` to a palette that runs from `low` to `high`.

    The colour is grey where a value is not a number.

    >>> colors_at(np.array([0.0, np.nan]), 0.0, 1.0, ("#000000", "#ffffff"))
    ['#000000', '#c8c8c8']
    """
    position = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    index = np.clip(np.rint(np.nan_to_num(position) * (len(palette) - 1)), 0, len(palette) - 1).astype(int)
    return [palette[i] if ok else NOT_A_NUMBER for i, ok in zip(index, np.isfinite(values), strict=True)]


@cache
def text_color_on(color: str) -> str:
    """Return black or white, whichever is easier to read on `color`.

    >>> text_color_on("#2d004b"), text_color_on("#f7f7f7")
    ('#ffffff', '#000000')
    """
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return "#000000" if luminance > 0.179 else "#ffffff"


def text_colors_on(values: np.ndarray, low: float, high: float, palette: tuple[str, ...] = DIVERGING) -> list[str]:
    """Return a readable text colour for every cell of a heat map."""
    return [text_color_on(color) for color in colors_at(values, low, high, palette)]


def group_colors(data: xr.Dataset | xr.DataArray, names: Sequence[str] | None = None) -> dict[str, str]:
    """Map the groups of a result to their colours: an order of colours for an order of groups, else distinct ones.

    Args:
        data: result with groups.
        names: groups to colour; None = all groups of the result.
    """
    all_names = group_names(data)
    names = all_names if names is None else names
    if is_ordered(data):
        trained, untrained = result_order(data)
        return stage_colors(names, trained or all_names, untrained)
    colors = qualitative_colors([*all_names, *names])
    return {name: colors[name] for name in names}


def dark_colors(trained: Sequence[str]) -> dict[str, str]:
    """Map the light-page colours of these stages to dark-page colours."""
    pairs = dict(zip(ramp(len(trained)), ramp(len(trained), dark=True), strict=True))
    return {
        **dict(zip(QUALITATIVE, QUALITATIVE_DARK, strict=True)),
        **pairs,
        UNTRAINED: UNTRAINED_DARK,
        HIGHLIGHT: HIGHLIGHT_DARK,
        MUTED["light"]: MUTED["dark"],
    }


def theme_colors(colors: Sequence[str], trained: Sequence[str], theme: str) -> list[str]:
    """Convert light-page colours to those of a page with `theme`.

    >>> theme_colors(["#6f6f6f"], ["s1", "s2"], "dark"), theme_colors(["#6f6f6f"], ["s1", "s2"], "light")
    (['#a3a3a3'], ['#6f6f6f'])
    """
    if theme != "dark":
        return list(colors)
    dark = dark_colors(trained)
    return [dark.get(c, c) for c in colors]


def style_axes(figure: Any, theme: str) -> None:
    """Colour the axes, the grid and the toolbar of a Bokeh figure for `theme`."""
    for axis in figure.axis:
        axis.major_label_text_color = axis.axis_label_text_color = FOREGROUND[theme]
        axis.axis_line_color = axis.major_tick_line_color = AXIS_LINE[theme]
    figure.grid.grid_line_color = AXIS_LINE[theme]
    # Bokeh draws the button for hidden tools in a grey with too little contrast.
    css = f".bk-tool-overflow.bk-tool-overflow {{ color: {FOREGROUND[theme]}; }}"
    figure.toolbar.stylesheets = [InlineStyleSheet(css=css)]


def _darken_cells(figure: Any, renderer: Any, mapper: Any) -> None:
    """Give the cells of a heat map the palette of the dark page, and their labels a readable colour."""
    mapper.palette = list(heat_palette(tuple(mapper.palette) == DIVERGING, "dark"))
    mapper.nan_color = NOT_A_NUMBER_DARK
    renderer.glyph.line_color = PAPER_DARK
    values = np.asarray([np.nan if v is None else v for v in renderer.data_source.data["value"]], dtype=float)
    colors = text_colors_on(values, mapper.low, mapper.high, tuple(mapper.palette))
    for label in figure.center:
        data = label.source.data if hasattr(label, "source") else {}
        if len(data.get("text_color", ())) == len(colors):
            data["text_color"] = colors


def apply_theme(figure: Any, trained: Sequence[str], theme: str) -> None:
    """Recolour a Bokeh figure that was drawn for the light page."""
    style_axes(figure, theme)
    if theme != "dark":
        return
    dark = {FOREGROUND["light"]: FOREGROUND["dark"], MUTED["light"]: MUTED["dark"], **dark_colors(trained)}
    for renderer in figure.renderers:
        data = renderer.data_source.data
        if "color" in data:
            data["color"] = theme_colors(data["color"], trained, theme)
        for name in ("fill_color", "line_color"):
            value = getattr(renderer.glyph, name, None)
            if isinstance(value, str):
                setattr(renderer.glyph, name, dark.get(value, value))
            elif (mapper := getattr(value, "transform", None)) is not None:
                _darken_cells(figure, renderer, mapper)
    for label in figure.center:
        if getattr(label, "text_color", None) == FOREGROUND["light"]:
            label.text_color = FOREGROUND["dark"]
