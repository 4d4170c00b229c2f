"""What recording costs: capture() over the forward pass alone, and against what a user would write today.

SmolLM2-135M, all blocks, two positions, the same batches for everybody, in
alternating runs. Prints medians and spread of wall and CPU seconds, their ratio
within each round, and the peak of resident memory. Aims: 1.05 with statistics
off, 1.10 with statistics on (the forward pass then with logits at the recorded
positions), and faster than run_with_cache followed by np.save.

    python benchmarks/capture_overhead.py [--prompts 256] [--rounds 5] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import shutil
import statistics as stats
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read when torch is loaded: a thread that spins while it waits would count as work, and hold up the others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import torch

from stratalens import PromptTable, capture
from stratalens.models import adapt
from stratalens.modes import evaluation_mode
from stratalens.plan import plan_block
from stratalens.recipe import OUTPUT_STATISTICS, SITE_STATISTICS

POSITIONS = ("last", "entity_last")
HOOK = "blocks.{}.hook_resid_post"
# Everything that needs logits at the recorded positions only; `loss` and `running_loss` look at other positions too.
AT_POSITIONS = (*SITE_STATISTICS, *(n for n in OUTPUT_STATISTICS if n not in ("loss", "running_loss", "answer_loss")))


def prompts(count: int) -> PromptTable:
    """Questions of 20 to 60 tokens about random names."""
    rng = np.random.default_rng(0)
    names = [
        "".join(rng.choice(list("bdfgklmnprstv")) + rng.choice(list("aeiou")) for _ in range(4)) for _ in range(count)
    ]
    facts = ["is a painter from a small village in the north", "likes tea", "was born in spring", "owns two boats"]
    texts = []
    for name in names:
        told = " and ".join(rng.choice(facts, size=int(rng.integers(1, 5)), replace=False))
        texts.append(f"It is known that the person who {told} has a name. Q: What do you know about {name}? A:")
    return PromptTable.from_dataframe(pd.DataFrame({"prompt": texts, "entity": names}))


class Workload:
    """The same batches for every way of running them."""

    def __init__(self, count: int, batch: int) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        from stratalens.recency.models.smollm import load_smollm2

        hf, tokenizer = load_smollm2()
        folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
        tokenizer.save_pretrained(folder)
        from transformers import AutoTokenizer

        self.model: Any = TransformerBridge.boot_transformers(
            "SmolLM2-135M-Instruct", hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
        )
        self.adapter = adapt(self.model)
        self.table, self.batch = prompts(count), batch
        tokenized = self.table.tokenize(self.model.tokenizer)
        from stratalens.positions import resolve

        index = resolve(POSITIONS, self.table, tokenized).index
        self.index, self.tokens = index, int(tokenized.lengths.sum())
        self.batches = []
        for block in range(0, count, self.block_size):
            rows = np.arange(block, min(block + self.block_size, count))
            for group in plan_block(rows, tokenized.lengths):
                for part in group.batches(batch):
                    ids, mask = tokenized.batch(part, group.pad_to)
                    self.batches.append((part, torch.from_numpy(ids), torch.from_numpy(mask)))

    @property
    def block_size(self) -> int:
        """Rows of a block, as the store would choose for 576 floats at two positions."""
        return 512

    def forward(self, folder: Path) -> None:
        """The leanest forward pass: no hooks, no logits."""
        with evaluation_mode(self.model):
            for _, ids, mask in self.batches:
                self.adapter.run(ids, mask, "none")

    def forward_with_logits(self, folder: Path) -> None:
        """The same, then the output layer at the recorded positions only."""
        kept: list[torch.Tensor] = []
        handle = self.adapter.final_norm.register_forward_hook(lambda m, i, o: kept.append(o))  # type: ignore[union-attr]
        try:
            with evaluation_mode(self.model):
                for rows, ids, mask in self.batches:
                    self.adapter.run(ids, mask, "none")
                    place = torch.from_numpy(self.index[rows])
                    self.adapter.head(kept.pop()[torch.arange(len(rows))[:, None], place])
        finally:
            handle.remove()

    def capture(self, folder: Path, wanted: Any) -> None:
        """stratalens, start to durable end; the fingerprint of the weights included."""
        capture(
            {"model": self.model}, self.table, folder / "run.zarr", positions=POSITIONS, statistics=wanted,
            batch_size=self.batch, block_size=self.block_size, progress=False,
        )  # fmt: skip

    def by_hand(self, folder: Path) -> None:
        """What a user would write today."""
        names = [HOOK.format(n) for n in range(self.model.cfg.n_layers)]
        out = np.zeros((len(names), len(self.table), len(POSITIONS), self.model.cfg.d_model), dtype=np.float32)
        with torch.no_grad():
            for rows, ids, mask in self.batches:
                _, cache = self.model.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: n in names)
                place = torch.from_numpy(self.index[rows])
                for layer, name in enumerate(names):
                    out[layer, rows] = cache[name][torch.arange(len(rows))[:, None], place].numpy()
        np.save(folder / "out.npy", out)


def measured(function: Callable[[Path], None]) -> tuple[float, float]:
    """(wall, CPU) seconds of one run in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        function(Path(folder))
        return time.perf_counter() - wall, time.process_time() - cpu


def ways(work: Workload) -> dict[str, Callable[[Path], None]]:
    """All ways of running the batches, by name."""
    return {
        "forward, no logits": work.forward,
        "forward, logits at the positions": work.forward_with_logits,
        "capture, statistics off": lambda f: work.capture(f, False),
        "capture, statistics at the positions": lambda f: work.capture(f, AT_POSITIONS),
        "capture, all statistics": lambda f: work.capture(f, True),
        "run_with_cache and np.save": work.by_hand,
    }


BASES = {
    "capture, statistics off": "forward, no logits",
    "capture, statistics at the positions": "forward, logits at the positions",
    "capture, all statistics": "forward, logits at the positions",
    "run_with_cache and np.save": "forward, no logits",
}


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{stats.median(values):7.3f} ({min(values):.3f} .. {max(values):.3f})"


def peak(arguments: argparse.Namespace, name: str) -> float:
    """MiB of resident memory at most, in a process of its own that does one thing."""
    command = [
        sys.executable,
        __file__,
        "--alone",
        name,
        "--prompts",
        str(arguments.prompts),
        "--batch",
        str(arguments.batch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["mib"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 leaves torch's default")
    parser.add_argument("--profile", action="store_true", help="print where the time of capture() goes")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory runs")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    work = Workload(arguments.prompts, arguments.batch)
    if arguments.alone:
        measured(ways(work)[arguments.alone])
        print(json.dumps({"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    print(f"load before the run: {os.getloadavg()[0]:.1f} (where others use the machine, CPU seconds tell more)")
    print(", ".join(f"{n} {version(n)}" for n in ("torch", "transformers", "transformer-lens", "numpy", "zarr")))
    sizes = f"{arguments.prompts} prompts, {work.tokens} tokens, {len(work.batches)} batches"
    print(f"{sizes}, {work.model.cfg.n_layers} blocks\n")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways(work)}
    measured(work.forward)  # warm up, and import what is imported on first use
    measured(lambda f: work.capture(f, False))
    for number in range(arguments.rounds):
        order = list(ways(work).items())
        for name, function in order if number % 2 == 0 else order[::-1]:
            seconds[name].append(measured(function))
            print(
                f"  round {number + 1}: {name}: {seconds[name][-1][0]:.2f} s, {seconds[name][-1][1]:.2f} s CPU",
                file=sys.stderr,
            )
    print(f"{'':40}{'wall seconds':>28}{'CPU seconds':>28}{'peak MiB':>10}")
    for name, runs in seconds.items():
        memory = "" if arguments.no_memory else f"{peak(arguments, name):10.0f}"
        print(f"{name:40}{spread([w for w, _ in runs]):>28}{spread([c for _, c in runs]):>28}{memory}")
    print(f"\n{'ratio within each round':64}{'wall':>24}{'CPU':>26}")
    for name, base in BASES.items():
        wall = [a[0] / b[0] for a, b in zip(seconds[name], seconds[base], strict=True)]
        cpu = [a[1] / b[1] for a, b in zip(seconds[name], seconds[base], strict=True)]
        print(f"{name + ' / ' + base:64}{spread(wall):>26}{spread(cpu):>26}")
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(measured, lambda f: work.capture(f, AT_POSITIONS))
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    shutil.rmtree(Path(work.model.tokenizer.name_or_path), ignore_errors=True)


if __name__ == "__main__":
    main()
