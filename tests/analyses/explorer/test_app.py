"""The page without a browser: the effect of its widgets on the figure and the table."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from stratalens.analyses.data.cancellation import raise_if_cancelled
from stratalens.analyses.explorer.address import MAX_ROWS_TEXT, rows_of_text, rows_text, state_of
from stratalens.analyses.explorer.app import HINT, Explorer, error_message, page
from stratalens.analyses.explorer.on_demand import IDLE
from stratalens.analyses.plots.colors import DIVERGING, FOREGROUND
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store import open_store, relabel
from support.stores import make_store
from support.unordered import unordered_store


@pytest.fixture
def explorer(tmp_path: Path) -> Explorer:
    lone = {"lone": ["x"] + ["y"] * 59}  # a group of one entity cannot be divided
    path = make_store(tmp_path / "run.zarr", 4, 3, 60, ("first", "last"), 8, planted=2.0, labels=lone)
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
    explorer.by.value = "lone (2)"
    assert explorer.status.kind == "error"
    still = ". The figure still shows resid_post at stage s3, layer 0, token last, by trained_stage."
    assert explorer.status.text.endswith(still)
    explorer.by.value = "trained_stage (3)"
    assert explorer.status.kind == "info"


def test_a_failure_is_shown_until_the_request_changes(explorer: Explorer) -> None:
    explorer.by.value = "lone (2)"
    explorer.analyses.scope.value = "here"
    explorer.analyses.compute()
    explorer.analyses.task.join(120)
    assert explorer.analyses.status.kind == "error"
    explorer.analyses.draw("dark")
    assert explorer.analyses.status.kind == "error"
    explorer.by.value = "trained_stage (3)"
    assert (explorer.analyses.status.kind, explorer.analyses.status.text) == ("info", IDLE)


def test_a_computation_cancelled_before_its_first_result_says_so(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyses, events = explorer.analyses, []
    monkeypatch.setattr(analyses, "_run_in_page", events.append)  # the page is busy until the thread has ended
    cancelled = threading.Event()
    monkeypatch.setattr(analyses.cache, "compute", lambda *request: (cancelled.wait(60), raise_if_cancelled()))
    analyses.compute()
    analyses.cancel()
    cancelled.set()
    analyses.task.join(60)
    for event in events:
        event()
    assert analyses.status.text == "Cancelled: 0 of 3 done; these results are kept."


def test_every_figure_of_the_page_has_a_readable_toolbar(explorer: Explorer) -> None:
    explorer.analyses.scope.value = "here"
    explorer.analyses.compute()
    explorer.analyses.task.join(120)
    (figure,) = (column[1].object for column in explorer.analyses.figures)
    for toolbar in (figure.toolbar, explorer.scatter.figure.toolbar):
        assert [FOREGROUND["light"] in sheet.css for sheet in toolbar.stylesheets] == [True]
    explorer.analyses.draw("dark")
    (figure,) = (column[1].object for column in explorer.analyses.figures)
    assert [FOREGROUND["dark"] in sheet.css for sheet in figure.toolbar.stylesheets] == [True]


def test_rings_leave_the_points_to_be_seen(explorer: Explorer) -> None:
    shown = explorer.scatter.plane.rows.rows
    (glyph,) = [r.glyph for r in explorer.scatter.figure.renderers if r.name == "rings"]
    explorer.select(shown[:4])
    few = glyph.line_width, glyph.size
    explorer.select(np.tile(shown, 3))
    assert (glyph.line_width, glyph.size) < few


def test_results_bring_a_figure_and_a_column_of_scores(explorer: Explorer) -> None:
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


def test_a_closed_page_does_not_change(explorer: Explorer) -> None:
    explorer.close()
    explorer.sliders["layer"].value = 1
    assert explorer.scatter.plane.view.layer == 2


def test_every_error_has_words_for_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install 'stratalens[explore]'" in error_message(ImportError("no", name="datashader"))
    assert "Permission denied (x.zarr)" in error_message(PermissionError(13, "Permission denied", "x.zarr"))
    assert "defect of stratalens (KeyError" in error_message(KeyError("a"))
    assert "KeyError" in capsys.readouterr().err


def test_a_second_reader_is_not_shown_that_there_is_no_result(explorer: Explorer) -> None:
    explorer.analyses.scope.value = "here"
    explorer.analyses.compute()
    explorer.analyses.task.join(120)
    second = Explorer(explorer.data, explorer.analyses.cache)
    second.refresh()
    assert len(second.analyses.figures) == 1
    assert second.analyses.status.text == ""


def test_columns_have_their_numbers_of_groups_and_unusable_ones_cannot_be_chosen(explorer: Explorer) -> None:
    assert list(explorer.by.options)[:2] == ["trained_stage (3)", "lone (2)"]
    assert set(explorer.by.disabled_options) == {"template (1)", "entity_id (60)", "prompt (60)"}
    assert explorer.column == "trained_stage"


def test_groups_without_an_order_have_no_path_and_no_analysis_of_order(tmp_path: Path) -> None:
    path = unordered_store(tmp_path / "run.zarr", layers=1, entities=40, stages=("step0", "step600"))
    explorer = page(open_store(path))
    explorer.refresh()
    assert explorer.column == "habitat"
    assert explorer.status.kind == "info"
    assert "joined in order" not in explorer.status.text
    assert len(explorer.scatter.path.data["x"]) == 0
    assert len(explorer.scatter.means.data["x"]) == 4
    assert explorer.scatter.figure.xaxis.axis_label == "principal axis 1 of the group means (activation units)"
    assert list(explorer.analyses.kind.options.values()) == ["probes"]
    assert "ends" not in explorer.analyses.pairs.options.values()
    explorer.analyses.scope.value = "here"
    explorer.analyses.compute()
    explorer.analyses.task.join(120)
    (column,) = explorer.analyses.figures
    assert "habitat, 4 groups (chance 0.25): accuracy" in column[0].sentence


def test_groups_with_an_order_have_a_path_and_an_analysis_of_it(explorer: Explorer) -> None:
    assert "joined in order" in explorer.status.text
    assert len(explorer.scatter.path.data["x"]) == 3
    assert list(explorer.analyses.kind.options.values()) == ["probes", "order"]
    assert page(explorer.data.ds, by="lone").column == "lone"


def test_a_selection_is_counted_by_group_and_saved_with_all_rows(explorer: Explorer) -> None:
    explorer.select(np.arange(60))
    assert explorer.table.caption.endswith("By trained_stage: s1 20, s2 20, s3 20")
    assert not explorer.save.disabled
    lines = explorer._selected_csv().read().splitlines()
    assert len(lines) == 61
    assert lines[0].startswith("row,trained_stage,")
    assert explorer.table.rows[0][0] == "r000000"
    loss = explorer.table.columns.index("loss")
    values = explorer.data.ds["loss"].sel(stage="s3", token="last").values
    assert explorer.table.means[loss] == pytest.approx(float(np.nanmean(values)))
    assert explorer.table.means[:2] == [None, None]
    plane = explorer.scatter.plane.rows.coordinate
    np.testing.assert_allclose(explorer.scatter.center.data["x"], plane[:, :1].mean(axis=0), rtol=1e-5)
    explorer.select(np.arange(1))
    assert explorer.table.caption.startswith("1 row selected; ")
    explorer.select(np.empty(0, np.int64))
    assert explorer.save.disabled


def test_a_selection_becomes_a_label_column_of_the_store(explorer: Explorer, tmp_path: Path) -> None:
    assert explorer.labels.disabled
    explorer.select(np.array([3, 7, 59]))
    assert not explorer.labels.disabled
    file = tmp_path / "selection-labels.csv"
    file.write_text(explorer._selection_labels().read(), encoding="utf-8")
    assert f"stratalens label {tmp_path / 'run.zarr'} selection-labels.csv" in explorer.table.caption
    table = PromptTable.read(file)  # as `stratalens label` does
    assert not table.names_entities
    columns = {name: values for name, values in table.labels().items() if name != "entity_id"}
    assert relabel(tmp_path / "run.zarr", columns) == {"selection": 60}
    again = open_store(tmp_path / "run.zarr")
    assert np.flatnonzero(again.selection.values == "selected").tolist() == [3, 7, 59]
    assert again.trained_stage.values.tolist() == explorer.data.ds.trained_stage.values.tolist()


def test_a_selection_is_part_of_the_address_until_it_is_too_large(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = explorer.data.ds.sizes["entity"]
    chosen = np.array([0, 8, 31, 59])
    explorer.select(chosen)
    sent = state_of(explorer.view(), "", explorer._in_address)["rows"]
    np.testing.assert_array_equal(rows_of_text(sent, count), chosen)
    assert "reload" not in explorer.table.caption
    for wrong in ("", "60", "60.", "60.!", "61" + sent[2:], sent[:-4], "60." + "A" * 90):
        assert rows_of_text(wrong, count).tolist() == []

    everything = rows_text(np.arange(1_000_000), 1_000_000)  # regular ones of very many rows fit, random ones do not
    assert len(everything) < MAX_ROWS_TEXT
    assert len(rows_of_text(everything, 1_000_000)) == 1_000_000
    rng = np.random.default_rng(0)
    assert len(rows_text(np.flatnonzero(rng.random(20_000) < 0.5), 20_000)) > 3000
    assert rows_text(np.flatnonzero(rng.random(100_000) < 0.5), 100_000) == ""

    monkeypatch.setattr("stratalens.analyses.explorer.address.MAX_ROWS_TEXT", 5)
    explorer.select(chosen)
    assert "rows" not in state_of(explorer.view(), "", explorer._in_address)
    assert explorer.table.caption.endswith("so a reload clears the selection")

    monkeypatch.setattr("stratalens.analyses.explorer.app.requested_state", lambda: {"rows": sent, "layer": "1"})
    linked = Explorer(explorer.data, explorer.analyses.cache)
    linked.refresh()
    np.testing.assert_array_equal(linked.selected, chosen)
    assert linked.view().layer == 1


def test_a_state_of_an_address_sets_the_widgets_that_it_knows(explorer: Explorer) -> None:
    explorer._apply({"stage": "s2", "layer": "1", "token": "nothing", "by": "entity", "site": "<b>"})
    assert explorer.view().coordinates() == {"stage": "s2", "layer": 1, "token": "last"}
    state = state_of(explorer.view())
    assert state == {"site": "resid_post", "by": "trained_stage", "stage": "s2", "layer": "1", "token": "last"}


def test_many_selected_rows_fade_the_others_and_few_have_rings(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 3, 1, 1500, ("last",), 4, planted=3.0)
    many = page(open_store(path))
    many.refresh()
    rows = many.scatter.plane.rows.rows
    many.select(rows[:3])
    assert many.scatter._points.glyph.fill_alpha == 0.6
    assert many.scatter._rings.glyph.line_alpha == 1.0
    many.select(rows[:700])
    assert many.scatter._points.glyph.fill_alpha < 0.2
    assert many.scatter._rings.glyph.line_alpha == 0.0
    assert len(many.scatter.rings.data["color"]) == 700
    many.select(rows[:0])
    assert many.scatter._points.glyph.fill_alpha == 0.6


def test_axes_by_choice_show_the_half_that_fitted_none_of_them(explorer: Explorer) -> None:
    shown = explorer.scatter.plane.rows.rows
    names = {}
    for axes in ("pca", "lda", "directions", "groups"):
        explorer.axes.value = axes
        assert explorer.status.kind == "info"
        plane = explorer.scatter.plane
        assert plane.view.axes == axes
        np.testing.assert_array_equal(plane.rows.rows, shown)
        np.testing.assert_allclose(np.linalg.norm(plane.rows.axes, axis=1), 1, rtol=1e-6)
        names[axes] = explorer.scatter.figure.xaxis.axis_label
        assert explorer.x.visible == (axes == "directions")
    assert names["directions"] == "direction s1 v s3 (activation units)"
    assert len(set(names.values())) == 4
    explorer.axes.value = "directions"
    assert explorer.x.options == ["s1 v s2", "s1 v s3", "s2 v s3", "s1 v the rest", "s2 v the rest", "s3 v the rest"]
    explorer.y.value = "s3 v the rest"
    state = state_of(explorer.view())
    assert (state["axes"], state["x"], state["y"]) == ("directions", "s1 v s3", "s3 v the rest")
    again = Explorer(explorer.data, explorer.analyses.cache)
    again._apply(state)
    assert again.view() == explorer.view()


def test_a_cell_of_the_map_leads_there_and_is_computed(explorer: Explorer) -> None:
    places = explorer.analyses.map
    assert (places.rows, places.columns, places.values) == (["first", "last"], ["0", "1", "2"], [None] * 6)
    assert places.current == 5
    places.chosen = [1, 1]
    explorer.analyses.task.join(120)
    assert explorer.view().coordinates() == {"stage": "s3", "layer": 1, "token": "first"}
    assert [v is None for v in places.values] == [True, False, True, True, True, True]
    assert places.current == 1
    result = explorer.analyses.cache.get(explorer.analyses.request(), explorer.view().position)
    assert places.values[1] == pytest.approx(float(result["accuracy_mean"].mean()), abs=1e-4)
    assert places.caption.endswith("1 of 6 computed. Choose a cell to go there; an empty cell is computed.")
    explorer.theme.value = "dark"
    assert places.colors[1] not in DIVERGING
    places.chosen = [1, 2]  # known: nothing is computed again
    assert explorer.analyses.status.text == "Done: 1 of 1."


def test_the_view_starts_at_means_that_are_small_beside_the_rows(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 4, 1, 600, ("last",), 16, planted=0.3)
    page_ = page(open_store(path))
    page_.refresh()
    scatter = page_.scatter
    assert page_.zoom.label == "Show all rows"
    inside = scatter.in_view()
    assert 0 < len(inside) < 0.6 * len(scatter.plane.rows.rows)
    assert scatter._points.glyph.fill_alpha < 0.6
    assert len(scatter.regions.data["x"]) == 3
    page_.zoom.param.trigger("clicks")
    assert page_.zoom.label == "Zoom to the means"
    assert len(scatter.in_view()) == len(scatter.plane.rows.rows)
    page_.legend.isolated = 1
    assert set(scatter.points.data["group"]) == {"s2"}
    page_.legend.isolated = -1
    assert set(scatter.points.data["group"]) == {"s1", "s2", "s3"}


def test_ids_of_all_selected_rows_can_be_copied_and_a_search_is_in_the_address(explorer: Explorer) -> None:
    explorer.find.value = "r00000"
    assert explorer.table.ids == [f"r00000{i}" for i in range(10)]
    assert state_of(explorer.view(), explorer._searched)["find"] == "r00000"
    explorer.select(np.arange(2))
    assert explorer._searched == ""
