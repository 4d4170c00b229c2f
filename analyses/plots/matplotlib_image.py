"""Images of HoloViews objects by Matplotlib, without making it the current backend of HoloViews."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import holoviews as hv

from stratalens.store.errors import InputError

_SETTINGS: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "font.size": 9}
_lock = threading.Lock()  # Matplotlib's settings belong to the process


def write_image(draw: Callable[[], Any], target: Path, dpi: int) -> None:
    """Write an image; several threads may do so, and Matplotlib draws one figure after another.

    Args:
        draw: returns the HoloViews object. It is called once Matplotlib's backend is loaded, because the options of an
            object are those of the loaded backends.
        target: `.pdf`, `.svg` or `.png` file.
        dpi: resolution of a PNG.

    Raises:
        InputError: Matplotlib is not installed.
    """
    with _lock:
        _load_matplotlib()
        import matplotlib as mpl

        obj = draw()
        with mpl.rc_context(_SETTINGS):
            hv.save(obj, target, backend="matplotlib", fmt=target.suffix.lower()[1:], dpi=dpi)


def _load_matplotlib() -> None:
    """Load HoloViews' Matplotlib backend without making it the current one."""
    backend = hv.Store.current_backend
    try:
        import holoviews.plotting.mpl  # noqa: F401
    except ImportError as error:
        raise InputError(
            "save: PDF, SVG and PNG need Matplotlib. Install it: pip install 'stratalens[figures]'"
        ) from error
    finally:
        if backend != hv.Store.current_backend:
            hv.Store.set_current_backend(backend)
