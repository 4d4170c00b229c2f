"""Figures as one standalone HTML page: escaping, script hashes and the Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stratalens.analyses.plots.colors import (
    AXIS_LINE,
    DIVERGING,
    FOREGROUND,
    MUTED,
    NOT_A_NUMBER,
    NOT_A_NUMBER_DARK,
    PAPER_DARK,
    SEQUENTIAL,
    dark_colors,
    heat_palette,
)
from stratalens.analyses.plots.render_bokeh import bokeh_json, page_frames
from stratalens.analyses.plots.spec import FigureSpec, SliderValues


@dataclass(frozen=True)
class PageFigure:
    """One figure of a page, its statement by slider values, and how to read it."""

    spec: FigureSpec
    sentence: Callable[[SliderValues], str]
    reading: str = ""


def render_page(template: str, figures: Mapping[str, PageFigure], known: Sequence[str], **values: Any) -> str:
    """Return a page as text.

    Args:
        template: name of a file in templates/.
        figures: figures by their id in the page.
        known: trained stages in order, for the colours of a dark page.
        values: further values of the template; Jinja escapes their text.
    """
    environment = Environment(
        loader=PackageLoader("stratalens.analyses.plots", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    data = {name: figure_data(figure, name) for name, figure in figures.items()}
    theme = {
        name: {"foreground": FOREGROUND[name], "muted": MUTED[name], "axis": AXIS_LINE[name]}
        for name in ("light", "dark")
    }
    theme["light"] |= {"paper": "#ffffff", "unknown": NOT_A_NUMBER}
    theme["dark"] |= {"paper": PAPER_DARK, "unknown": NOT_A_NUMBER_DARK}
    palettes = {kind: list(heat_palette(kind == "diverging", "dark")) for kind in ("diverging", "sequential")}
    block = json_block({"figures": data, "dark": dark_colors(known), "theme": theme, "palettes": palettes})
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; font-src data:; "
        f"base-uri 'none'; form-action 'none'; script-src {' '.join(_hash(s) for s in page_scripts())}"
    )
    return environment.get_template(template).render(
        policy=Markup(policy),
        style=Markup(_template_text("report.css")),
        scripts=[Markup(s) for s in page_scripts()],
        data=Markup(block),
        figures={name: _template_figure(name, figure, data[name]) for name, figure in figures.items()},
        **values,
    )


def _template_figure(name: str, figure: PageFigure, data: Mapping[str, Any]) -> dict[str, Any]:
    spec = figure.spec
    first = data["sentences"][spec.all_slider_values().index(spec.default_values())]
    return {
        "id": name,
        "spec": spec,
        "reading": figure.reading,
        "first": first,
        "color_bar": _color_bar(spec),
        "data": data,
    }


def figure_page(spec: FigureSpec) -> str:
    """Return a page with a single figure.

    It is always light, because it is shown next to other light figures.
    """
    return render_page("figure.html", {"figure": PageFigure(spec, spec.heading)}, [], title=spec.title)


@cache
def page_scripts() -> tuple[str, ...]:
    """Return Bokeh's library and the script of the page."""
    library = "\n".join(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)
    return (library.replace("</script", "<\\/script"), _template_text("report.js"))


def _template_text(name: str) -> str:
    return files("stratalens.analyses.plots").joinpath("templates", name).read_text(encoding="utf-8")


def figure_data(figure: PageFigure, identity: str) -> dict[str, Any]:
    """Return the data of a figure for the script: Bokeh's JSON, tables and sentences."""
    spec = figure.spec
    return {
        "item": bokeh_json(spec, f"{identity}-plot"),
        "frames": page_frames(spec),
        "sentences": [spec.message or figure.sentence(values) for values in spec.all_slider_values()],
        "hover": {m.name: dict(m.hover) for m in spec.marks if m.hover},
        "palette": {DIVERGING: "diverging", SEQUENTIAL: "sequential"}.get(tuple(spec.palette), ""),
    }


def json_block(data: object) -> str:
    r"""Return JSON for a script element.

    No character of it can end the element or start a comment.

    >>> json_block({"name": "</script><b>"})
    '{"name":"\\u003c/script\\u003e\\u003cb\\u003e"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _color_bar(spec: FigureSpec) -> dict[str, Any] | None:
    """Return the colour bar of a heat map as a CSS gradient."""
    if spec.clim is None:
        return None
    palette = tuple(spec.palette or (DIVERGING if spec.clim[0] < 0 else SEQUENTIAL))
    dark = heat_palette(palette == DIVERGING, "dark") if palette in (DIVERGING, SEQUENTIAL) else palette
    stops, dark_stops = (", ".join(p[round(i * (len(p) - 1) / 8)] for i in range(9)) for p in (palette, dark))
    ends = {"low": f"{spec.clim[0]:g}", "high": f"{spec.clim[1]:g}"}
    return ends | {"stops": stops, "dark": dark_stops, "label": spec.colorbar}
