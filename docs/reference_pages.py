"""Choose the example and the picture of each page of the reference, for the template _templates/autosummary/page.rst.

The example of a page is that of the docstring. A plot has the code and the figure of the gallery instead. A function
without an example in its docstring has the one of reference_examples.py.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import gallery
import reference_examples

import stratalens as sl

HAS_EXAMPLE = re.compile(r"^\s*Example[: ]|>>> ", re.MULTILINE)
MEMBERS = {  # methods on the page of a class
    "stratalens.PromptTable": "from_dataframe, read, frame, prompts, labels, tokenize",
    "stratalens.Recorder": "batch",
    "stratalens.Directions": "vectors, scale, sel, at, save, load",
}
EXAMPLE_STORE = (
    'Here ``ds = sl.open_store("run.zarr")`` and ``table = sl.PromptTable.read("prompts.csv")`` '
    "are those of :ref:`the example <the-example>`."
)
GALLERY_DATA = "Here ``ds`` is the small synthetic data set of :doc:`the gallery </_generated/gallery/index>`."


def body(function: Callable[..., Any]) -> str:
    """Return the lines of a function without its signature; the last value is the last line."""
    source = inspect.getsource(function).split("-> Any:", 1)[1].split("\n", 1)[1]
    return re.sub(r"^(\s*)return ", r"\1", inspect.cleandoc("\n" + source), flags=re.MULTILINE)


def public_names() -> dict[str, Any]:
    """Return every public function and class by its full name."""
    names = {f"stratalens.{name}": getattr(sl, name) for name in dir(sl) if not name.startswith("_")}
    names |= {f"stratalens.plots.{name}": getattr(sl.plots, name) for name in sl.plots.__all__}
    return {name: value for name, value in names.items() if not inspect.ismodule(value)}


def pictures() -> dict[str, dict[str, str]]:
    """Return the name and title of the figure that shows each public name: of a plot its own, else the first one."""
    shown: dict[str, dict[str, str]] = {}
    for title, function in gallery.DRAWN:
        figure = {"name": function.__name__, "title": title}
        for name in re.findall(r"\bsl\.((?:plots\.)?\w+)\(", body(function)):
            shown.setdefault(f"stratalens.{name}", figure)
        shown[f"stratalens.plots.{function.__name__}"] = figure
    return shown


def examples() -> dict[str, dict[str, str]]:
    """Return the code of the names whose docstring has no example, as {"before", "code"}."""
    drawn = {f"stratalens.plots.{function.__name__}": function for _, function in gallery.DRAWN}
    shown = pictures()
    chosen = {}
    for name, value in public_names().items():
        own = getattr(reference_examples, name.rsplit(".", 1)[1], None)
        if name in drawn:
            chosen[name] = {"before": GALLERY_DATA, "code": body(drawn[name])}
        elif HAS_EXAMPLE.search(inspect.getdoc(value) or ""):
            continue
        elif own is not None:
            chosen[name] = {"before": EXAMPLE_STORE, "code": body(own)}
        elif name in shown:
            function = next(f for _, f in gallery.DRAWN if f.__name__ == shown[name]["name"])
            chosen[name] = {"before": GALLERY_DATA, "code": body(function)}
    return chosen


def context() -> dict[str, Any]:
    """Return the variables of the template."""
    return {"examples": examples(), "pictures": pictures(), "members_of_class": MEMBERS}
