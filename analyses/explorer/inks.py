"""Colours of figures on the light and on the dark page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratalens.analyses.plots.palette import dark_twins

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
