"""A static image with the live figure of a notebook cell, for pages that run no scripts.

GitHub, nbviewer and an exported notebook without a network show nothing of a Bokeh figure. The image shows the initial
slider values there. Where the scripts run, the figure replaces it.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any
from uuid import uuid4

import holoviews as hv

from stratalens.analyses.plots.matplotlib_backend import MATPLOTLIB_LOCK, MATPLOTLIB_SETTINGS, load_matplotlib
from stratalens.store.errors import InputError

DPI = 90

# The image goes when the figure of the same cell has drawn itself; until then, and without Bokeh, it stays.
_HIDE = """(function () {
  let tries = 0;
  const timer = setInterval(function () {
    const image = document.getElementById("%s");
    const kinds = ".bk-Figure, .bk-Canvas, .bk-Column, .bk-Row";
    const drawn = image && image.parentElement && image.parentElement.querySelector(kinds);
    if (drawn) image.remove();
    if (drawn || !image || ++tries > 300) clearInterval(timer);
  }, 200);
})();"""


def attach_image(obj: Any, draw: Callable[[], Any]) -> Any:
    """Let a HoloViews object show a static image where no script runs; without Matplotlib it is unchanged.

    Args:
        obj: the object; its display in a notebook changes.
        draw: returns the frame that the image shows.

    Returns:
        The object.
    """
    display = type(obj)._repr_mimebundle_

    def bundle(self: Any, include: Any = None, exclude: Any = None) -> Any:
        live = display(self, include, exclude)
        data, metadata = live if isinstance(live, tuple) else (live, {})
        if "text/html" not in data:  # no backend is loaded: the cell shows text
            return live
        image = png_of(draw)
        return (with_image(data, image) if image else data), metadata

    obj._repr_mimebundle_ = MethodType(bundle, obj)
    return obj


def with_image(data: dict[str, Any], image: bytes) -> dict[str, Any]:
    """Return the MIME bundle of a cell with an image, also in its HTML.

    Args:
        data: MIME bundle with HTML.
        image: a PNG.

    Example:
        >>> bundle = with_image({"text/html": "<p>live</p>"}, b"png")
        >>> bundle["image/png"], bundle["text/html"].endswith("<p>live</p></div>")
        ('cG5n', True)
    """
    code, name = base64.b64encode(image).decode(), f"stratalens-{uuid4().hex}"
    static = f'<img id="{name}" alt="the figure at its initial slider values" src="data:image/png;base64,{code}">'
    html = f"<div>{static}<script>{_HIDE % name}</script>{data['text/html']}</div>"
    return {**data, "text/html": html, "image/png": code}


def png_of(draw: Callable[[], Any]) -> bytes:
    """Draw a HoloViews object as a PNG; empty without Matplotlib."""
    with MATPLOTLIB_LOCK, tempfile.TemporaryDirectory() as folder:
        try:
            load_matplotlib()
        except InputError:  # Matplotlib is an extra
            return b""
        import matplotlib as mpl

        target = Path(folder) / "figure.png"
        with mpl.rc_context(MATPLOTLIB_SETTINGS):
            hv.save(draw(), target, backend="matplotlib", fmt="png", dpi=DPI)
        return target.read_bytes()
