"""Figures as files: PDF, SVG or PNG for papers, or a standalone HTML page with working sliders."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import holoviews as hv

from stratalens.analyses.plots.figure_style import (
    MARGIN,
    FigureOptions,
    style_matplotlib,
    styled_page,
    styled_spec,
)
from stratalens.analyses.plots.matplotlib_backend import MATPLOTLIB_LOCK, MATPLOTLIB_SETTINGS, load_matplotlib
from stratalens.analyses.plots.render_holoviews import applied_options, draw_overlay
from stratalens.analyses.plots.spec import FigureSpec, SliderValues
from stratalens.store.errors import InputError
from stratalens.store.files import user_path

IMAGE_SUFFIXES = (".pdf", ".svg", ".png")


def save(
    obj: Any,
    path: str | os.PathLike[str],
    title: str | None = None,
    fontsize: float | None = None,
    width: float | None = None,
    height: float | None = None,
    legend: bool | str | None = None,
    *,
    place: Mapping[str, Hashable] | None = None,
    dpi: int = 200,
) -> Path:
    """Save a figure.

    HoloViews' current backend stays as it is. Several threads may save at the same time; Matplotlib draws one
    figure after another.

    Args:
        obj: result of a function of `stratalens.analyses.plots`. Other HoloViews objects go to `holoviews.save`.
        path: `.pdf` and `.svg` (vector, fonts embedded), `.png`, or `.html` (all slider values, needs neither Python
            nor a network). A missing folder is created.
        title: title instead of the figure's own, which names site, stage, layer and token; "" for none. The page of a
            figure with sliders adds their values.
        fontsize: size of the axis labels in points. Title, ticks, legend and labels in the figure change with it.
        width: inches of a PDF, SVG or PNG, all text included; pixels of a page.
        height: the same.
        legend: False for none, "right" or "below" the plot of a PDF, SVG or PNG; None and True leave it where it is.
        place: slider values of a PDF, SVG or PNG, for example {"stage": "s6", "layer": 12}. Sliders that are not
            named stay at their initial value.
        dpi: resolution of a PNG.

    Returns:
        The path written.

    Raises:
        InputError: the suffix, a slider value, a size or the legend is not valid, `.opts(...)` changed the figure, or
            Matplotlib is not installed.

    Example:
        >>> figure = sl.plots.layer_sweep(probes)  # doctest: +SKIP
        >>> sl.plots.save(figure, "sweep.pdf", title="Habitat", fontsize=9, width=3.3)  # doctest: +SKIP
        PosixPath('sweep.pdf')
    """
    target = user_path(path)
    suffix = target.suffix.lower()
    if suffix not in (*IMAGE_SUFFIXES, ".html"):
        valid = ", ".join((*IMAGE_SUFFIXES, ".html"))
        raise InputError(f"save: unknown suffix {target.suffix!r} of {target}. Valid: {valid}.")
    style = FigureOptions(title, fontsize, width, height, legend)
    style.check(is_page=suffix == ".html")
    spec = getattr(obj, "stratalens_spec", None)
    if isinstance(spec, FigureSpec) and applied_options(obj) != obj.stratalens_options:
        raise InputError(
            "save: .opts(...) changed this figure, and a file would not show it. Pass title=, fontsize=, width=, "
            "height= or legend= to save. For other options, make the figure again and change one frame of it: "
            "figure[slider values].opts(..., backend='matplotlib')"
        )
    if place and not isinstance(spec, FigureSpec):
        obj = _at_place(obj, place)
    if suffix != ".html":
        with MATPLOTLIB_LOCK:
            _save_image(obj, spec, target, place or {}, dpi, style)
    elif isinstance(spec, FigureSpec):
        from stratalens.analyses.plots.html_page import figure_page

        page = styled_page(figure_page(styled_spec(spec, style)), style)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
    elif not style.is_default:
        raise InputError(
            "save: title, fontsize, width, height and legend of a page need a figure of stratalens.analyses.plots, and "
            f"this is {type(obj).__name__} that was changed. Save the figure itself, or use .opts(...)"
        )
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        hv.save(obj, target, backend="bokeh", resources="inline")
    return target


def _at_place(obj: Any, place: Mapping[str, Hashable]) -> Any:
    """Select a frame of a HoloMap that was changed, and so does not remember its description."""
    sliders = [str(dim) for dim in getattr(obj, "kdims", [])] if isinstance(obj, hv.HoloMap) else []
    for dim in place:
        if dim not in sliders:
            raise InputError(f"save: this figure has no slider {dim!r}. Valid: {', '.join(sliders) or 'none'}.")
    return obj.select(**place)


def _save_image(
    obj: Any, spec: Any, target: Path, place: Mapping[str, Hashable], dpi: int, style: FigureOptions
) -> None:
    load_matplotlib()
    import matplotlib as mpl

    if isinstance(spec, FigureSpec):
        obj = draw_overlay(spec, _all_values(spec, place))
    elif isinstance(obj, hv.HoloMap):
        obj = obj.last
    target.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(MATPLOTLIB_SETTINGS):
        if not style.is_default:
            figure = hv.render(obj, backend="matplotlib")
            style_matplotlib(figure, style)
            figure.savefig(target, dpi=dpi, bbox_inches="tight", pad_inches=MARGIN)
            return
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
