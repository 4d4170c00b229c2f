"""The live page on a store: `stratalens explore STORE`, or `page(ds)` to serve it yourself. Drawn by Panel, no torch.

What is asked of the store is in source.py, what is computed on demand in job.py and
answers.py; page.py puts figures (scatter.py, figures.py) and widgets (widgets.py)
together, serve.py starts the server. Nothing is loaded from a network: scripts and
styles come from the installed packages.
"""

from __future__ import annotations

from typing import Any

__all__ = ["explore", "page"]


def __getattr__(name: str) -> Any:
    # Panel takes a second to import
    if name == "explore":
        from stratalens.analyses.explorer.server import explore

        return explore
    if name == "page":
        from stratalens.analyses.explorer.app import page

        return page
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
