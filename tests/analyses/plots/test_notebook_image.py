"""The image with the live figure of a notebook cell: without scripts it is all that a page shows."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stratalens as sl
from support import results as planted
from support.browser import NEEDS_CHROMIUM, chromium  # noqa: F401 - the fixture `browser`

pytest.importorskip("matplotlib")

STAGES = ("base", "s1", "s2")
CODE = """
import sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
from holoviews.ipython import notebook_extension
import stratalens as sl
from support import results
notebook_extension("bokeh", logo=False, ip=shell)
for layers in (2, 9):  # a HoloMap and a DynamicMap, without options and with them
    figure = sl.plots.layer_sweep(results.probes(("base", "s1", "s2"), layers))
    figure = figure.opts(title="mine") if layers == 2 else figure
    data, metadata = figure._repr_mimebundle_()
    print(sorted(data), len(data["image/png"]) > 5000)
sys.stdout.flush()
open("cell.html", "w").write(data["text/html"])
"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The HTML of a cell, from a process that has loaded Bokeh's scripts as a notebook does."""
    folder = tmp_path_factory.mktemp("cell")
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{CODE}"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "cell.html", done.stdout


def test_every_kind_of_figure_has_an_image(cell: tuple[Path, str]) -> None:
    lines = [line for line in cell[1].splitlines() if line.startswith("[")]
    assert len(lines) == 2
    assert all("'image/png'" in line and "'text/html'" in line and line.endswith("True") for line in lines)


@pytest.mark.parametrize("mark", [pytest.param(None, marks=NEEDS_CHROMIUM)])
def test_a_page_without_scripts_or_network_shows_it(mark: None, browser: Any, cell: tuple[Path, str]) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(cell[0].as_uri())
    image = page.locator("img").bounding_box()
    assert image is not None
    assert image["width"] > 400
    context.close()


def test_a_session_without_a_notebook_shows_text() -> None:
    figure = sl.plots.layer_sweep(planted.probes(STAGES, 2))
    data = figure._repr_mimebundle_()[0]
    assert data == {} or "text/html" not in data or base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
