"""Colours: one per training stage everywhere, ordered by training; diverging maps for scores. No drawing.

Stage colours are samples of plasma, which is perceptually ordered and safe for
colour-blind readers; only its darker two thirds are used on a light page (at
least 2.9 : 1 against white), and its lighter part on a dark one. The untrained
stage, where there is one, is a neutral grey: it is the baseline, not a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from bokeh.palettes import Plasma256, interp_palette

UNTRAINED = "#6f6f6f"


UNTRAINED_DARK = "#a3a3a3"


HIGHLIGHT = "#0b6e4f"


HIGHLIGHT_DARK = "#4fd1a5"


NEUTRAL = "#8a8a8a"


DIVERGING: tuple[str, ...] = tuple(
    interp_palette(("#7f3b08", "#e08214", "#fdd8a8", "#f7f7f7", "#cfcbe6", "#8073ac", "#2d004b"), 255)
)


SEQUENTIAL: tuple[str, ...] = tuple(interp_palette(("#f7f7f7", "#cfcbe6", "#8073ac", "#2d004b"), 255))


def ramp(n: int, dark: bool = False) -> list[str]:
    """Return `n` colours ordered from early to late, for a light (default) or a dark page.

    >>> ramp(1)
    ['#0C0786']
    >>> len(set(ramp(7))), len(set(ramp(7, dark=True)))
    (7, 7)
    """
    first, last = (84, 250) if dark else (0, 172)
    return [Plasma256[round(i)] for i in np.linspace(first, last, n)] if n else []


def stage_colors(names: Sequence[str], known: Sequence[str] = (), untrained: Sequence[str] = ()) -> dict[str, str]:
    """Map each name to its colour.

    Args:
        names: stages or groups to be coloured.
        known: all trained stages in training order; a name among them gets the same
            colour in every figure, however few of them a figure shows. Default: `names`.
        untrained: names drawn in grey, because they come before any training.

    >>> stage_colors(["s3"], known=["s1", "s2", "s3"]) == {"s3": ramp(3)[2]}
    True
    """
    order = [n for n in dict.fromkeys([*known, *names]) if n not in untrained]
    colors = dict(zip(order, ramp(len(order)), strict=True))
    return {name: UNTRAINED if name in untrained else colors[name] for name in names}


@cache
def ink_on(color: str) -> str:
    """Black or white, whichever is easier to read on `color`.

    >>> ink_on("#2d004b"), ink_on("#f7f7f7")
    ('#ffffff', '#000000')
    """
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return "#000000" if luminance > 0.179 else "#ffffff"


def inks_on(values: np.ndarray, low: float, high: float, palette: tuple[str, ...] = DIVERGING) -> list[str]:
    """Readable ink for the text in every cell of a heat map whose colours run from `low` to `high`."""
    return [ink_on(color) for color in colors_at(values, low, high, palette)]


def colors_at(values: np.ndarray, low: float, high: float, palette: tuple[str, ...] = DIVERGING) -> list[str]:
    """Colours of `values` on a palette that runs from `low` to `high` (grey where not a number).

    >>> colors_at(np.array([0.0, np.nan]), 0.0, 1.0, ("#000000", "#ffffff"))
    ['#000000', '#c8c8c8']
    """
    position = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    index = np.clip(np.rint(np.nan_to_num(position) * (len(palette) - 1)), 0, len(palette) - 1).astype(int)
    return [palette[i] if ok else "#c8c8c8" for i, ok in zip(index, np.isfinite(values), strict=True)]


def dark_twins(trained: Sequence[str]) -> dict[str, str]:
    """Light-page colour to dark-page colour, for every colour a figure about these stages may use."""
    pairs = dict(zip(ramp(len(trained)), ramp(len(trained), dark=True), strict=True))
    return {**pairs, UNTRAINED: UNTRAINED_DARK, HIGHLIGHT: HIGHLIGHT_DARK, NEUTRAL: "#8f8f8f"}


INK = {"light": "#222222", "dark": "#eceef2"}


QUIET = {"light": "#767676", "dark": "#9aa0aa"}


LINE = {"light": "#8a8f98", "dark": "#7c828d"}


def tint(colors: Sequence[str], trained: Sequence[str], theme: str) -> list[str]:
    """Colours of the light page as they are on the page of `theme`.

    >>> tint(["#6f6f6f"], ["s1", "s2"], "dark"), tint(["#6f6f6f"], ["s1", "s2"], "light")
    (['#a3a3a3'], ['#6f6f6f'])
    """
    if theme != "dark":
        return list(colors)
    twins = dark_twins(trained)
    return [twins.get(c, c) for c in colors]


def paint(figure: Any, trained: Sequence[str], theme: str) -> None:
    """Turn a figure of `plots.embed.bokeh_figure`, drawn for the light page, into one for `theme`."""
    for axis in figure.axis:
        axis.major_label_text_color = axis.axis_label_text_color = INK[theme]
        axis.axis_line_color = axis.major_tick_line_color = LINE[theme]
    figure.grid.grid_line_color = LINE[theme]
    if theme != "dark":
        return
    flat = {INK["light"]: INK["dark"], QUIET["light"]: QUIET["dark"], **dark_twins(trained)}
    for renderer in figure.renderers:
        _recolour(renderer.data_source, trained)
        for name in ("fill_color", "line_color"):
            value = getattr(renderer.glyph, name, None)
            if isinstance(value, str):
                setattr(renderer.glyph, name, flat.get(value, value))
    for label in figure.center:
        if getattr(label, "text_color", None) == INK["light"]:
            label.text_color = INK["dark"]


def _recolour(source: Any, trained: Sequence[str]) -> None:
    if "color" in source.data:
        source.data["color"] = tint(source.data["color"], trained, "dark")
