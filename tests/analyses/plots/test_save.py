"""Figures as files."""

from __future__ import annotations

from pathlib import Path

import holoviews as hv
import pytest

from stratalens.analyses import plots
from stratalens.store.errors import InputError
from support import results as planted
from support.figures import FIGURES, STAGES, few_probes


def test_a_colour_bar_on_paper_is_as_high_as_its_map(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="PDF, SVG and PNG are drawn by Matplotlib")
    target = plots.save(FIGURES["stage_layer_map"](), tmp_path / "map.png", dpi=50)
    pixels = pyplot.imread(target)[..., :3]
    white = (pixels > 0.99).all(axis=(1, 2))
    # the drawing extends from the title to the axis label, and is wider than high
    rows = [i for i, empty in enumerate(white) if not empty]
    assert (rows[-1] - rows[0]) < 0.6 * pixels.shape[1]


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_papers_get_vectors_with_fonts(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="PDF, SVG and PNG are drawn by Matplotlib")
    target = plots.save(
        FIGURES["centroid_path"](), tmp_path / "new" / "folder" / f"figure{suffix}", place={"stage": "s1"}
    )
    content = target.read_bytes()
    if suffix == ".pdf":
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content  # TrueType, embedded
        assert b"/Subtype /Image" not in content
    if suffix == ".svg":
        assert b"stage s1" in content
    assert hv.Store.current_backend == "bokeh"


@pytest.mark.parametrize("name", ["centroid_path", "layer_sweep", "control_comparison", "entity_scatter", "message"])
def test_every_kind_of_mark_is_drawn_for_papers(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason="PDF, SVG and PNG are drawn by Matplotlib")
    assert plots.save(FIGURES[name](), tmp_path / "figure.pdf").stat().st_size > 3000


def test_a_page_of_one_figure_is_complete(tmp_path: Path) -> None:
    page = plots.save(
        plots.centroid_path(planted.projection(STAGES, 2), dynamic=True), tmp_path / "figure.html"
    ).read_text()
    assert "<script src" not in page
    assert 'type="range"' in page
    assert "Centroids of held-out entities" in page


@pytest.mark.parametrize("kind", ["HoloMap", "DynamicMap", "Overlay"])
@pytest.mark.parametrize("backend", ["bokeh", "matplotlib"])
def test_options_that_a_file_would_not_show_are_refused(tmp_path: Path, kind: str, backend: str) -> None:
    pytest.importorskip("matplotlib", reason="HoloViews knows the backend if Matplotlib is installed")
    probes = few_probes()
    one = {dim: [probes[dim].values[-1]] for dim in ("stage", "token") if dim in probes.dims}
    figure = plots.layer_sweep(probes.sel(one) if kind == "Overlay" else probes, dynamic=kind == "DynamicMap")
    assert type(figure).__name__ == kind
    plots.save(figure, tmp_path / "whole.png", dpi=30)  # loads the backend
    hv.Store.set_current_backend("bokeh")
    figure = figure.opts(title="mine", backend=backend)
    for name in ("a.pdf", "a.html"):
        with pytest.raises(InputError, match=r"\.opts.*title="):
            plots.save(figure, tmp_path / name)
    if kind == "HoloMap":
        plots.save(plots.layer_sweep(probes).last.opts(title="mine", backend="matplotlib"), tmp_path / "b.svg")
        assert "mine" in (tmp_path / "b.svg").read_text(encoding="utf-8")


def test_what_save_refuses(tmp_path: Path) -> None:
    obj = plots.pair_matrix(few_probes())
    with pytest.raises(InputError, match=r"unknown suffix '\.gif'.*\.pdf"):
        plots.save(obj, tmp_path / "a.gif")
    with pytest.raises(InputError, match=r"no slider 'head'. Valid: stage, layer"):
        plots.save(obj, tmp_path / "a.pdf", place={"head": 1})
    with pytest.raises(InputError, match=r"no stage 's9'. Valid: base, s3"):
        plots.save(obj, tmp_path / "a.pdf", place={"stage": "s9"})
    assert list(tmp_path.iterdir()) == []
