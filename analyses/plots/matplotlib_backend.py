"""HoloViews' Matplotlib backend: its settings, and its loading without making it the current one."""

from __future__ import annotations

import threading
from typing import Any

import holoviews as hv

from stratalens.store.errors import InputError

MATPLOTLIB_SETTINGS: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "font.size": 9}
MATPLOTLIB_LOCK = threading.Lock()  # Matplotlib's settings belong to the process


def load_matplotlib() -> None:
    """Load HoloViews' Matplotlib backend without making it the current one.

    Raises:
        InputError: Matplotlib is not installed.
    """
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
