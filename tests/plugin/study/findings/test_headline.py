"""Sentences about order: the order of the inner stages leads, and a p-value is called what it tests."""

import json
from pathlib import Path

import pytest

from stratalens.plugin.study.config.presets import DEMO_RESULTS
from stratalens.plugin.study.findings.headline import INNER_ORDER, ORDER, describe_headline, make_row
from stratalens.plugin.study.run import compare_with_documented

PLACE = {"stage": "s6", "layer": 5, "token": "last", "site": "resid_post", "n": 90, "low": 0.3, "high": 1.0}


def rows(inner: float, p: float) -> list[dict]:
    return [
        make_row(ORDER, value=0.9, null=0.01, p=0.001, **PLACE),
        make_row(INNER_ORDER, value=inner, null=0.0, p=p, **PLACE),
    ]


@pytest.mark.parametrize(
    ("inner", "p", "stages", "verdict"),
    [
        (0.95, 1 / 24, 6, "follow the training order"),
        (0.7, 1 / 24, 6, "partly follow the training order"),
        (0.4, 5 / 24, 6, "no evidence of an order"),
        (1.0, 1 / 6, 5, "not tested, 5 stages have 6 orders"),
        (1.0, 0.5, 4, "not tested, 4 stages have 2 orders"),
        (-0.9, 0.99, 8, "no evidence of an order"),
    ],
)
def test_only_the_test_of_inner_orders_claims_an_order(inner, p, stages, verdict):
    first, second = describe_headline(rows(inner, p), stages)
    assert "without the ends of the axis" in first
    assert "random orders 0.00" in first
    assert verdict in first
    assert "permuted labels 0.01" in second
    assert "the stages differ" in second
    assert "says nothing about their order" in second


def test_stages_that_do_not_differ_are_called_so():
    row = make_row(ORDER, value=0.2, null=0.01, p=0.3, **PLACE)
    assert "no evidence that stages differ" in describe_headline([row], 6)[0]


def test_the_demo_prints_the_values_of_its_documented_run():
    """The constants are the rounded values of docs/study-results/demo-seed-1."""
    folder = Path(__file__).parents[4] / "docs" / "study-results" / "demo-seed-1"
    rows = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    documented = {row["name"]: (row["value"], row["low"], row["high"]) for row in rows}
    for name, values in DEMO_RESULTS.items():
        assert values == pytest.approx(documented[name], abs=0.0051), name
    lines = compare_with_documented(rows, 1)
    assert len(lines) == 1 + len(DEMO_RESULTS)
    assert "documented 0.70 (0.66 to 0.73)" in lines[2] + lines[3]
    assert "seed 1, so other entities" in compare_with_documented(rows, 2)[0]
