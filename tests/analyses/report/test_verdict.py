"""First screen of the report: the answer in one line and four numbers, of ordered and of unordered groups."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.report.report import report
from stratalens.analyses.report.verdict import tiles, verdict
from support.results import planted_results, probes, projection, store_info, with_interval

STAGES = ("base", "a", "b", "c", "d", "e", "f")
PLACE = ("stage", "layer", "token")


def with_inner_order(rank: float, p: float, least: float = 0.04) -> xr.Dataset:
    plane = projection(STAGES, 2)
    value = np.full([plane.sizes[dim] for dim in PLACE], rank)
    plane = plane.assign(with_interval("inner_rank_correlation", value, PLACE, 0.2, 0.0, -1.0, 1.0))
    plane["inner_rank_correlation_p"] = xr.full_like(plane["inner_rank_correlation_p"], p)
    return plane.assign_attrs(least_p=least)


def ordered(rank: float = 0.9, p: float = 0.04, scale: float = 1.0, alone: float = 0.3, left: float = 0.7) -> dict:
    return {
        "projection": with_inner_order(rank, p),
        "probes": probes(STAGES, 2, scale=scale),
        "statistics_probe": probes(STAGES, 2, scale=scale * alone, seed=4),
        "residual_probe": probes(STAGES, 2, scale=scale * left, seed=5),
    }


@pytest.mark.parametrize(
    ("results", "answer", "clauses"),
    [
        (ordered(), "Yes: ", ["a and f are distinguished (0.9", "is shown", "controlled 0.8"]),
        (ordered(p=0.5), "Partly: ", ["is not shown by the groups between"]),
        (ordered(rank=-0.9), "Partly: ", ["is not shown"]),
        (ordered(scale=0.0, p=0.5), "No: ", ["a and f are not distinguished (0.5", "is not shown"]),
        (ordered(alone=1.15, left=0.0), "Partly: ", ["alone reach 0.9", "cannot be separated from them"]),
        (ordered(alone=0.4, left=0.0), "Partly: ", ["with these controlled no effect is certain"]),
        (ordered(alone=0.0), "Yes: ", ["norms, losses and confidence alone do not separate them"]),
        ({"probes": probes(STAGES, 2)}, "Yes, before controls: ", ["are distinguished"]),
    ],
)
def test_the_answer_follows_the_numbers(results: dict[str, Any], answer: str, clauses: list[str]) -> None:
    text = verdict(results, "f")
    assert text.startswith(answer), text
    assert all(clause in text for clause in clauses), text


def test_few_groups_cannot_show_an_order() -> None:
    text = verdict(ordered() | {"projection": projection(STAGES, 2)}, "f")
    assert "training order cannot be tested with these groups" in text
    assert text.startswith("Partly")


def test_the_answer_is_at_the_stage_that_is_asked_for() -> None:
    results = ordered()
    accuracy = results["probes"]["accuracy"]
    for stage in ("base", "f"):
        at = accuracy.sel(stage=stage, layer=1, token="last", pair="a v f")
        assert f"({float(at.mean()):.2f})" in verdict(results, stage)


def test_tiles_have_value_interval_and_null_on_one_scale() -> None:
    shown = tiles(ordered(rank=-0.5, p=0.6), "f")
    assert len(shown) == 4
    order, accuracy, alone, residual = shown
    assert (order.value, order.null, order.words) == ("-0.50", "0.00", "p = 0.6 under random orders")
    assert (order.bar["value"], order.bar["null"]) == (25.0, 50.0)  # the scale of correlations starts at -1
    assert accuracy.label == "accuracy, a and f"
    assert accuracy.bar["low"] < accuracy.bar["value"] < accuracy.bar["high"] <= 100
    assert accuracy.bar["null"] == 50.0
    assert alone.label.startswith("norms, losses, confidence alone")
    assert "regressed out" in residual.label
    assert all("layer 1, token last" in tile.place for tile in shown)


def test_the_untrained_stage_completes_the_tiles_of_few_results() -> None:
    shown = tiles({"probes": probes(STAGES, 2)}, "f")
    assert [tile.label for tile in shown] == ["accuracy, a and f", "before training, a and f"]
    assert "stage base" in shown[1].place
    assert tiles({}) == []
    assert verdict({}) == ""


def test_groups_without_an_order_have_no_word_about_one() -> None:
    pairs = probes(STAGES, 2).assign_attrs(ordered=False, target="habitat")
    text = verdict({"probes": pairs}, "f")
    assert "order" not in text
    assert text.startswith("Yes, before controls: 15 pairs of groups are distinguished (0.")


def test_the_first_screen_comes_before_all_sections_and_draws_its_figure_once(tmp_path: Path) -> None:
    results = planted_results(STAGES, 2)
    results.pop("store")
    page = report(results | ordered(), tmp_path / "r.html", store_info=store_info()).read_text()
    first = page[: page.index('id="main"')]
    assert '<p class="verdict">Yes: a and f are distinguished' in first
    assert first.count('class="tile-value"') == 4
    assert first.count("<figure") == 1
    assert page.count('<figure id="fig-order-centroid-path"') == 1
    assert '<a href="#fig-order-centroid-path">' in page
    assert page.index('id="unknown"') < page.index("<dt>Model</dt>")
    links = re.findall(r'<li><a href="#([\w-]+)">', page)
    assert all(f'<h2 id="{name}"' in page for name in links)


def test_sentences_of_the_caller_replace_the_answer(tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    page = report(ordered(), target, store_info=store_info(), highlights=["All seeds agree."]).read_text()
    assert 'class="verdict"' not in page
    assert 'class="tiles"' not in page  # they are of one seed
    assert "All seeds agree." in page
