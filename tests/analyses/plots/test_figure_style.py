"""Title, font size, width, height and legend of saved figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stratalens.analyses import plots
from stratalens.analyses.plots.figure_style import FigureOptions, styled_page
from stratalens.store.errors import InputError
from support.figures import FIGURES, few_probes

DPI = 60


def size_in_inches(path: Path) -> tuple[float, float]:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="PDF, SVG and PNG are drawn by Matplotlib")
    high, wide, _ = pyplot.imread(path).shape
    return wide / DPI, high / DPI


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("stage_layer_map", (3.3, None)),
        ("stage_layer_map", (6, 3)),
        ("pair_matrix", (None, 4)),
        ("centroid_path", (4, 3)),
    ],
)
def test_a_figure_has_the_size_that_was_asked_for(name: str, size: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = plots.save(FIGURES[name](), tmp_path / "a.png", width=size[0], height=size[1], fontsize=7, dpi=DPI)
    for actual, wanted in zip(size_in_inches(path), size, strict=True):
        assert wanted is None or abs(actual - wanted) < 0.08 * wanted


def svg_text(obj: Any, tmp_path: Path, **options: Any) -> str:
    pytest.importorskip("matplotlib")
    return plots.save(obj, tmp_path / "a.svg", **options).read_text()


def font_sizes(svg: str) -> set[float]:
    return {float(size) for size in re.findall(r"font(?:-size)?:\s*(?:[\w ]*?)([\d.]+)px", svg)}


def test_the_title_is_that_of_the_caller_and_long_ones_are_wrapped(tmp_path: Path) -> None:
    obj = plots.pair_matrix(few_probes())
    titled = svg_text(obj, tmp_path, title="Habitat")
    assert "Habitat" in titled
    assert "stage" not in titled
    words = [f"word{i}" for i in range(30)]
    wrapped = svg_text(obj, tmp_path, title=" ".join(words), width=4)
    assert " ".join(words) not in wrapped
    assert all(word in wrapped for word in words)
    assert "(resid" not in svg_text(obj, tmp_path, title="")


def test_all_text_changes_with_the_font_size(tmp_path: Path) -> None:
    obj = FIGURES["stage_layer_map"]()
    small, large = (font_sizes(svg_text(obj, tmp_path, fontsize=size)) for size in (8, 16))
    assert small
    assert sorted(2 * size for size in small) == pytest.approx(sorted(large))


def test_the_legend(tmp_path: Path) -> None:
    obj = FIGURES["layer_sweep"]()
    names = list(obj.stratalens_spec.legend)
    assert names
    for where, shown in (("right", True), ("below", True), (False, False)):
        assert ('id="legend_1"' in svg_text(obj, tmp_path, legend=where)) is shown
    page = plots.save(obj, tmp_path / "a.html", legend=False).read_text()
    assert page != plots.save(obj, tmp_path / "b.html").read_text()


def test_a_page(tmp_path: Path) -> None:
    obj = plots.pair_matrix(few_probes())
    options = {"title": "Habitat </script>", "fontsize": 18, "width": 500, "height": 222}
    page = plots.save(obj, tmp_path / "a.html", **options).read_text()
    assert "Habitat &lt;/script&gt;" in page
    assert "main{max-width:500px" in page
    assert '"height":222' in page
    assert 'axis_label_text_font_size":"24px"' in page
    assert "Habitat </script>" not in page
    assert styled_page("<head></head>", FigureOptions()) == "<head></head>"


def test_a_changed_figure_takes_place_and_title(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    changed = plots.pair_matrix(few_probes(), dynamic=False).clone()
    assert getattr(changed, "stratalens_spec", None) is None
    stage = changed.kdims[0].values[0]
    assert f"stage {stage}" in svg_text(changed, tmp_path, place={"stage": stage})
    assert "Mine" in svg_text(changed, tmp_path, place={"stage": stage}, title="Mine")
    with pytest.raises(InputError, match="no slider 'head'"):
        svg_text(changed, tmp_path, place={"head": 1})
    with pytest.raises(InputError, match="need a figure of stratalens"):
        plots.save(changed, tmp_path / "b.html", title="Mine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"title": 3}, "title is int; give a text"),
        ({"fontsize": 0}, "fontsize=0; give 2 to 72 points"),
        ({"fontsize": "9pt"}, "fontsize='9pt'"),
        ({"width": 640}, r"width=640; give 0.5 to 100 inches"),
        ({"height": True}, "height=True"),
        ({"height": float("nan")}, "height=nan"),
        ({"legend": "belw"}, "did you mean 'below'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    obj = plots.pair_matrix(few_probes())
    with pytest.raises(InputError, match=words):
        plots.save(obj, tmp_path / "new" / "a.pdf", **options)
    with pytest.raises(InputError, match="width=3; give 100 to 10000 pixels"):
        plots.save(obj, tmp_path / "new" / "a.html", width=3)
    assert list(tmp_path.iterdir()) == []
