"""The live page on a store, drawn by Panel: `stratalens explore STORE`, or `page(ds)` to serve it yourself.

Scripts and styles come from the installed packages; nothing is loaded from a network.

server             serves the page on this machine
app                the page: what the widgets do
widgets            the page's own widgets
scatter            the figure of single rows
selection          caption and files of the selected rows
on_demand          the panel that computes probes and projections
result_cache       their results
background_task    a thread that computes with progress and can be cancelled
data               what the page reads from the store
axes               axes of the scatter by choice, and regions of the group means
address            state of the page in its address
"""

from __future__ import annotations

from typing import Any

__all__ = ["explore", "page"]


def __getattr__(name: str) -> Any:
    # Panel takes a second to import.
    if name == "explore":
        from stratalens.analyses.explorer.server import explore

        return explore
    if name == "page":
        from stratalens.analyses.explorer.app import page

        return page
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
