"""The calibration suite runs, resumes and writes its page. Bounds of rates are too loose for chance to break them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.paths import ROOT


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.calibration.{name}")


def run_cells(folder: Path, *names: str, datasets: int) -> dict[str, Any]:
    """Run cells in this process and return their documents."""
    runner = module("runner")
    pairs = [(script, cell) for script, cell in runner.all_cells() if cell.name in names]
    assert len(pairs) == len(names)
    assert runner.run(pairs, datasets, folder, jobs=1, quick=True) == []
    return {name: runner.read_document(folder, name) for name in names}


def rates(document: dict[str, Any]) -> dict[str, float]:
    return {row["measure"]: row["rate"] for row in document["measures"]}


def test_noise_is_rarely_significant_and_a_strong_effect_often(tmp_path: Path) -> None:
    """40 data sets: 12 of 40 at p <= .05 happens by chance once in 10 million runs."""
    level, power = "probe-diffmeans-few-level-iid", "probe-diffmeans-few-power-iid"
    documents = run_cells(tmp_path, level, power, datasets=40)
    assert 0 <= rates(documents[level])["accuracy"] < 0.3
    assert rates(documents[power])["accuracy"] > 0.3


def test_intervals_hold_the_truth_in_most_data_sets(tmp_path: Path) -> None:
    """40 data sets: fewer than 24 of 40 intervals of 90 % coverage happens once in a million runs."""
    name = "probe-coverage-diffmeans-50-signal"
    document = run_cells(tmp_path, name, datasets=40)[name]
    accuracy = document["measures"][0]
    assert accuracy["rate"] > 0.6
    assert accuracy["truth"] == pytest.approx(accuracy["value"], abs=0.04)
    assert 0.1 < accuracy["width"] < 0.4


def test_the_order_of_random_groups_is_rarely_claimed(tmp_path: Path) -> None:
    name = "project-random-order-7"
    document = run_cells(tmp_path, name, datasets=40)[name]
    assert rates(document)["inner rank correlation"] <= 0.3
    assert rates(document)["rank correlation"] > 0.3  # groups differ, which says nothing of their order


def test_a_linear_regression_removes_a_linear_confound(tmp_path: Path) -> None:
    names = ("verdict-residual-linear-shift", "verdict-residual-linear-power")
    documents = run_cells(tmp_path, *names, datasets=16)
    assert rates(documents[names[0]])["claims an effect"] < 0.5
    assert rates(documents[names[1]])["claims an effect"] > 0.5


def test_a_run_resumes_and_adds_data_sets_on_request(tmp_path: Path) -> None:
    runner = module("runner")
    name = "project-level-small"
    run_cells(tmp_path, name, datasets=4)
    pairs = [(script, cell) for script, cell in runner.all_cells() if cell.name.startswith("project-level-s")]
    assert runner.choose(pairs, [], tmp_path, 4, again=False, unclear=False) == []
    assert runner.choose(pairs, [], tmp_path, 8, again=False, unclear=False) == pairs
    assert runner.choose(pairs, [], tmp_path, 4, again=True, unclear=False) == pairs
    assert runner.choose(pairs, ["probe-*"], tmp_path, 8, again=False, unclear=False) == []
    assert list(tmp_path.iterdir()) == [tmp_path / f"{name}.json"]


def test_a_document_says_how_it_was_made_and_repeats_exactly(tmp_path: Path) -> None:
    name = "project-level-iid-few"
    first, second = (run_cells(tmp_path / part, name, datasets=6)[name] for part in ("a", "b"))
    assert first["measures"] == second["measures"]
    assert first["datasets"] == 6
    assert first["quick"]
    assert first["machine"]["cores"] >= 1
    assert set(first["versions"]) >= {"stratalens", "numpy"}
    for row in first["measures"]:
        assert set(row) >= {"measure", "n", "rate", "error", "aim", "verdict"}
        assert 0 < row["error"] < 0.5
    assert str(Path.home()) not in json.dumps(first), "a path of this machine in the document"


@pytest.mark.parametrize("entity_sd", [0.0, 1.0])
def test_the_exact_quality_of_probes_is_that_of_a_large_test_set(entity_sd: float) -> None:
    designs, truths, probe = module("designs"), module("truths"), module("probe")
    train = designs.Design("", (20, 10), d=4, entity_sd=entity_sd, rows=2)
    result = probe.fit(train, {"method": "diffmeans", "fold_coefs": True}, 1, 2, effect=1.0)
    exact = truths.two_class_truth(result, train, 1.0, np.array([40, 20]))
    test = designs.Design("", (40_000, 20_000), d=4, entity_sd=entity_sd)
    ds = test.data(2, 1, 1.0)
    x, second = ds["resid_post"].values[0, :, 0], ds["group"].values == "group b"
    coef, intercept = truths.fold_probes(result)
    scores = np.einsum("lfd,nd->lfn", coef, x) + intercept[..., None]
    right = (scores > 0) == second
    np.testing.assert_allclose(exact["accuracy"], right.mean(axis=(1, 2)), atol=0.01)
    balanced = (right[..., second].mean(axis=(1, 2)) + right[..., ~second].mean(axis=(1, 2))) / 2
    np.testing.assert_allclose(exact["balanced_accuracy"], balanced, atol=0.01)
    pairs = scores[..., second][..., :15_000] > scores[..., ~second][..., :15_000]
    np.testing.assert_allclose(exact["auc"], pairs.mean(axis=(1, 2)), atol=0.015)


def test_the_exact_r2_of_ordinal_probes_is_that_of_a_large_test_set() -> None:
    designs, truths, probe = module("designs"), module("truths"), module("probe")
    train = designs.Design("", (12, 12, 12), d=4)
    options = {"method": "ridge", "pairs": "ordinal", "fold_coefs": True}
    result = probe.fit(train, options, 1, 2, effect=1.0)
    exact = truths.ordinal_truth(result, train, 1.0, np.array([12, 12, 12]))
    ds = designs.Design("", (20_000,) * 3, d=4).data(2, 1, 1.0)
    coef, intercept = truths.fold_probes(result)
    scores = np.einsum("lfd,nd->lfn", coef, ds["resid_post"].values[0, :, 0]) + intercept[..., None]
    error = ((scores - np.repeat([0, 1, 2], 20_000)) ** 2).mean(axis=-1)
    np.testing.assert_allclose(exact, (1 - error / (2 / 3)).mean(axis=1), atol=0.02)


def test_torn_entities_have_rows_in_two_groups() -> None:
    designs = module("designs")
    design = designs.Design("", (5, 5), rows=4, torn=2)
    group, entity = design.labels(np.random.default_rng(0))
    torn = [e for e in range(10) if len(set(group[entity == e])) == 2]
    assert torn == [0, 1, 5, 6]
    everywhere, entity = designs.TWO["inside"].labels(np.random.default_rng(0))
    assert all(set(everywhere[entity == e]) == {0, 1} for e in range(40))


@pytest.mark.parametrize("kind", ["shift", "square", "step", "spread", "product", "norm"])
def test_activations_are_independent_of_the_label_given_the_statistics(kind: str) -> None:
    """Within narrow cells of both statistics, the mean of the confounded feature is equal in both classes."""
    confounds = module("confounds")
    ds = confounds.confounded(kind, 0, 1, size=30_000)
    x, label = ds["resid_post"].values[0, :, 0, 0], (ds["group"].values == "group b").astype(float)
    a, b = ds["loss"].values[0], ds["entropy"].values[0]
    cells = np.unique(np.stack([np.digitize(v, np.quantile(v, np.linspace(0, 1, 31)[1:-1])) for v in (a, b)]), axis=1,
                      return_inverse=True)[1].ravel()  # fmt: skip
    crude = x[label == 1].mean() - x[label == 0].mean()
    count = [np.bincount(cells, weights=label == side) for side in (0, 1)]
    mean = [np.bincount(cells, weights=x * (label == side)) / np.maximum(count[side], 1) for side in (0, 1)]
    weight = np.minimum(*count)
    left = ((mean[1] - mean[0]) * weight).sum() / weight.sum()
    assert abs(crude) > 0.3
    assert abs(left) < 0.1 * abs(crude)


def test_every_aim_is_judged_with_its_error() -> None:
    cells = module("cells")
    cell = cells.Cell("x", "x", cells.LEVEL, "x", lambda seed, number: {}, exact=("AUC",), informative=("raw",))
    p = np.concatenate([np.full(40, 0.01), np.full(360, 0.5)])
    rows = {row["measure"]: row for row in cells.summarize(cell, {"AUC": p, "accuracy": p, "raw": p})}
    assert rows["AUC"]["rate"] == 0.1
    assert [rows[name]["verdict"] for name in ("AUC", "accuracy", "raw")] == ["missed", "missed", None]
    quiet = cells.summarize(cell, {"AUC": np.full(400, 0.5), "accuracy": np.full(400, 0.5)})
    assert [row["verdict"] for row in quiet] == ["missed", "met"]
    covered = np.tile([0.5, 0.4, 0.6, np.nan], (100, 1))
    covered[:10, :3] += 0.3
    row = cells.summarize(cells.Cell("x", "x", cells.COVERAGE, "x", lambda seed, number: {}), {"accuracy": covered})[0]
    assert (row["rate"], row["truth_below"], row["verdict"]) == (0.9, 0.1, "unclear")
    assert row["truth"] == pytest.approx(0.53)


def test_the_page_shows_every_rate_and_counts_what_is_missing(tmp_path: Path) -> None:
    names = ("project-level-small", "project-power-small", "project-coverage-noise", "verdict-residual-linear-shift")
    documents = run_cells(tmp_path, *names, datasets=4)
    text = module("page").page(tmp_path)
    assert "Measured with `--quick`" in text
    total = len(module("runner").all_cells())
    assert f"{total - len(names)} of {total} cells have no result yet" in text
    for document in documents.values():
        assert document["measures"]
        for row in document["measures"]:
            assert module("page").rate(row["rate"], row["error"]) in text
    assert "### project: level" in text
    assert "### project: coverage" in text
    assert "residual_probe, linear" in text


def test_the_page_in_the_documentation_matches_the_documents() -> None:
    """No number on the page is written by hand, and no document is newer than the page."""
    assert module("page").page(module("runner").RESULTS) == (ROOT / "docs" / "calibration.md").read_text()
