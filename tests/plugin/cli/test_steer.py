"""`stratalens steer`: the result of the Python function, a section in the report, and exit code 2 for bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import stratalens as sl
from stratalens.analyses.directions.effect_files import read_effects

QUICK = ("--stage", "s3", "--layer", "1", "--random", "2", "--doses=-3,3")


@pytest.fixture(scope="module")
def store(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recorded store with its run file, whose prompts have answers."""
    folder = tmp_path_factory.mktemp("steer")
    shutil.copytree(recorded, folder / "run.zarr")
    shutil.copy(f"{recorded}.run.yaml", folder / "run.zarr.run.yaml")
    table = pd.read_csv(recorded.parent / "prompts.csv").assign(answer=" me")
    table.to_csv(folder / "prompts.csv", index=False)
    run = (folder / "run.zarr.run.yaml").read_text()
    (folder / "run.zarr.run.yaml").write_text(run.replace(str(recorded.parent), str(folder)))
    return folder / "run.zarr"


def test_it_is_intervene_along_the_difference_of_half_of_the_entities(store: Path, invoke: Any) -> None:
    first = invoke("steer", store, "--pair", "s1 v s3", *QUICK, "--json")
    assert first.exit_code == 0, first.output
    answer = json.loads(first.stdout)
    results = Path(f"{store}.results")
    assert Path(answer["effects"]) == results / "interventions.zarr"
    effects = read_effects(results)["interventions"]
    assert effects.direction.values.tolist() == ["s1 v s3"]
    assert effects.dose.values.tolist() == [-3, 3]
    assert int(effects.scored.sum()) == 18  # half of 36 entities
    ds, run = sl.open_store(store), yaml.safe_load(Path(f"{store}.run.yaml").read_text())
    half = ds.isel(entity=np.flatnonzero(~effects.scored.values))
    means = sl.centroids(half, by="trained_stage", progress=False).sel(token="last", stage=["s3"], layer=[1])
    axis = sl.directions(means, pairs=[("s1", "s3")], entities=half.entity_id.values)
    model = {"s3": next(stage["path"] for stage in run["stages"] if stage["name"] == "s3")}
    prompts = sl.PromptTable.read(store.parent / "prompts.csv")
    expected = sl.intervene(model, prompts, axis, doses=(-3.0, 3.0), positions="last", random=2, progress=False)
    np.testing.assert_array_equal(effects.outcome, expected.outcome)
    again = invoke("steer", store, "--pair", "s1 v s3", *QUICK)
    assert again.exit_code == 0
    assert again.stdout.strip() == effects.attrs["verdict"]
    other = invoke("steer", store, "--pair", "s1 v s2", *QUICK)
    assert other.exit_code == 2
    assert "choose another path" in other.stderr
    page = store.parent / "report.html"
    reported = invoke("report", store, "--permutations", "0", "-o", page)
    assert reported.exit_code == 0, reported.output
    text = page.read_text(encoding="utf-8")
    assert "Does the model use it?" in text
    assert "fig-interventions-dose-response" in text


BAD = {
    "pair": (("--pair", "s1 v s9"), "'s9' is no group of trained_stage: Valid: s1, s2, s3"),
    "pair text": (("--pair", "s1"), "write two groups as 'A v B'"),
    "kind": (("--kind", "stear"), "did you mean 'steer'"),
    "stage": (("--stage", "s7"), "--stage s7: Valid: "),
    "layer": (("--layer", "9"), "layer=9 is not among the directions"),
    "doses": (("--doses", "two"), "give numbers, separated by commas"),
    "infinite dose": (("--doses", "inf"), "not a finite number"),
    "position": (("--position", "lst"), "--position lst was not recorded: did you mean 'last'"),
    "site": (("--site", "resid_pst"), "did you mean 'resid_post'"),
    "outcome": (("--outcome", "answer_los"), "did you mean 'answer_loss'"),
    "column": (("--by", "trained_stge"), "trained_stage"),
    "no answers": (("--outcome", "answer_difference"), "other_answer"),
    "prompts": (("--prompts", "no.csv"), "no.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_2_and_leaves_nothing(case: str, store: Path, tmp_path: Path, invoke: Any) -> None:
    options, message = BAD[case]

    before = sorted(p.name for p in store.parent.iterdir())
    result = invoke("steer", store, *QUICK[4:], *options, "-o", tmp_path / "e.zarr")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
    assert sorted(p.name for p in store.parent.iterdir()) == before


def test_a_store_without_its_run_file(store: Path, tmp_path: Path, invoke: Any) -> None:
    shutil.copytree(store, tmp_path / "alone.zarr")
    result = invoke("steer", tmp_path / "alone.zarr")
    assert result.exit_code == 2
    assert "stratalens.intervene" in " ".join(result.stderr.split())
