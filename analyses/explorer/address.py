"""State of the page in its address: a reload or a shared link shows the same view, search and selection."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import panel as pn

from stratalens.analyses.explorer.data import DIMS, ViewState
from stratalens.analyses.plots.spec import plain_text

CHOICES = ("axes", "x", "y", "find", "rows")
MAX_ROWS_TEXT = 4000  # characters of selected rows in an address; servers and proxies refuse long ones


def requested_state() -> dict[str, str]:
    """Return the state that the address of the page asks for: its known keys, as text."""
    sent = pn.state.session_args
    texts = {name: values[0].decode("utf-8", "replace") for name, values in sent.items() if values}
    return {name: text for name, text in texts.items() if name in ("site", "by", *DIMS, *CHOICES)}


def rows_text(rows: npt.NDArray[np.int64], count: int) -> str:
    """Return selected rows as text for the address; empty where it would be too long.

    The text is the number of rows of the store and a compressed bit for each of them. 4,000 characters hold any
    selection from 20,000 rows, and far more rows where the selected ones are neighbours.

    Args:
        rows: int64 array of shape (n,), selected rows.
        count: number of rows of the store.

    Example:
        >>> rows_of_text(rows_text(np.array([3, 70]), 100_000), 100_000).tolist()
        [3, 70]
    """
    if not len(rows):
        return ""
    bits = np.zeros(count, dtype=bool)
    bits[rows] = True
    packed = zlib.compress(np.packbits(bits).tobytes(), 9)
    text = f"{count}.{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"
    return text if len(text) <= MAX_ROWS_TEXT else ""


def rows_of_text(text: str, count: int) -> npt.NDArray[np.int64]:
    """Return the rows of `rows_text`; none of a damaged text, or of a store with another number of rows.

    Args:
        text: text of an address.
        count: number of rows of the store.
    """
    nothing = np.empty(0, dtype=np.int64)
    number, _, packed = text.partition(".")
    if number != str(count):
        return nothing
    length, reader = (count + 7) // 8, zlib.decompressobj()
    try:
        bits = reader.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)), length + 1)
    except (ValueError, binascii.Error, zlib.error):
        return nothing
    if not reader.eof or len(bits) != length:
        return nothing
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count)).astype(np.int64)


def state_of(view: ViewState, searched: str = "", rows: str = "") -> dict[str, str]:
    """Return the state of a view, and of a search or selection of rows, as text.

    Args:
        view: state of the widgets.
        searched: text whose search selected the rows.
        rows: result of `rows_text`, of rows that no search selected.

    Example:
        >>> state_of(ViewState("resid_post", "habitat", "s1", 3, "last"))
        {'site': 'resid_post', 'by': 'habitat', 'stage': 's1', 'layer': '3', 'token': 'last'}
    """
    values = {"site": view.site, "by": view.by, "stage": view.stage, "layer": view.layer, "token": view.token}
    state = {name: plain_text(value, 200) for name, value in values.items() if value is not None}
    if view.axes != "groups":
        state |= {"axes": view.axes} | {name: text for name, text in (("x", view.x), ("y", view.y)) if text}
    if searched:
        return state | {"find": plain_text(searched, 200)}
    return state | ({"rows": rows} if rows else {})


def show_in_address(location: Any, state: Mapping[str, str]) -> None:
    """Put the state into the address of the page.

    Args:
        location: Panel's location of the page; None outside of a served page, where nothing happens.
        state: result of `state_of`.
    """
    if location is not None:
        location.search = f"?{urlencode(state)}"
