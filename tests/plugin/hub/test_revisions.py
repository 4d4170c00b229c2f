"""Training steps in the names of revisions, and the choice among them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from stratalens.plugin.hub.revisions import find_gaps, read_revision, select_revisions, training_order
from stratalens.store.errors import InputError

PYTHIA = [f"step{n}" for n in (0, *(2**k for k in range(10)), *range(1000, 144_000, 1000))]
OLMO = [
    *(f"stage1-step{n}-tokens{n // 250}B" for n in range(1000, 30_000, 1000)),
    *(f"stage2-ingredient{i}-step{n}-tokens{n // 100}B" for i in (1, 2) for n in (1000, 2000)),
]


def refs(names: list[str]) -> dict[str, str]:
    """Return branches as the hub lists them: by name."""
    return {name: f"commit of {name}" for name in sorted([*names, "main"])}


def chosen(revisions: Any, names: list[str]) -> list[str]:
    return [revision.name for revision in select_revisions(revisions, refs(names), "someone/model")]


def test_a_pattern_is_in_training_order_and_not_in_that_of_the_alphabet() -> None:
    assert chosen("step*", PYTHIA) == PYTHIA
    assert chosen("*step*", OLMO) == OLMO
    assert chosen("stage2-*", OLMO) == OLMO[-4:]
    assert chosen("step?", PYTHIA) == ["step0", "step1", "step2", "step4", "step8"]


def test_a_list_may_have_names_patterns_and_main_and_each_revision_counts_once() -> None:
    assert chosen(["main", "step1000", "step1?000", "step12000"], PYTHIA) == [
        "step1000",
        *(f"step{n}000" for n in range(10, 20)),
        "main",
    ]
    orders = [r.order for r in select_revisions(["main", "step0", "step512"], refs(PYTHIA), "m")]
    assert orders[:2] == [0, 512]
    assert orders[2] > 10**18


def test_names_without_steps_keep_the_order_of_the_list() -> None:
    names = ["warm", "cold", "step5"]
    revisions = select_revisions(names, refs(names), "m")
    assert [(r.name, r.order) for r in revisions] == [("warm", 0), ("cold", 1), ("step5", 2)]


def test_log_takes_the_ends_and_equal_distances_of_the_largest_run() -> None:
    names = chosen("log:16", PYTHIA)
    assert len(names) == len(set(names)) == 16
    assert (names[0], names[-1]) == ("step0", "step143000")
    assert sum(int(n[4:]) < 1000 for n in names) in (9, 10)  # log(1000) / log(143000) is .58
    assert chosen("log:999", PYTHIA) == PYTHIA
    assert {n.split("-")[0] for n in chosen("log:5", OLMO)} == {"stage1"}


@pytest.mark.parametrize(
    ("name", "step", "series"),
    [
        ("step143000", 143000, "step#"),
        ("stage1-step1000-tokens4B", 1000, "stage1-step#-tokens#"),
        ("stage2-ingredient3-step11931-tokens50B", 11931, "stage2-ingredient3-step#-tokens#"),
        ("global_step1000", 1000, "global_step#"),
        ("iter_0001000", 1000, "iter_#"),
        ("checkpoint-500", 500, "checkpoint-#"),
        ("seed3-step10", 10, "seed3-step#"),
        ("footstep5", None, "footstep5"),
        ("v1.0", None, "v1.0"),
        ("main", None, "main"),
    ],
)
def test_steps_in_names(name: str, step: int | None, series: str) -> None:
    revision = read_revision(name)
    assert (revision.step, revision.series) == (step, series)


def test_orders_fit_into_a_store_and_follow_phase_part_and_step() -> None:
    orders = [read_revision(name).order or 0 for name in OLMO]
    assert orders == sorted(orders)
    assert len(set(orders)) == len(orders)
    assert max(orders) < 2**62
    assert training_order(reversed(OLMO)) == OLMO


def test_gaps_of_a_regular_run_are_named() -> None:
    without = [n for n in PYTHIA if n not in ("step26000", "step70000", "step71000", "step72000")]
    gaps = find_gaps([read_revision(n) for n in without])
    assert [(g.first, g.last, g.count) for g in gaps] == [
        ("step26000", "step26000", 1),
        ("step70000", "step72000", 3),
    ]
    olmo = [read_revision(n) for n in OLMO[:10] + OLMO[11:20]]
    assert [g.first for g in find_gaps(olmo)] == ["stage1-step11000-tokens*"]


def test_an_irregular_run_has_no_gaps() -> None:
    assert find_gaps([read_revision(n) for n in PYTHIA]) == []
    assert find_gaps([read_revision(f"step{n}") for n in (0, 1, 3, 10, 40, 90, 1000)]) == []


@pytest.mark.parametrize(
    ("revisions", "words"),
    [
        ("stepp*", "no revision of someone/model matches 'stepp*'. It has 155: step0, step1"),
        ("step1001", "someone/model has no revision 'step1001': did you mean 'step1000'"),
        (["step0", "stage1"], "has no revision 'stage1'"),
        ("log:1", "after 'log:' comes a number of at least 2"),
        ("log:many", "after 'log:' comes a number of at least 2"),
        ([], "revisions is empty"),
        ([1000], "revisions has 1000, which is of type int"),
        (1000, "revisions=1000 is of type int"),
        ({"step0": 1}, "is of type dict"),
    ],
)
def test_bad_revisions(revisions: Any, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        chosen(revisions, PYTHIA)


def test_two_runs_of_the_same_steps_are_refused() -> None:
    with pytest.raises(InputError, match=r"'step5' and 'step5-v2' of .* are of the same training step"):
        chosen("step*", ["step5", "step5-v2"])
    with pytest.raises(InputError, match="no revision with a training step"):
        chosen("log:4", ["v1", "v2"])
