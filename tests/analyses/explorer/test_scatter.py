"""The figure of single rows, as points and as an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stratalens.analyses.explorer.data import ExplorerData, ViewState
from stratalens.analyses.explorer.scatter import Scatter
from stratalens.store import open_store
from support.stores import make_store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(
        tmp_path_factory.mktemp("s") / "run.zarr", 4, 2, 120, ("first", "last"), 8, planted=2.0, prompts_per_entity=2
    )


@pytest.fixture
def source(path: Path) -> ExplorerData:
    return ExplorerData(open_store(path))


HERE = ViewState("resid_post", "trained_stage", "s3", 1, "last")


def test_below_the_limit_all_rows_are_drawn_wherever_the_view_is(source: ExplorerData) -> None:
    scatter = Scatter(
        lambda rows: None, lambda rows: {"row": source.label_texts("entity", rows), "label": ["" for _ in rows]}
    )
    plane = source.plane(HERE)
    scatter.show(plane, *source.colors(plane))
    scatter.figure.x_range.update(start=-1e-3, end=1e-3)
    scatter.set_theme("dark")  # drawn again while zoomed in
    assert len(scatter.points.data["x"]) == len(plane.rows.rows)
    assert scatter.points.data["row"] == list(source.ds.entity.values[plane.rows.rows])


def test_above_the_limit_rows_become_an_image_and_points_again_when_zoomed_in(
    source: ExplorerData, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datashader")
    monkeypatch.setattr("stratalens.analyses.explorer.scatter.MAX_POINTS", 30)
    chosen: list[np.ndarray] = []
    scatter = Scatter(chosen.append, lambda rows: {"row": [str(r) for r in rows], "label": ["" for _ in rows]})
    plane = source.plane(HERE)
    scatter.show(plane, *source.colors(plane))
    assert len(plane.rows.rows) > 30
    assert len(scatter.points.data["x"]) == 0
    (image,) = scatter.image.data["image"]
    assert np.count_nonzero(image) > 0
    x = np.sort(plane.rows.coordinate[:, 0])
    scatter.figure.x_range.update(start=float(x[0]) - 1, end=float(x[10]))
    scatter._fill()
    assert 10 <= len(scatter.points.data["x"]) <= 12
    assert scatter.image.data["image"] == []
    from bokeh.events import SelectionGeometry

    box = {"type": "rect", "x0": float(x[0]) - 1, "x1": float(x[4]), "y0": -1e9, "y1": 1e9}
    scatter._select_enclosed(SelectionGeometry(scatter.figure, box))
    np.testing.assert_array_equal(np.sort(plane.rows.coordinate[np.isin(plane.rows.rows, chosen[0]), 0]), x[:5])
