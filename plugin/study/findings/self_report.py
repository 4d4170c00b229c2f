"""Accuracy of the self-report on entities that it was not taught, compared with chance and both controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratalens.analyses.stats.permutation import permuted_labels
from stratalens.plugin.study.config.settings import UNTRAINED
from stratalens.plugin.study.findings.headline import Row, format_estimate, format_p, share_row

PERMUTATIONS = 1000
CONDITIONS = {  # condition -> end of the name of its row
    "true": "",
    "shuffled": ", fine-tuned on shuffled labels",
    "untrained": ", fine-tuned from the untrained model",
}


def self_report_rows(report: Mapping[str, Any], seed: int) -> list[Row]:
    """Make a row of the accuracy under each condition, with a permutation null.

    Args:
        report: the contents of self-report.json.
        seed: seed of resamples and permutations.
    """
    rows = []
    for condition, suffix in CONDITIONS.items():
        answers = report["conditions"][condition]
        group = np.array([answer["group"] for answer in answers])
        said = np.array([answer["score"] > 0 for answer in answers]).astype(int)
        right = (said == group).astype(float)
        null = (permuted_labels(group, PERMUTATIONS, np.random.default_rng(seed)) == said).mean(axis=1)
        stage = UNTRAINED if condition == "untrained" else report["stage"]
        rows.append(share_row(f"self-report accuracy{suffix}", right, null, seed=seed, strata=group, stage=stage))
    return rows


def describe_self_report(rows: Sequence[Row], groups: Sequence[str]) -> str:
    """Describe the rows in a sentence; an effect must exceed chance and both controls.

    Args:
        rows: the rows of the three conditions.
        groups: the two stages.
    """
    true, shuffled, untrained = rows
    above_chance = true["low"] > true["null"] and true["p"] < 0.05
    if above_chance and true["low"] > max(shuffled["high"], untrained["high"]):
        verdict = "the model can be taught to report when it learned an entity"
    elif above_chance:
        verdict = "above chance, but not distinguishable from its controls"
    else:
        verdict = "not distinguishable from chance"
    first, second = groups
    return (
        f"Self-report: the model learned for some entities whether they are of the group of {first} or of {second}, "
        f"and was asked about {true['n']} others. Its accuracy is {format_estimate(true)}, permuted labels "
        f"{true['null']:z.2f}, {format_p(true)}. The same fine-tuning gives {format_estimate(shuffled)} on shuffled "
        f"labels and {format_estimate(untrained)} from the untrained model. Result: {verdict}."
    )
