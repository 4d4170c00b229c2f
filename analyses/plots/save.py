"""Figures as files: PDF, SVG or PNG for papers, or a standalone HTML page with working sliders."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import holoviews as hv

from stratalens.analyses.plots.matplotlib_backend import MATPLOTLIB_LOCK, MATPLOTLIB_SETTINGS, load_matplotlib
from stratalens.analyses.plots.render_holoviews import draw_overlay
from stratalens.analyses.plots.spec import FigureSpec, SliderValues
from stratalens.store.errors import InputError
from stratalens.store.files import user_path

IMAGE_SUFFIXES = (".pdf", ".svg", ".png")


def save(
    obj: Any, path: str | os.PathLike[str], *, place: Mapping[str, Hashable] | None = None, dpi: int = 200
) -> Path:
    """Save a figure.

    HoloViews' current backend stays as it is. Several threads may save at the same time; Matplotlib draws one
    figure after another.

    Args:
        obj: result of a function of `stratalens.analyses.plots`. Other HoloViews objects go to `holoviews.save`.
        path: `.pdf` and `.svg` (vector, fonts embedded), `.png`, or `.html` (all slider values, needs neither Python
            nor a network). A missing folder is created.
        place: slider values of a PDF, SVG or PNG, for example {"stage": "s6", "layer": 12}. Sliders that are not
            named stay at their initial value.
        dpi: resolution of a PNG.

    Returns:
        The path written.

    Raises:
        InputError: the suffix or a slider value is unknown, or Matplotlib is not installed.
    """
    target = user_path(path)
    suffix = target.suffix.lower()
    if suffix not in (*IMAGE_SUFFIXES, ".html"):
        valid = ", ".join((*IMAGE_SUFFIXES, ".html"))
        raise InputError(f"save: unknown suffix {target.suffix!r} of {target}. Valid: {valid}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    spec = getattr(obj, "stratalens_spec", None)
    if suffix != ".html":
        with MATPLOTLIB_LOCK:
            _save_image(obj, spec, target, place or {}, dpi)
    elif isinstance(spec, FigureSpec):
        from stratalens.analyses.plots.html_page import figure_page

        target.write_text(figure_page(spec), encoding="utf-8")
    else:
        hv.save(obj, target, backend="bokeh", resources="inline")
    return target


def _save_image(obj: Any, spec: Any, target: Path, place: Mapping[str, Hashable], dpi: int) -> None:
    load_matplotlib()
    import matplotlib as mpl

    if isinstance(spec, FigureSpec):
        obj = draw_overlay(spec, _all_values(spec, place))
    elif isinstance(obj, hv.HoloMap):
        obj = obj.last
    with mpl.rc_context(MATPLOTLIB_SETTINGS):
        hv.save(obj, target, backend="matplotlib", fmt=target.suffix.lower()[1:], dpi=dpi)


def _all_values(spec: FigureSpec, place: Mapping[str, Hashable]) -> SliderValues:
    """Add the initial value of every slider that `place` does not name."""
    slider_values = spec.default_values()
    for dim, value in place.items():
        if dim not in slider_values:
            valid = ", ".join(slider_values) or "none"
            raise InputError(f"save: this figure has no slider {dim!r}. Valid: {valid}.")
        if value not in spec.sliders[dim]:
            valid = ", ".join(map(str, spec.sliders[dim]))
            raise InputError(f"save: no {dim} {value!r}. Valid: {valid}.")
        slider_values[dim] = value
    return slider_values
