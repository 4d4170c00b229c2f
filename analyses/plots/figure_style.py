"""Title, font size, size and legend that a caller chooses for a saved figure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from stratalens.analyses.plots.spec import FigureSpec, plain_text
from stratalens.store.errors import InputError, suggest

LEGENDS = ("right", "below")
BASE_FONT = 8  # points of the axis labels of a Matplotlib figure, unless the caller chooses

_PAGE_FONT = 12  # pixels of the axis labels on a page
_PAGE_FONTS = re.compile(r'(text_font_size":\s*(?:\{[^{}]*?"value":\s*)?")([\d.]+)px"')
_INCHES, _PIXELS, _POINTS = (0.5, 100.0), (100, 10_000), (2, 72)
MARGIN = 0.03  # inches around a figure
_ATTEMPTS = 8


@dataclass(frozen=True)
class FigureOptions:
    """What a caller of `save` chooses; None leaves the default of the figure.

    Attributes:
        title: title, instead of that with site, stage, layer and token.
        fontsize: size of the axis labels in points; all other text changes with it.
        width: inches of a PDF, SVG or PNG; pixels of a page.
        height: the same.
        legend: False for none, "right" or "below" the figure; True leaves it where it is.
    """

    title: str | None = None
    fontsize: float | None = None
    width: float | None = None
    height: float | None = None
    legend: bool | str | None = None

    @property
    def is_default(self) -> bool:
        """Whether the caller chose nothing."""
        return self == FigureOptions()

    def check(self, is_page: bool) -> None:
        """Raise InputError for a value that no figure can have."""
        if self.title is not None and not isinstance(self.title, str):
            raise InputError(f"save: title is {type(self.title).__name__}; give a text, '' for none")
        if self.legend not in (None, True, False, *LEGENDS):
            raise InputError(f"save: legend={self.legend!r}; {suggest(str(self.legend), LEGENDS)}, True, False")
        sizes: list[tuple[str, Any, tuple[float, float], str]]
        unit, limits = ("pixels", _PIXELS) if is_page else ("inches", _INCHES)
        sizes = [("fontsize", self.fontsize, _POINTS, "points")]
        sizes += [("width", self.width, limits, unit), ("height", self.height, limits, unit)]
        for name, value, (low, high), what in sizes:
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(f"save: {name}={value!r}; give {low:g} to {high:g} {what}")


def styled_spec(spec: FigureSpec, style: FigureOptions) -> FigureSpec:
    """Return the figure of a page with the caller's title, height and legend."""
    if style.title is not None:
        spec = replace(spec, title=plain_text(style.title, 300), site="", fixed={})
    if style.height is not None:
        spec = replace(spec, height=round(style.height))
    if style.legend is False:
        spec = replace(spec, legend={})
    return spec


def styled_page(page: str, style: FigureOptions) -> str:
    """Return a page with the caller's width and font size.

    Args:
        page: HTML of one figure.
        style: choices of the caller.
    """
    rules = []
    if style.width is not None:
        rules.append(f"main{{max-width:{style.width:g}px;padding:0}}")
    if style.fontsize is not None:
        scale = style.fontsize * 4 / 3 / _PAGE_FONT
        rules.append(f"body{{font-size:{16 * scale:g}px}}")
        page = _PAGE_FONTS.sub(lambda match: f'{match[1]}{float(match[2]) * scale:g}px"', page)
    return page.replace("</head>", f"<style>{''.join(rules)}</style>\n</head>", 1) if rules else page


def style_matplotlib(figure: Any, style: FigureOptions) -> None:
    """Change a drawn Matplotlib figure: title, sizes of all text, legend, then width and height.

    Args:
        figure: a `matplotlib.figure.Figure`; its first axes are the plot, others are colour bars.
        style: choices of the caller.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # HoloViews leaves a canvas that cannot measure text
    axis = figure.axes[0]
    if style.title is not None:
        for other in figure.axes:
            other.set_title("")
        axis.set_title(style.title)
    _place_legend(axis, style.legend)
    if style.fontsize is not None:
        scale = style.fontsize / BASE_FONT
        for text in _texts(figure):
            text.set_fontsize(text.get_fontsize() * scale)
        for one in figure.axes:
            for ticks in (one.xaxis, one.yaxis):
                size = next((label.get_fontsize() for label in ticks.get_ticklabels()), style.fontsize)
                ticks.set_tick_params(labelsize=size, which="both")
    _fit(figure, style.width, style.height, below=style.legend == "below")


def _texts(figure: Any) -> Iterator[Any]:
    """Yield every text of a figure once, tick labels and legends among them."""
    from matplotlib.text import Text

    seen: set[int] = set()
    for text in figure.findobj(Text):
        if id(text) not in seen:
            seen.add(id(text))
            yield text


def _place_legend(axis: Any, where: bool | str | None) -> None:
    legend = axis.get_legend()
    if legend is None or where is None or where is True:
        return
    if where is False:
        legend.remove()
    elif where == "below":
        names = [text.get_text() for text in legend.get_texts()]
        columns = max(1, min(len(names), 60 // (max(map(len, names), default=1) + 4)))
        size = legend.get_texts()[0].get_fontsize() if names else BASE_FONT
        axis.legend(
            handles=legend.legend_handles,
            labels=names,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            borderaxespad=0.0,
            ncols=columns,
            frameon=False,
            fontsize=size,
        )


def _fit(figure: Any, width: float | None, height: float | None, *, below: bool) -> None:
    """Change the size of the canvas and the shape of the plot until the drawing has the width and height.

    Long axis labels and titles are wrapped at the length of their axis.
    """
    axis, box_aspect = figure.axes[0], figure.axes[0].get_box_aspect() or 0.75
    for _ in range(_ATTEMPTS):
        _place_color_bars(figure)
        _wrap(axis)
        if below:
            _move_legend_below(axis)
        drawn = _drawn_size(figure)
        wide = drawn[0] / (width - 2 * MARGIN) if width else 1.0
        high = drawn[1] / (height - 2 * MARGIN) if height else 1.0
        if abs(wide - 1) < 0.005 and abs(high - 1) < 0.005:
            break
        if width:
            size = figure.get_size_inches()
            figure.set_size_inches(size[0] / wide, size[1] / wide)
        if height:
            plot = axis.get_window_extent().height / figure.dpi
            target = max(0.15, plot + (height - 2 * MARGIN - drawn[1]))
            span = axis.get_window_extent().width / figure.dpi / (wide if width else 1.0)
            box_aspect = max(0.05, target / max(span, 0.1))
            axis.set_box_aspect(box_aspect)
            canvas = figure.get_size_inches()
            figure.set_size_inches(canvas[0], max(canvas[1], target * 1.6))
    _place_color_bars(figure)
    _wrap(axis)
    if below:
        _move_legend_below(axis)


def _move_legend_below(axis: Any) -> None:
    """Put the legend right below the tick labels and the label of the x axis."""
    legend = axis.get_legend()
    if legend is None:
        return
    axis.figure.canvas.draw()
    plot, labels = axis.get_window_extent(), axis.xaxis.get_tightbbox()
    gap = 0.05 * axis.figure.dpi + (plot.y0 - labels.y0 if labels is not None else 0)
    legend.set_bbox_to_anchor((0.5, -gap / plot.height), transform=axis.transAxes)


def _drawn_size(figure: Any) -> tuple[float, float]:
    figure.canvas.draw()
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    return float(box.width), float(box.height)


def _place_color_bars(figure: Any) -> None:
    axis = figure.axes[0]
    axis.apply_aspect()
    box = axis.get_position()
    for color_bar in figure.axes[1:]:
        color_bar.set_position([box.x1 + 0.02, box.y0, 0.03, box.height])


def _wrap(axis: Any) -> None:
    """Break title and axis labels into lines that fit along their axis."""
    box = axis.get_window_extent()
    for text, length in (
        (axis.title, box.width * 1.15),
        (axis.xaxis.label, box.width),
        (axis.yaxis.label, box.height),
    ):
        words = text.get_text().replace("\n", " ")
        if not words.strip():
            continue
        pixels = text.get_fontsize() * axis.figure.dpi / 72 * 0.52  # mean width of a letter
        text.set_text("\n".join(textwrap.wrap(words, max(12, int(length / pixels)), break_long_words=False)))
