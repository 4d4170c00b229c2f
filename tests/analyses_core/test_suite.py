"""The usual questions together: what `analyze` and `report` ask, said step by step, and never asked twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stratalens.analyses.engine.slabs import Slab
from stratalens.analyses.suite import STEPS, VERBS, run_suite, verb_named
from stratalens.store.errors import InputError
from stratalens.store.reader import open_store
from support.stores import make_store


def test_the_singular_will_do_and_other_words_are_refused() -> None:
    assert [verb_named(word) for word in ("probe", "Controls", " centroid ")] == ["probes", "controls", "centroids"]
    with pytest.raises(InputError, match="unknown verb 'prob'; did you mean 'probes'"):
        verb_named("prob")


def test_all_verbs_are_asked_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "run.zarr", stages=4, layers=2, entities=90)
    ds = open_store(store).isel(stage=[0, 3])
    said: list[str] = []
    suite = run_suite(ds, permutations=20, verbs=("centroid", "probe", "control"), tell=said.append)
    numbers = [line for line in said if line.startswith("[")]
    assert len(numbers) == sum(map(len, STEPS.values()))
    assert [line[1] for line in numbers] == [str(i + 1) for i in range(len(numbers))]
    assert "left" not in numbers[0]
    assert all(" left] " in line for line in numbers[1:])
    table = suite.results["control_table"]
    names = set(table["control"].values.tolist())
    assert {"probe", "normalized", "random_direction", "shuffled_label", "shuffled_entity", "residual"} <= names
    assert {"matched: matched", "untrained_stage"} <= names
    assert table.sizes["stage"] == 1
    assert table.sizes["pair"] == 1

    def worked(function: object, slab: Slab) -> None:
        raise AssertionError(f"{type(function).__name__}: {slab.where} was worked on again")

    monkeypatch.setattr(sys.modules["stratalens.analyses.sweep"], "run_one", worked)
    again = run_suite(open_store(store).isel(stage=[0, 3]), permutations=20, verbs=VERBS)
    for name, result in suite.results.items():
        assert result.identical(again.results[name]), name
