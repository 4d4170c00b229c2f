"""The answer of `stratalens analyze`, its default column, and the options that messages advise."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.suite import Suite
from stratalens.plugin.cli.analysis_options import as_options, parse_pairs
from stratalens.plugin.cli.answer_table import COLUMNS, answer_of, show_answer
from stratalens.store.errors import InputError
from support import results as planted
from support.unordered import unordered_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s")
    return unordered_store(folder / "run.zarr", stages=("step0", "step600"), layers=1, entities=40, d_model=4)


def analyze(invoke: Any, store: Path, out: Path, *options: str) -> Any:
    return invoke("analyze", store, "--verbs", "probes", "-o", out, *options)


def test_the_best_places_are_printed_and_json_has_the_same_numbers(store: Path, invoke: Any, tmp_path: Path) -> None:
    done = analyze(invoke, store, tmp_path / "r", "--permutations", "19")
    assert done.exit_code == 0, done.output
    title, header, *rows = [line for line in done.stdout.splitlines() if line]
    assert title == "# best places for habitat (without an order): accuracy of the probe"
    assert header.split("\t") == [name.replace("p_max", "p max") for name in COLUMNS]
    assert len(rows) == 2
    stage, layer, token, pair, *numbers = rows[0].split("\t")
    assert (stage, layer, token, pair) == ("step600", "0", "last", "multiclass")
    estimate, low, high, null, p, p_max = map(float, numbers)
    assert low <= estimate <= high
    assert 0.05 <= p <= p_max <= 1
    assert abs(null - 0.25) < 0.15
    assert "[1 of 2]" in done.stderr
    assert "wrote" in done.stderr
    assert "comparing the groups of habitat; --by chooses another column: " in done.stderr
    answer = json.loads(analyze(invoke, store, tmp_path / "r", "--permutations", "19", "--json").stdout)
    assert (answer["by"], answer["ordered"], answer["permutations"]) == ("habitat", False, 19)
    assert [round(row["estimate"], 2) for row in answer["best"]] == [float(row.split("\t")[4]) for row in rows]
    assert "multiclass.zarr" in answer["results"]
    cosines = xr.open_zarr(tmp_path / "r" / "cosines.zarr", consolidated=False)
    assert cosines["cosine"].attrs["random_from"] == "shuffled labels"


def test_too_few_permutations_are_said(store: Path, invoke: Any, tmp_path: Path) -> None:
    few = analyze(invoke, store, tmp_path / "r", "--permutations", "3")
    assert "cannot make" in few.stderr
    assert "--permutations 19" in few.stderr
    assert "permutations=" not in few.stderr
    none = analyze(invoke, store, tmp_path / "r", "--permutations", "0")
    assert "--permutations 19 or more" in none.stderr
    assert "p max" not in none.stdout


def test_options_choose_groups_pairs_and_folds(store: Path, invoke: Any, tmp_path: Path) -> None:
    options = ("--pairs", "forest v lake", "--pairs", "desert v lake", "--folds", "3", "--permutations", "0")
    done = analyze(invoke, store, tmp_path / "r", *options, "--json")
    assert done.exit_code == 0, done.output
    from stratalens.analyses.results import read_results

    assert {row["pair"] for row in json.loads(done.stdout)["best"]} == {"forest v lake", "desert v lake"}
    probes = read_results(tmp_path / "r")["probes"]
    assert probes["pair"].values.tolist() == ["forest v lake", "desert v lake"]
    assert probes.attrs["folds"] == 3
    ordered = analyze(invoke, store, tmp_path / "r", "--order", "lake,forest,desert", "--permutations", "0", "--json")
    assert json.loads(ordered.stdout)["ordered"] is True
    refused = analyze(invoke, store, tmp_path / "r", "--pairs", "forest-lake")
    assert refused.exit_code == 2
    assert "--pairs 'forest-lake': give two groups such as 'A v B'" in refused.stderr


def test_several_usable_columns_are_listed_with_their_groups(tmp_path: Path, invoke: Any) -> None:
    labels = {"letters": 3 + np.arange(24) % 3, "born": [f"y{i}" for i in range(24)]}
    path = unordered_store(tmp_path / "run.zarr", stages=("model",), layers=1, entities=24, labels=labels)
    refused = invoke("analyze", path)
    assert (refused.exit_code, refused.stdout) == (2, "")
    text = " ".join(refused.stderr.split())
    assert "name the label column: habitat (4 groups), letters (3 groups)" in text
    assert "born (24)" in text
    assert "--by habitat" in text
    assert "trained_stage" not in text


def test_messages_name_options_in_place_of_arguments() -> None:
    assert (
        as_options("Choose some with pairs=[...], or order=[...]")
        == "Choose some with --pairs 'A v B', or --order A,B,C"
    )
    assert as_options("pass skip_missing=True or folds=3") == "pass --skip-missing or --folds 3"
    assert parse_pairs(["all"]) == "all"
    with pytest.raises(InputError, match="give two groups"):
        parse_pairs(["a v "])


def test_the_table_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    row = {"stage": "step143000", "layer": 11, "token": "entity_last", "pair": "forest v mountain"}
    numbers = {"estimate": 0.712, "low": 0.634, "high": 0.781, "null": 0.503, "p": 0.005, "p_max": 0.0149}
    best = [row | numbers, row | numbers | {"p": None, "layer": 3}]
    show_answer(
        {
            "by": "habitat",
            "ordered": False,
            "measure": "balanced_accuracy",
            "permutations": 200,
            "note": "",
            "best": best,
        }
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    shown = "\n".join(lines)
    for word in ("0.71", "0.63", "0.78", "0.50", "0.005", "0.015", "balanced accuracy"):
        assert word in shown


def test_the_order_of_few_groups_is_no_claim(capsys: pytest.CaptureFixture[str]) -> None:
    projection = planted.projection(("base", "s1", "s2", "s3", "s4"), 1).assign_attrs(ordered=True, least_p=0.5)
    inner = xr.full_like(projection["rank_correlation"], 1.0)
    projection = projection.assign(inner_rank_correlation=inner, inner_rank_correlation_p=inner * 0.5)
    suite = Suite("trained_stage", True, results={"projection": projection})
    answer = answer_of(suite)
    assert answer["order"]["least_p"] == 0.5
    json.dumps(answer, allow_nan=False)
    show_answer(answer)
    assert "cannot reach 0.05 with 4 groups (at least 0.5)" in capsys.readouterr().out
