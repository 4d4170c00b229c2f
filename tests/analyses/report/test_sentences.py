"""Computed statements of the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratalens.analyses.report.report import report
from support.results import planted_results, store_info


def write(path: Path, results: dict[str, Any], **options: Any) -> str:
    return report(results, path / "report.html", store_info=options.pop("info", store_info()), **options).read_text()


def sentences(page: str) -> dict[str, list[str]]:
    match = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert match is not None
    data = json.loads(match.group(1))
    return {name: figure["sentences"] for name, figure in data["figures"].items()}


@pytest.mark.parametrize(("scale", "words"), [(1.0, "far above chance"), (0.0, "not distinguishable from chance")])
def test_sentences_follow_the_numbers(tmp_path: Path, scale: float, words: str) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3, scale=scale)
    results.pop("store")
    said = sentences(write(tmp_path, results))["fig-where-layer-sweep"][-1]
    value = float(results["probes"]["accuracy"].isel(stage=-1, layer=-1, token=-1, pair=1).mean())
    assert results["probes"]["pair"].values[1] == "s1 v s3"
    assert f"s1 v s3: accuracy {value:.2f}" in said
    assert words in said


def test_a_difference_between_groups_is_not_said_to_be_an_order(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    results.pop("store")
    said = sentences(write(tmp_path, results))["fig-order-centroid-path"]
    assert all("cannot show training order: only one group is between" in text for text in said)
    assert "with no difference between groups it would be 0.00, p ≤ 0.001" in said[-1]


def test_controls_made_at_one_stage_and_one_pair_are_compared_there_only(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    results.pop("store")
    for name in ("statistics_probe", "matched_probe", "residual_probe"):
        results[name] = results[name].isel(stage=[-1], token=[-1]).sel(pair=["s1 v s3"])
    said = sentences(write(tmp_path, results))["fig-controls-control-comparison"]
    assert len(said) == 3  # one per layer: stage and token are fixed
    assert said[-1].startswith("At stage s3, layer 2, token last, accuracy of s1 v s3: activations ")


def _row(value, half=0.03, null=0.5):
    return {"value": value, "low": value - half, "high": value + half, "null": null, "p": float("nan")}


@pytest.mark.parametrize(
    ("own", "alone", "matched", "regressed", "words"),
    [
        (
            0.72,
            1.0,
            0.63,
            0.56,
            "at least as well as the activations: 0.50 above chance, compared with 0.22 for the activations.",
        ),
        (
            0.72,
            1.0,
            0.63,
            0.56,
            "Of the 0.22 above chance, 0.13 (95 % 0.10 to 0.16) remains when matched on l2, loss, compared with",
        ),
        (0.72, 1.0, 0.63, 0.56, "compared with 0.17 in a random subsample of the same size; 0.06 (95 % 0.03 to 0.09)"),
        (0.72, 1.0, 0.63, 0.56, "remains after regressing them out, 27 % of it."),
        (0.90, 0.70, 0.80, 0.51, "in part: 0.20 above chance, compared with 0.40 for the activations."),
        (
            0.90,
            0.70,
            0.80,
            0.51,
            "0.01 (95 % -0.02 to 0.04) remains after regressing them out, 3 % of it, which is not",
        ),
        (0.90, 0.51, 0.51, 0.50, "No separation of the groups by norms, losses and confidence alone is detected"),
        (0.90, 0.51, 0.51, 0.48, "-0.02 (95 % -0.05 to 0.01) remains after regressing them out, 0 % of it, which is"),
        (0.51, 0.90, 0.50, 0.50, "There is no effect for the controls to explain."),
        (0.90, 0.70, np.nan, 0.80, "Of the 0.40 above chance, 0.30 (95 % 0.27 to 0.33) remains after regressing"),
    ],
)
def test_the_verdict_on_the_controls_says_what_is_left_with_numbers(own, alone, matched, regressed, words):
    from stratalens.analyses.report.control_sentences import _control_verdict

    rows = {
        "activations": _row(own),
        "norms, losses, confidence alone": _row(alone),
        "matched on l2, loss: matched": _row(matched),
        "matched on l2, loss: random subsample": _row(0.67),
        "with them regressed out": _row(regressed),
    }
    assert words in _control_verdict(rows)


def test_a_separation_that_boosting_alone_finds_is_not_missed():
    from stratalens.analyses.report.control_sentences import ALONE, WEIGHTED, Overlap, _control_verdict

    rows = {"activations": _row(0.6), ALONE[0]: _row(0.50), ALONE[1]: _row(0.64), WEIGHTED: _row(0.51)}
    verdict = _control_verdict(rows)
    assert "at least as well as the activations: 0.14 above chance" in verdict
    assert "0.01 (95 % -0.02 to 0.04) remains with classes weighted to equal statistics" in verdict
    assert "not distinguishable from chance" in verdict
    assert "No separation" not in verdict
    verdict = _control_verdict(rows | {ALONE[1]: _row(0.93)}, Overlap(largest=0.99, support=0.04))
    assert "There is no overlap: the statistics cannot be controlled by matching. 4 % of the rows have" in verdict
    conditional = {"value": 0.64, "low": 0.6, "high": 0.68, "null": 0.61, "p": 0.02}
    assert "The statistics alone would give this probe 0.61; it has 0.64, p = 0.02." in _control_verdict(
        rows, None, conditional
    )


@pytest.mark.parametrize("kind", ["shift", "spread", "product"])
def test_a_pure_confound_is_never_called_an_effect(kind):
    import stratalens as sl
    from stratalens.analyses.plots.probes import comparison_rows, control_comparison_spec
    from stratalens.analyses.report.caveats import control_rows
    from stratalens.analyses.report.control_sentences import control_sentence
    from support.planted import confounded

    ds = confounded(kind)
    options = {"progress": False, "resamples": 200}
    results = {
        "probes": sl.probe(ds, "age", **options),
        "statistics_probe": sl.statistics_probe(ds, "age", ds.statistics, **options),
        "weighted_probe": sl.weighted_probe(ds, "age", ds.statistics, **options),
        "matched_probe": sl.matched_probe(ds, "age", ("loss",), bins=4, **options),
    }
    conditional = sl.conditional_test(ds, "age", ds.statistics, permutations=19, **options)
    chosen = control_rows(results)
    assert "matched on loss" in chosen
    spec = control_comparison_spec(chosen)
    text = control_sentence(comparison_rows(chosen), spec, conditional)(spec.default_values())
    assert "No separation of the groups" not in text
    assert re.search("weighted to equal statistics, [0-9]+ % of it, which is not distinguishable from chance", text)
    assert "remains when matched on loss" in text
    assert "The statistics alone would give this probe 0." in text


def test_too_few_rows_are_said_to_be_too_few(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2"), 2)
    results.pop("store")
    results["matched_probe"]["accuracy"][:] = np.nan
    said = sentences(write(tmp_path, results))["fig-controls-control-comparison"]
    assert all("matched on some of them: matched: too few rows" in text for text in said)
    assert not any("nan" in text or "not known" in text for text in said)


def test_pairs_that_all_share_a_group_are_not_said_to_share_none(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 2)
    text = sentences(write(tmp_path, {"cosines": results["cosines"]}))["fig-directions-cosine-matrix"][-1]
    assert "between different pairs" in text
    assert "share no group" not in text
