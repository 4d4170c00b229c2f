"""Turns figures into one standalone HTML page: escaping, script hashes, the page's policy. No numbers are made here."""

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

from stratalens.analyses.plots.colors import DIVERGING, SEQUENTIAL, dark_twins
from stratalens.analyses.plots.render_bokeh import frames, page_item
from stratalens.analyses.plots.spec import FigureSpec, SliderValues


@dataclass(frozen=True)
class Panel:
    """One figure of a page: the picture, its sentence for each place, and how to read it."""

    picture: FigureSpec
    sentence: Callable[[SliderValues], str]
    reading: str = ""


def render_page(template: str, panels: Mapping[str, Panel], known: Sequence[str], **values: Any) -> str:
    """Return a whole page as text.

    Args:
        template: name of a file in templates/.
        panels: figures by the id they get in the page.
        known: trained stages in order, for the colours of a dark page.
        values: what else the template asks for; text in it is escaped.
    """
    environment = Environment(
        loader=PackageLoader("stratalens.analyses.plots", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    data = {name: figure_data(panel, name) for name, panel in panels.items()}
    block = json_block({"figures": data, "dark": dark_twins(known)})
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; font-src data:; "
        f"base-uri 'none'; form-action 'none'; script-src {' '.join(_hash(s) for s in scripts())}"
    )
    return environment.get_template(template).render(
        policy=Markup(policy),
        style=Markup(_own("report.css")),
        scripts=[Markup(s) for s in scripts()],
        data=Markup(block),
        panels={name: _shown(name, panel, data[name]) for name, panel in panels.items()},
        **values,
    )


def _shown(name: str, panel: Panel, data: Mapping[str, Any]) -> dict[str, Any]:
    first = panel.picture.places().index(panel.picture.default())
    return {"first": data["sentences"][first], "id": name, "panel": panel, "bar": _bar(panel.picture), "data": data}


def figure_page(picture: FigureSpec) -> str:
    """Page of a single figure, always light: it goes beside other light figures."""
    return render_page("figure.html", {"figure": Panel(picture, picture.heading)}, [], title=picture.title)


@cache
def scripts() -> tuple[str, ...]:
    """Bokeh's library and the page's own script, as they stand in the page."""
    library = "\n".join(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)
    return (library.replace("</script", "<\\/script"), _own("report.js"))


def _own(name: str) -> str:
    return files("stratalens.analyses.plots").joinpath("templates", name).read_text(encoding="utf-8")


def figure_data(panel: Panel, identity: str) -> dict[str, Any]:
    """All that the page's script needs of one figure: Bokeh's JSON, the numbers of all places, a sentence each."""
    picture = panel.picture
    return {
        "item": page_item(picture, f"{identity}-plot"),
        "frames": frames(picture),
        "sentences": [picture.message or panel.sentence(place) for place in picture.places()],
        "hover": {m.name: dict(m.hover) for m in picture.marks if m.hover},
    }


def json_block(data: object) -> str:
    r"""JSON that can stand inside a script element: no character of it can end the element or start a comment.

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


def _bar(picture: FigureSpec) -> dict[str, Any] | None:
    """Colour bar of a heat map as a CSS gradient."""
    if picture.clim is None:
        return None
    palette = picture.palette or (DIVERGING if picture.clim[0] < 0 else SEQUENTIAL)
    stops = ", ".join(palette[round(i * (len(palette) - 1) / 8)] for i in range(9))
    return {
        "low": f"{picture.clim[0]:g}",
        "high": f"{picture.clim[1]:g}",
        "stops": stops,
        "label": picture.colorbar,
    }
