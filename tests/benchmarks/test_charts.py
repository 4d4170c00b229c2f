"""The charts for users show every tool that was measured, also the faster ones, with the numbers of the documents."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.paths import ROOT


@pytest.fixture
def charts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.harness.charts")


def table_of(chart: Any, documents: list[dict[str, Any]]) -> dict[str, Any]:
    document = next(d for d in documents if d["name"] == chart.document)
    return next(t for t in document["tables"] if t["key"] == chart.table)


def test_a_chart_has_every_measured_tool(charts: ModuleType) -> None:
    documents = charts.load(charts.BENCHMARKS / "results")
    assert len(charts.CHARTS) == 5
    for chart in charts.CHARTS:
        rows = {row["name"] for row in table_of(chart, documents)["rows"] if row.get(chart.column)}
        assert set(chart.ours) | set(chart.bounds) <= rows
        hidden = {name for name in rows if re.match(chart.hidden, name)}
        assert all(name.startswith("stratalens") for name in hidden), "only our own variants are left out"
        bars, _ = charts.bars_of(chart, documents)
        assert len(bars) == len(rows - hidden)
        assert len([bar for bar in bars if bar.kind == "peer"]) >= 5
        medians = [bar.median for bar in bars]
        assert medians == sorted(medians, reverse=chart.more_is_better)


def test_the_sentence_follows_the_numbers(charts: ModuleType) -> None:
    """The same chart, won and lost."""
    documents = charts.load(charts.BENCHMARKS / "results")
    chart = next(chart for chart in charts.CHARTS if chart.key == "layer")
    for value, words in ((0.001, "others are slower; the fastest of them is"), (1e6, "others are faster, most of all")):
        changed = copy.deepcopy(documents)
        row = next(row for row in table_of(chart, changed)["rows"] if row["name"] == "stratalens")
        row[chart.column] = {"median": value, "min": value, "max": value, "n": 3}
        says = charts.sentence(chart, charts.bars_of(chart, changed)[0])
        assert words in says
        assert f"**stratalens: {charts.number(value)} ms**" in says


def test_the_page_has_each_chart_for_both_themes_and_a_link_to_its_table(charts: ModuleType, tmp_path: Path) -> None:
    page = charts.write(tmp_path).read_text(encoding="utf-8")
    full = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    titles = re.findall(r"^### (.+)$", full, re.MULTILINE)
    headings = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    anchors = re.findall(r"benchmarks\.md#([\w-]+)\)", page)
    assert len(anchors) == 5
    assert set(anchors) <= headings
    for chart in charts.CHARTS:
        for theme in ("light", "dark"):
            assert f"{chart.key}-{theme}.svg" in page
            drawing = (tmp_path / f"{chart.key}-{theme}.svg").read_text(encoding="utf-8")
            assert charts.COLORS[theme]["ours"] in drawing
            assert all(label in drawing for label in chart.ours.values())
