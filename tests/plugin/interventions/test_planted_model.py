"""A causal and a merely correlated direction for the same label are distinguished on every seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stratalens as sl
from support import planted_model
from support.planted_model import Planted, axes, decoding, options, prompts

SEEDS = range(10)  # benchmarks/interventions/planted.py runs 100


def verdicts(seed: int, kind: Any) -> tuple[Any, dict[str, bool]]:
    model, table = Planted(seed).eval(), prompts(seed)
    assert decoding(model, table).tolist() == [[1, 1], [1, 1]]  # both directions give the label of every prompt
    directions = sl.directions(axes(model), site="layers.{layer}.hook_state")
    outcome = "answer_difference" if kind == "steer" else right_answer
    result = sl.intervene(model, table, directions.sel(layer=1), kind, outcome=outcome, **options())
    sentences = result.attrs["verdict"].split("\n")
    return result, {
        name: "depends on this direction" in sentence
        for name, sentence in zip(("causal", "correlated"), sentences, strict=True)
    }


def right_answer(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    """Difference between the logits of the right and the wrong answer: the behaviour."""
    last = logits[torch.arange(len(logits)), torch.from_numpy(batch.lengths - 1)]
    (yes,), (no,) = (planted_model.tokenizer()(text).input_ids for text in "yn")
    sign = torch.from_numpy(np.where(batch.table.labels()["label"][batch.rows] == "plus", 1.0, -1.0))
    return sign * (last[:, yes] - last[:, no])


@pytest.mark.parametrize("seed", SEEDS)
def test_steering(seed: int) -> None:
    result, verdict = verdicts(seed, "steer")
    assert verdict == {"causal": True, "correlated": False}
    assert float(result.slope_low.sel(direction="causal").squeeze()) > 0
    assert float(result.slope_p.sel(direction="causal").squeeze()) == pytest.approx(1 / 21)
    assert float(result.p_max.sel(direction="correlated").squeeze()) > 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_ablation_removes_the_behaviour(seed: int) -> None:
    result, verdict = verdicts(seed, "ablate")
    assert verdict == {"causal": True, "correlated": False}
    left = result.outcome.squeeze().mean("entity") / result.clean.mean()
    assert abs(float(left.sel(direction="causal"))) < 0.25
    assert float(left.sel(direction="correlated")) > 0.95
