"""Descriptions of figures that can be tested without drawing.

A `FigureSpec` holds the marks, the axes, the sliders and one table of numbers a mark for every combination of
slider values.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError, suggest

SliderValues = dict[str, Hashable]
Table = dict[str, Any]
Limits = tuple[float, float, float, float]
MarkKind = Literal["points", "segments", "cells", "labels"]

SLIDER_DIMS = ("stage", "layer", "token")

_TEX_DELIMITER = re.compile(r"\$(?=\$)|\\(?=[(\[])")


@dataclass(frozen=True)
class Mark:
    """One layer of a figure.

    The columns of its table depend on the kind:

    - points: x, y, color
    - segments: x0, y0, x1, y1, color
    - cells: x0, y0, x1, y1, value
    - labels: x, y, text, text_color

    Attributes:
        name: name of its table.
        kind: points | segments | cells | labels.
        hover: title of each column that the hover shows.
        role: colour of a mark whose table has no colour column: "foreground" (text and axes) or "muted" (grey).
        size: diameter of points in pixels, font size of labels in points.
        width: line width of segments in pixels.
    """

    name: str
    kind: MarkKind
    hover: Mapping[str, str] = field(default_factory=dict)
    role: Literal["foreground", "muted", "data"] = "data"
    size: float = 9
    width: float = 1.5
    alpha: float = 1.0
    dash: str = "solid"
    align: Literal["center", "left"] = "center"


@dataclass(frozen=True)
class Axis:
    """An axis: its label with the unit, and ticks where positions represent names."""

    label: str
    ticks: Sequence[tuple[float, str]] | None = None
    rotate: bool = False
    log: bool = False


@dataclass(frozen=True)
class FigureSpec:
    """Description of one figure.

    Attributes:
        name: name of the plot function.
        tables: returns the table of every mark for one combination of slider values.
        limits: returns (x0, x1, y0, y1) for one combination of slider values.
        sliders: values of each slider.
        fixed: dims with one value only; the title names them.
        clim: values at the two ends of the palette of a heat map.
        colorbar: label of the colour bar.
        legend: colour of each name.
        message: reason why there is nothing to draw.
        start: initial slider values that differ from the default.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    tables: Callable[[SliderValues], Mapping[str, Table]]
    limits: Callable[[SliderValues], Limits]
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

    def all_slider_values(self) -> list[SliderValues]:
        """Return every combination of slider values, in slider order."""
        return [dict(zip(self.sliders, values, strict=True)) for values in product(*self.sliders.values())]

    def default_values(self) -> SliderValues:
        """Return the initial slider values.

        They are `start`, else the last stage, the deepest layer and the token "last".
        """
        return {
            dim: self.start.get(dim, "last" if "last" in values else values[-1]) for dim, values in self.sliders.items()
        }

    def heading(self, slider_values: SliderValues) -> str:
        """Return the title with the site, stage, layer, token and pair of the figure."""
        shown = {**self.fixed, **slider_values}
        words = [self.site] if self.site else []
        words += [f"{dim} {plain_text(shown[dim])}" for dim in (*SLIDER_DIMS, "pair") if dim in shown]
        return f"{self.title} ({', '.join(words)})" if words else self.title


def message_spec(name: str, title: str, message: str, data: xr.Dataset | xr.DataArray | None = None) -> FigureSpec:
    """Build a figure that says why there is nothing to draw."""
    lines = textwrap.wrap(message, 53)
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
        marks=[Mark("message", "labels", role="foreground")],
        tables=lambda slider_values: {"message": table},
        limits=lambda slider_values: (0, 1, 0, 1),
        site=site_of(data) if data is not None else "",
        height=180,
        message=message,
    )


def plain_text(value: object, limit: int = 60) -> str:
    """Return a name as plain text of at most `limit` characters, without TeX.

    Bokeh would load a TeX renderer from the network for `$$...$$`; a zero-width space prevents that.

    >>> plain_text("s1"), plain_text("a" * 80, 10)
    ('s1', 'aaaaaaaaa…')
    """
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = _TEX_DELIMITER.sub(lambda match: match.group() + "\u200b", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def site_of(data: xr.Dataset | xr.DataArray) -> str:
    """Return the site of a result, from its attributes."""
    return plain_text(data.attrs.get("site", ""))


def _python_values(array: np.ndarray) -> list[Hashable]:
    return [v.item() if isinstance(v, np.generic) else v for v in np.atleast_1d(array)]


def values_of(data: xr.Dataset | xr.DataArray, dim: str) -> list[Hashable]:
    """Return the values along a dim as Python objects: names as str, layers as int.

    Stages are in training order, whatever their order in the data.
    """
    if dim not in data.coords:
        return list(range(data.sizes[dim])) if dim in data.dims else []
    values = _python_values(data[dim].values)
    if dim == "stage" and "stage_order" in data.coords and data["stage_order"].ndim:
        return [values[i] for i in np.argsort(data["stage_order"].values, kind="stable")]
    return values


def split_dims(
    data: xr.Dataset | xr.DataArray, shown: Sequence[str], extra: Sequence[str] = ()
) -> tuple[dict[str, list[Hashable]], SliderValues]:
    """Divide stage, layer, token and `extra` into sliders and fixed dims.

    Args:
        data: any result. Scalar coordinates, which `.sel` leaves behind, are fixed.
        shown: dims on the axes; they are neither sliders nor fixed.
        extra: further dims.

    Returns:
        (values of each slider, value of each dim that has only one).
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
    """Return a function that selects the numbers for one combination of slider values.

    Args:
        data: any result. The function ignores dims that it does not have; dims of size one need no value.
        shown: dims of the numbers, in this order.

    Returns:
        Function from slider values to a float64 array with the dims `shown`. It raises InputError for a value that
        the data does not have. It indexes one NumPy array, because a figure has hundreds of combinations
        and a labelled selection takes a millisecond each.
    """
    slider_dims = [str(d) for d in data.dims if d not in shown]
    array = np.asarray(data.transpose(*slider_dims, *shown).values, dtype=float)
    indices: dict[str, dict[Hashable, int]] = {}
    for dim in slider_dims:
        coordinate = data[dim].values if dim in data.coords else np.arange(data.sizes[dim])
        indices[dim] = {value: i for i, value in enumerate(_python_values(coordinate))}

    def numbers(slider_values: Mapping[str, Hashable]) -> np.ndarray:
        key = []
        for dim in slider_dims:
            known = indices[dim]
            if dim not in slider_values and len(known) != 1:
                raise InputError(f"{dim} is missing. Valid: {', '.join(map(str, known))}.")
            value = slider_values.get(dim, next(iter(known), None))
            if value not in known:
                raise InputError(f"no {dim} {value!r} in this result; {suggest(str(value), map(str, known))}")
            key.append(known[value])
        return np.asarray(array[tuple(key)])

    return numbers


def pad_limits(low: float, high: float, share: float = 0.08) -> tuple[float, float]:
    """Widen axis limits by a share of their span; a single value is widened too."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return (0.0, 1.0)
    span = (high - low) or max(abs(high), 1.0) * 0.2
    return (low - share * span, high + share * span)


def line_segments(x: np.ndarray, y: np.ndarray, colors: list[str]) -> Table:
    """Return the segments of one line a row; x and y have the shape (lines, points)."""
    return {
        "x0": x[:, :-1].ravel(),
        "y0": y[:, :-1].ravel(),
        "x1": x[:, 1:].ravel(),
        "y1": y[:, 1:].ravel(),
        "color": repeat_values(colors, y.shape[1] - 1),
    }


def repeat_values(values: list[str], count: int) -> list[str]:
    """Repeat each value `count` times, in order."""
    return [value for value in values for _ in range(count)]
