"""The standard analyses: each step is reported, and no slab is computed twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.suite import STEPS, VERBS, run_suite
from stratalens.store.errors import InputError
from stratalens.store.reading.open import open_store
from support.stores import make_store


@pytest.mark.parametrize(
    ("verbs", "message"),
    [
        (["probe"], "verbs='probe': did you mean 'probes'. Valid: centroids, probes, controls"),
        ("centroid", "verbs='centroid': did you mean 'centroids'"),
        (["probes", "Controls"], "verbs='Controls': did you mean 'controls'"),
        ([], "verbs is empty: name one or more of centroids, probes, controls"),
    ],
)
def test_unknown_names_and_empty_lists_are_refused(verbs: list[str] | str, message: str, tmp_path: Path) -> None:
    ds = open_store(make_store(tmp_path / "run.zarr", stages=2, layers=1, entities=8))
    with pytest.raises(InputError, match=message):
        run_suite(ds, verbs=verbs)


def test_all_analyses_run_once_and_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "run.zarr", stages=4, layers=2, entities=90)
    ds = open_store(store).isel(stage=[0, 3])
    lines: list[str] = []
    suite = run_suite(ds, permutations=20, tell=lines.append)
    numbers = [line for line in lines if line.startswith("[")]
    assert len(numbers) == sum(map(len, STEPS.values())) - 1  # ordered groups have no probe of all of them at once
    assert [line[1] for line in numbers] == [str(i + 1) for i in range(len(numbers))]
    assert "left" not in numbers[0]
    assert all(" left] " in line for line in numbers[1:])
    table = suite.results["control_table"]
    names = set(table["control"].values.tolist())
    assert {"probe", "normalized", "random_direction", "shuffled_label", "shuffled_entity", "residual"} <= names
    assert {"matched: matched", "untrained_stage"} <= names
    assert table.sizes["stage"] == 1
    assert table.sizes["pair"] == 1
    assert suite.results["cosines"].attrs["random_from"] == "isotropic directions"

    def compute(function: object, slab: Slab) -> None:
        raise AssertionError(f"{type(function).__name__}: {slab.where} was computed again")

    monkeypatch.setattr(sys.modules["stratalens.analyses.sweep.run"], "run_slab_task", compute)
    again = run_suite(open_store(store).isel(stage=[0, 3]), permutations=20, verbs=VERBS)
    for name, result in suite.results.items():
        assert result.identical(again.results[name]), name
