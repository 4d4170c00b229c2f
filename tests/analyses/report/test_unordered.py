"""The report of groups without an order: no word, axis or path that claims one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stratalens.analyses.data.groups import groups
from stratalens.analyses.report.report import report
from stratalens.analyses.suite import control_pairs, run_suite
from stratalens.store import open_store
from stratalens.store.errors import InputError
from stratalens.store.state.info import info
from support.unordered import HABITATS, unordered_store

CLAIMS = re.compile(
    r"recency|earlier|\blater\b|first v last|first group|last group|training order|order of training|just trained|"
    r"in order|joined|Before training|trained the group|w1|w2",
    re.I,
)


def text_of(page: str) -> str:
    """Return the words of a page: its markup, and the titles, axes, legends and sentences of its figures."""
    without_scripts = re.sub(r"<(style|script(?! type=.application/json)).*?</\1>", "", page, flags=re.S)
    return re.sub(r"https?://\S+", "", without_scripts)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unordered_store(tmp_path_factory.mktemp("s") / "run.zarr", entities=48, layers=2, d_model=6)


@pytest.fixture(scope="module")
def page(store: Path) -> str:
    suite = run_suite(open_store(store))
    assert (suite.by, suite.ordered) == ("habitat", False)
    assert set(suite.results) >= {"centroids", "multiclass", "probes", "control_table"}
    assert "projection" not in suite.results
    target = report(suite.results, store.parent / "r.html", store_info=info(str(store)), notes=suite.skipped)
    return target.read_text(encoding="utf-8")


def test_no_word_of_the_page_claims_an_order(page: str) -> None:
    assert CLAIMS.findall(text_of(page)) == []
    assert re.findall(r"<h2 id=\"[\w-]+\">(.*?)</h2>", page)[:4] == [
        "Summary",
        "Groups of habitat",
        "Separability of the groups",
        "Layer, token and stage",
    ]


def test_the_probe_of_all_groups_comes_first(page: str) -> None:
    summary = re.sub("<[^>]*>", "", page.split('id="summary"')[1].split("</section>")[0])
    assert "habitat, 4 groups (chance 0.25): accuracy" in summary
    figures = re.findall(r'<figure id="(fig-[\w-]+)"', page)
    assert figures[:4] == [
        "fig-separable-layer-sweep",  # the figure of the first screen
        "fig-groups-centroid-map",
        "fig-separable-group-recall",
        "fig-separable-pair-matrix",
    ]
    assert "mean over 6 pairs of groups" in page
    assert re.search(r"Remaining effect at [^<]*, mean over 6 pairs;", page)


def test_one_small_group_leaves_its_part_out_with_a_sentence(tmp_path: Path) -> None:
    path = unordered_store(tmp_path / "run.zarr", stages=("model",), entities=48, layers=1, sizes={"lake": 3})
    suite = run_suite(open_store(path), verbs=("centroids", "probes"))
    assert suite.results["multiclass"]["group"].values.tolist() == ["forest", "desert", "mountain"]
    assert suite.results["centroids"].sizes["group"] == 4
    (sentence,) = [line for line in suite.skipped if line.startswith("probes:")]
    assert "without the groups 'lake' (3) of 'habitat'" in sentence
    assert not suite.results["probes"].attrs["ordered"]  # the selection of groups is no order
    four = run_suite(open_store(path), verbs="probes", folds=3)
    assert four.results["multiclass"].sizes["group"] == 4


def test_an_order_that_the_user_names_is_one(store: Path) -> None:
    suite = run_suite(open_store(store), verbs="centroids", order=list(HABITATS), permutations=5)
    assert suite.ordered
    assert "projection" in suite.results
    with pytest.raises(InputError, match="order names 'swamp'"):
        run_suite(open_store(store), order=["swamp", "lake"])
    with pytest.raises(InputError, match="no group 'swamp'"):
        run_suite(open_store(store), pairs=[("swamp", "lake")])


def test_many_groups_give_a_small_report(tmp_path: Path) -> None:
    names = [f"g{i:02d}" for i in range(40)]
    path = unordered_store(tmp_path / "run.zarr", names, stages=("model",), entities=200, layers=1, planted=4.0)
    suite = run_suite(open_store(path), verbs=("centroids", "probes"))
    assert "probes" not in suite.results
    assert any("40 groups have 780 pairs" in line for line in suite.skipped)
    target = report(suite.results, tmp_path / "r.html", store_info=info(str(path)), notes=suite.skipped)
    assert target.stat().st_size < 3_000_000
    assert "habitat, 40 groups (chance 0.025)" in target.read_text(encoding="utf-8")


def test_the_pairs_of_the_controls_are_few(store: Path) -> None:
    for count in (2, 3, 4, 7, 40):
        names = [f"g{i}" for i in range(count)]
        pairs = control_pairs(names, ordered=False)
        assert len(pairs) == len(set(pairs)) <= 6
        if count > 4:
            assert {sum(name in pair for pair in pairs) for name in names} <= {0, 2}
    assert not groups(open_store(store), "habitat").ordered


def test_a_store_where_nothing_can_be_compared_is_refused(tmp_path: Path) -> None:
    path = unordered_store(tmp_path / "run.zarr", stages=("model",), entities=6, layers=1, statistics=False)
    options: dict[str, Any] = {"by": "habitat", "verbs": "probes"}
    with pytest.raises(InputError, match="no analysis of 'habitat' can be computed"):
        run_suite(open_store(path), **options)
