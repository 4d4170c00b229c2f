"""The page without a browser: what its widgets do to the figure and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stratalens.analyses.explorer.app import HINT, Explorer, page
from stratalens.analyses.explorer.on_demand import IDLE
from stratalens.analyses.explorer.server import free_port
from stratalens.store import open_store
from stratalens.store.errors import InputError
from support.stores import make_store


@pytest.fixture
def explorer(tmp_path: Path) -> Explorer:
    path = make_store(tmp_path / "run.zarr", 4, 3, 60, ("first", "last"), 8, planted=2.0)
    explorer = page(open_store(path))
    explorer.refresh()
    return explorer


def test_it_starts_at_the_last_stage_the_deepest_layer_and_the_last_token(explorer: Explorer) -> None:
    assert explorer.view().coordinates() == {"stage": "s3", "layer": 2, "token": "last"}
    assert explorer.status.kind == "info"
    assert "30 of 60 rows, resid_post at stage s3, layer 2, token last" in explorer.status.text
    assert explorer.legend.names == ["s1", "s2", "s3"]
    assert explorer.table.caption == HINT


def test_a_selection_stays_with_its_rows_and_goes_with_another_column(explorer: Explorer) -> None:
    shown = explorer.scatter.plane.rows.rows
    explorer.select(shown[:4])
    explorer.sliders["layer"].value = 0
    np.testing.assert_array_equal(explorer.selected, shown[:4])
    assert len(explorer.scatter.rings.data["x"]) == 4
    assert "layer 0" in explorer.table.caption
    explorer.table.focus = 1
    assert explorer.scatter.pointed.data["text"] == [explorer.table.rows[1][0]]
    explorer.by.value = "template"
    assert explorer.status.kind == "error"  # one group only
    still = ". The figure still shows resid_post at stage s3, layer 0, token last, by trained_stage."
    assert explorer.status.text.endswith(still)
    explorer.by.value = "trained_stage"
    assert explorer.status.kind == "info"


def test_a_failure_is_told_until_something_else_is_asked(explorer: Explorer) -> None:
    explorer.by.value = "template"  # one group only
    explorer.analyses.scope.value = "here"
    explorer.analyses.compute()
    explorer.analyses.task.join(120)
    assert explorer.analyses.status.kind == "error"
    explorer.analyses.draw("dark")
    assert explorer.analyses.status.kind == "error"
    explorer.by.value = "entity"  # too many groups
    assert (explorer.analyses.status.kind, explorer.analyses.status.text) == ("info", IDLE)


def test_rings_leave_the_points_to_be_seen(explorer: Explorer) -> None:
    shown = explorer.scatter.plane.rows.rows
    (glyph,) = [r.glyph for r in explorer.scatter.figure.renderers if r.name == "rings"]
    explorer.select(shown[:4])
    few = glyph.line_width, glyph.size
    explorer.select(np.tile(shown, 3))
    assert (glyph.line_width, glyph.size) < few


def test_answers_bring_a_figure_and_a_column_of_scores(explorer: Explorer) -> None:
    explorer.analyses.scope.value = "here"
    explorer.analyses.compute()
    explorer.analyses.task.join(120)
    assert explorer.analyses.status.text == "Done: 1 of 1."
    assert len(explorer.analyses.figures) == 1
    explorer.select(explorer.scatter.plane.rows.rows[:3])
    assert "score s1 v s3" in explorer.table.columns
    explorer.sliders["layer"].value = 0  # not computed there
    assert "score s1 v s3" not in explorer.table.columns
    explorer.analyses.method.value = "lda"  # nor with this method
    assert len(explorer.analyses.figures) == 0


def test_who_left_is_told_nothing(explorer: Explorer) -> None:
    explorer.close()
    explorer.sliders["layer"].value = 1
    assert explorer.scatter.plane.view.layer == 2


def test_ports() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"is in use by another program\. Pass another with --port"):
            free_port(taken.getsockname()[1])
    assert free_port(0) > 0
    with pytest.raises(InputError, match="port 70000 does not exist"):
        free_port(70000)
