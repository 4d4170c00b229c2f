"""What a figure is before it is drawn: marks, axes, sliders and, for each place of the sliders, tables of numbers.

A `FigureSpec` can be tested without drawing. `hv_backend.py` turns it into a
HoloViews object, `embed.py` into a standalone page whose sliders need no
running Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError, suggest

SliderValues = dict[str, Hashable]


Table = dict[str, Any]


Kind = Literal["points", "segments", "cells", "labels"]


SLIDER_DIMS = ("stage", "layer", "token")


_MATH = re.compile(r"\$(?=\$)|\\(?=[(\[])")


@dataclass(frozen=True)
class Mark:
    """One layer of a figure; its table has the columns of its kind.

    points: x, y, color (+ hover columns); segments: x0, y0, x1, y1, color;
    cells: x0, y0, x1, y1, value (+ hover columns); labels: x, y, text, ink.
    `color` is a column of hex colours; a mark without that column uses `role`:
    "ink" (text and axes), "quiet" (grey).
    """

    name: str
    kind: Kind
    hover: Mapping[str, str] = field(default_factory=dict)
    role: Literal["ink", "quiet", "data"] = "data"
    size: float = 9
    width: float = 1.5
    alpha: float = 1.0
    dash: str = "solid"
    offset: float = 0.0
    align: Literal["center", "left"] = "center"


@dataclass(frozen=True)
class Axis:
    """Label with its unit, and named ticks where positions stand for names."""

    label: str
    ticks: Sequence[tuple[float, str]] | None = None
    rotate: bool = False
    log: bool = False


@dataclass(frozen=True)
class FigureSpec:
    """A figure of one question; `tables(place)` gives the numbers that are shown at a place of the sliders."""

    name: str
    title: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    tables: Callable[[SliderValues], Mapping[str, Table]]
    limits: Callable[[SliderValues], tuple[float, float, float, float]]
    sliders: Mapping[str, Sequence[Hashable]] = field(default_factory=dict)
    fixed: Mapping[str, Hashable] = field(default_factory=dict)
    site: str = ""
    clim: tuple[float, float] | None = None
    palette: Sequence[str] = ()
    colorbar: str = ""
    height: int = 380
    legend: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    start: Mapping[str, Hashable] = field(default_factory=dict)

    def places(self) -> list[SliderValues]:
        """All places of the sliders, in the order of their values."""
        return [dict(zip(self.sliders, values, strict=True)) for values in product(*self.sliders.values())]

    def default(self) -> SliderValues:
        """Where the sliders stand at first: at `start`, else the last stage, the deepest layer, the token "last"."""
        return {
            dim: self.start.get(dim, "last" if "last" in values else values[-1]) for dim, values in self.sliders.items()
        }

    def heading(self, place: SliderValues) -> str:
        """Title that always says site, stage, layer and token as far as the result has them."""
        where = {**self.fixed, **place}
        parts = [self.site] if self.site else []
        parts += [f"{dim} {plain(where[dim])}" for dim in (*SLIDER_DIMS, "pair") if dim in where]
        return f"{self.title} ({', '.join(parts)})" if parts else self.title


def message_spec(name: str, title: str, message: str, data: xr.Dataset | xr.DataArray | None = None) -> FigureSpec:
    """Build a figure that says in words why there is nothing to draw."""
    words = message.split()
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > 52:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    table = {
        "x": np.full(len(lines), 0.5),
        "y": 0.5 + 0.1 * ((len(lines) - 1) / 2 - np.arange(len(lines))),
        "text": lines,
    }
    return FigureSpec(
        name=name,
        title=title,
        x=Axis("", ticks=[]),
        y=Axis("", ticks=[]),
        marks=[Mark("message", "labels", role="ink")],
        tables=lambda place: {"message": table},
        limits=lambda place: (0, 1, 0, 1),
        site=site_of(data) if data is not None else "",
        height=180,
        message=message,
    )


def plain(value: object, limit: int = 60) -> str:
    """Text of a name as it may stand in a figure: no control characters, no TeX delimiters, not endless.

    Bokeh would fetch a TeX renderer for `$$...$$`; a zero-width space keeps it text.

    >>> plain("s1"), plain("a" * 80, 10)
    ('s1', 'aaaaaaaaa…')
    """
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = _MATH.sub(lambda found: found.group() + "\u200b", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def site_of(data: xr.Dataset | xr.DataArray) -> str:
    """Site that a result is about, from its attributes."""
    return plain(data.attrs.get("site", ""))


def values_of(data: xr.Dataset | xr.DataArray, dim: str) -> list[Hashable]:
    """Values along a dim as plain Python objects: names as str, layers as int.

    Stages come in training order whatever their order in the data.
    """
    if dim not in data.coords:
        return list(range(data.sizes[dim])) if dim in data.dims else []
    values = [v.item() if isinstance(v, np.generic) else v for v in np.atleast_1d(data[dim].values)]
    if dim == "stage" and "stage_order" in data.coords and data["stage_order"].ndim:
        return [values[i] for i in np.argsort(data["stage_order"].values, kind="stable")]
    return values


def split_dims(
    data: xr.Dataset | xr.DataArray, shown: Sequence[str], extra: Sequence[str] = ()
) -> tuple[dict[str, list[Hashable]], SliderValues]:
    """Return (sliders, fixed): dims that are left to choose, and those with one value only.

    `shown` dims are on the axes; scalar coordinates left by `.sel` are fixed.
    """
    sliders: dict[str, list[Hashable]] = {}
    fixed: SliderValues = {}
    for dim in (*SLIDER_DIMS, *extra):
        if dim in shown:
            continue
        values = values_of(data, dim)
        if dim in data.dims and len(values) > 1:
            sliders[dim] = values
        elif values:
            fixed[dim] = values[0]
    return sliders, fixed


def lookup(data: xr.DataArray, shown: Sequence[str] = ()) -> Callable[[Mapping[str, Hashable]], np.ndarray]:
    """Return a function that gives the numbers at a place, as float64 with the dims `shown` in that order.

    Args:
        data: any result; dims it does not have are ignored in the place, dims of size one need not be named.
        shown: dims of what is returned.

    The function raises InputError for a value that the data does not have. It indexes one NumPy
    array: a figure has hundreds of places, and labelled selection costs a millisecond each.
    """
    left = [str(d) for d in data.dims if d not in shown]
    values = np.asarray(data.transpose(*left, *shown).values, dtype=float)
    indices = {dim: {v: i for i, v in enumerate(_plain_values(data, dim))} for dim in left}

    def numbers(place: Mapping[str, Hashable]) -> np.ndarray:
        key = []
        for dim in left:
            known = indices[dim]
            if dim not in place and len(known) != 1:
                raise InputError(f"say which {dim}; valid: {', '.join(map(str, known))}")
            value = place.get(dim, next(iter(known), None))
            if value not in known:
                raise InputError(f"no {dim} {value!r} in this result; {suggest(str(value), map(str, known))}")
            key.append(known[value])
        found: np.ndarray = values[tuple(key)]
        return found

    return numbers


def _plain_values(data: xr.DataArray, dim: str) -> list[Hashable]:
    values = data[dim].values if dim in data.coords else np.arange(data.sizes[dim])
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def padded(low: float, high: float, share: float = 0.08) -> tuple[float, float]:
    """Axis limits with a little air; a single value gets some too."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return (0.0, 1.0)
    span = (high - low) or max(abs(high), 1.0) * 0.2
    return (low - share * span, high + share * span)
