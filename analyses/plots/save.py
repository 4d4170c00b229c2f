"""Writes one figure to a file: PDF, SVG or PNG for papers, or a standalone HTML page with working sliders."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import holoviews as hv

from stratalens.analyses.plots.render_holoviews import frame
from stratalens.analyses.plots.spec import FigureSpec
from stratalens.store.errors import InputError

DRAWN = (".pdf", ".svg", ".png")


def save(
    obj: Any, path: str | os.PathLike[str], *, place: Mapping[str, Hashable] | None = None, dpi: int = 200
) -> Path:
    """Save a figure.

    Args:
        obj: what a function of `stratalens.analyses.plots` returned (other HoloViews objects are
            passed on to `holoviews.save`).
        path: `.pdf` and `.svg` (vector, fonts embedded), `.png`, or `.html` (all places of the sliders,
            no Python and no network needed). Its folder is made where there is none.
        place: for PDF, SVG and PNG of a figure with sliders: which place, e.g. {"stage": "s6", "layer": 12};
            what is not named is at its last value.
        dpi: resolution of PNG.

    Returns:
        The path written.

    Raises:
        InputError: unknown suffix, no such place, or Matplotlib is not installed.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (*DRAWN, ".html"):
        raise InputError(f"save: unknown suffix {target.suffix!r} of {target}; valid: {', '.join(DRAWN)}, .html")
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = getattr(obj, "stratalens_picture", None)
    if suffix == ".html":
        if isinstance(picture, FigureSpec):
            from stratalens.analyses.plots.html_page import figure_page

            target.write_text(figure_page(picture), encoding="utf-8")
        else:
            hv.save(obj, target, backend="bokeh", resources="inline")
        return target
    with _matplotlib() as rc:
        if isinstance(picture, FigureSpec):
            obj = frame(picture, _whole(picture, place or {}))
        elif isinstance(obj, hv.HoloMap):
            obj = obj.last
        import matplotlib as mpl

        with mpl.rc_context(rc):
            hv.save(obj, target, backend="matplotlib", fmt=suffix[1:], dpi=dpi)
    return target


def _whole(picture: FigureSpec, place: Mapping[str, Hashable]) -> dict[str, Hashable]:
    whole = picture.default()
    for dim, value in place.items():
        if dim not in whole:
            raise InputError(f"save: this figure has no slider {dim!r}; valid: {', '.join(whole) or 'none'}")
        if value not in picture.sliders[dim]:
            raise InputError(f"save: no {dim} {value!r}; valid: {', '.join(map(str, picture.sliders[dim]))}")
        whole[dim] = value
    return whole


class _matplotlib:  # noqa: N801
    """Loads HoloViews' Matplotlib backend and leaves the current backend as it was."""

    def __enter__(self) -> Any:
        try:
            import holoviews.plotting.mpl  # noqa: F401
        except ImportError as error:
            raise InputError("save: PDF, SVG and PNG need Matplotlib: pip install matplotlib") from error
        self.before = hv.Store.current_backend
        hv.Store.set_current_backend("matplotlib")
        return {"pdf.fonttype": 42, "svg.fonttype": "none", "font.size": 9}

    def __exit__(self, *_: object) -> None:
        hv.Store.set_current_backend(self.before)
