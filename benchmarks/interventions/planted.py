"""Count how often a causal and a merely correlated direction are distinguished on planted models.

    python -m benchmarks.interventions.planted [SEEDS] [FIRST]

Not part of the suite of benchmarks. A seed counts as right if the verdict claims an effect of the causal direction and
none of the correlated one; both directions give the label of every prompt. The model was made with seeds 0 to 9;
the count begins at seed 100.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import stratalens as sl

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.planted_model import Planted, axes, decoding, options, prompts, tokenizer

CLAIM = "depends on this direction"


def right_answer(logits: torch.Tensor, batch: object) -> torch.Tensor:
    """Logit of the right answer minus that of the wrong one, at the last token of each prompt."""
    last = logits[torch.arange(len(logits)), torch.from_numpy(batch.lengths - 1)]  # type: ignore[attr-defined]
    (yes,), (no,) = (tokenizer()(text).input_ids for text in "yn")
    labels = batch.table.labels()["label"][batch.rows]  # type: ignore[attr-defined]
    return torch.from_numpy(np.where(labels == "plus", 1.0, -1.0)) * (last[:, yes] - last[:, no])


def main(seeds: int, first: int) -> None:
    right = {"steer": 0, "ablate": 0}
    wrong: list[str] = []
    left: dict[str, list[float]] = {"causal": [], "correlated": []}
    for seed in range(first, first + seeds):
        model, table = Planted(seed).eval(), prompts(seed)
        assert (decoding(model, table) == 1).all()
        directions = sl.directions(axes(model), site="layers.{layer}.hook_state").sel(layer=1)
        for kind, outcome in (("steer", "answer_difference"), ("ablate", right_answer)):
            result = sl.intervene(model, table, directions, kind, outcome=outcome, **options())  # type: ignore[arg-type]
            claims = [CLAIM in sentence for sentence in result.attrs["verdict"].split("\n")]
            right[kind] += claims == [True, False]
            if claims != [True, False]:
                wrong.append(f"seed {seed}, {kind}: {result.attrs['verdict']}")
            if kind == "ablate":
                share = (result.outcome.squeeze().mean("entity") / result.clean.mean()).values
                left["causal"].append(abs(float(share[0])))
                left["correlated"].append(float(share[1]))
    print("\n".join(wrong))
    print(f"distinguished: {right['steer']} of {seeds} by steering, {right['ablate']} of {seeds} by ablation")
    removed, intact = max(left["causal"]), min(left["correlated"])
    print(f"behaviour left: at most {removed:.3f} with the causal one ablated, at least {intact:.3f} with the other")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 100)
