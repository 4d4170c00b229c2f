"""What the self-report says: accuracy on entities that were not taught, beside chance and both controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratalens.analyses.stats.bootstrap import cluster_bootstrap, p_value, permuted_labels
from stratalens.plugin.study.config.settings import UNTRAINED
from stratalens.plugin.study.findings.headline import Row

PERMUTATIONS = 1000


CONDITIONS = {  # name -> what it is, in words, for the name of its row
    "true": "",
    "shuffled": ", fine-tuned on shuffled labels",
    "untrained": ", fine-tuned from the untrained model",
}


def self_report_rows(found: Mapping[str, Any], seed: int) -> list[Row]:
    """Accuracy on entities that were not taught, each condition with interval, permutation null and n."""
    rows = []
    for condition, words in CONDITIONS.items():
        answers = found["conditions"][condition]
        group = np.array([a["group"] for a in answers])
        says = np.array([a["score"] > 0 for a in answers]).astype(int)
        right = (says == group).astype(float)
        low, high = cluster_bootstrap(right, np.arange(len(right)), strata=group, seed=seed, bounds=(0, 1))
        null = (permuted_labels(group, PERMUTATIONS, np.random.default_rng(seed)) == says).mean(axis=1)
        rows.append(
            {
                "name": f"self-report accuracy{words}",
                "stage": UNTRAINED if condition == "untrained" else found["stage"],
                "layer": None,
                "token": None,
                "value": float(right.mean()),
                "low": float(low),
                "high": float(high),
                "null": float(null.mean()),
                "p": float(p_value(null, np.array(right.mean()))),
                "n": len(right),
                "site": None,
            }
        )
    return rows


def describe_self_report(rows: Sequence[Row], groups: Sequence[str]) -> str:
    """What the rows say, in a sentence; an effect needs to be told from chance and from both controls."""
    true, shuffled, untrained = rows
    beaten = true["low"] > max(true["null"], shuffled["high"], untrained["high"])
    verdict = (
        "the model can be taught to report when it learned an entity"
        if beaten and true["p"] < 0.05
        else "above chance, but not told from its controls"
        if true["low"] > true["null"] and true["p"] < 0.05
        else "this is not told from chance"
    )
    first, second = groups
    return (
        f"Self-report: asked whether an entity is of the group of {first} or of {second}, after being told so for "
        f"other entities, the model is right for {_share(true)} of {true['n']} entities (permuted labels "
        f"{true['null']:z.2f}, p = {true['p']:z.3f}); with the same fine-tuning on shuffled labels {_share(shuffled)}, "
        f"from the untrained model {_share(untrained)}: {verdict}."
    )


def _share(row: Row) -> str:
    return f"{row['value']:z.2f} (95 % interval {row['low']:z.2f} to {row['high']:z.2f})"
