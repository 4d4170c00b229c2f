"""Rows and sentence of the self-report, from planted answers."""

import numpy as np
import pytest

from stratalens.plugin.study.findings.self_report import describe_self_report, self_report_rows


def planted(true, shuffled, untrained, n=200):
    """Make answers that are right with these probabilities."""
    random = np.random.default_rng(0)
    group = np.arange(n) % 2

    def answers(share):
        right = random.random(n) < share
        score = np.where(right, 1.0, -1.0) * np.where(group == 1, 1, -1)
        return [{"entity_id": str(i), "group": int(group[i]), "score": float(score[i])} for i in range(n)]

    conditions = {"true": answers(true), "shuffled": answers(shuffled), "untrained": answers(untrained)}
    return {"stage": "s6", "groups": ["s1", "s6"], "conditions": conditions}


@pytest.mark.parametrize(
    ("chances", "verdict"),
    [
        ((0.8, 0.5, 0.5), "can be taught to report"),
        ((0.8, 0.5, 0.8), "not distinguishable from its controls"),
        ((0.5, 0.5, 0.5), "not distinguishable from chance"),
    ],
)
def test_rows_and_sentence_follow_from_the_answers(chances, verdict):
    report = planted(*chances)
    rows = self_report_rows(report, seed=0)
    for row, chance in zip(rows, chances, strict=True):
        assert row["value"] == pytest.approx(chance, abs=0.1)
        assert row["low"] < row["value"] < row["high"]
        assert row["null"] == pytest.approx(0.5, abs=0.02)
    assert (rows[0]["p"] < 0.01) == (chances[0] > 0.6)
    assert verdict in describe_self_report(rows, report["groups"])
