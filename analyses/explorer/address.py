"""State of the page in its address: a reload or a shared link shows the same view and search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import panel as pn

from stratalens.analyses.explorer.data import DIMS, ViewState
from stratalens.analyses.plots.spec import plain_text

CHOICES = ("axes", "x", "y", "find")


def requested_state() -> dict[str, str]:
    """Return the state that the address of the page asks for: its known keys, as text."""
    sent = pn.state.session_args
    texts = {name: values[0].decode("utf-8", "replace") for name, values in sent.items() if values}
    return {name: text for name, text in texts.items() if name in ("site", "by", *DIMS, *CHOICES)}


def state_of(view: ViewState, searched: str = "") -> dict[str, str]:
    """Return the state of a view, and of a search of rows, as text.

    Example:
        >>> state_of(ViewState("resid_post", "habitat", "s1", 3, "last"))
        {'site': 'resid_post', 'by': 'habitat', 'stage': 's1', 'layer': '3', 'token': 'last'}
    """
    values = {"site": view.site, "by": view.by, "stage": view.stage, "layer": view.layer, "token": view.token}
    state = {name: plain_text(value, 200) for name, value in values.items() if value is not None}
    if view.axes != "groups":
        state |= {"axes": view.axes} | {name: text for name, text in (("x", view.x), ("y", view.y)) if text}
    return state | ({"find": plain_text(searched, 200)} if searched else {})


def show_in_address(location: Any, state: Mapping[str, str]) -> None:
    """Put the state into the address of the page.

    Args:
        location: Panel's location of the page; None outside of a served page, where nothing happens.
        state: result of `state_of`.
    """
    if location is not None:
        location.search = f"?{urlencode(state)}"
