"""Compare stratalens with other tools for recording the residual stream of all blocks.

SmolLM2-135M with the same weights (a folder of float32 safetensors), token ids, batches and padding for all methods,
float32 compute, float16 on the disk, fsync included. The settings record the last token, two named positions, or all
tokens of each prompt. Each method runs in one process for each round. The process loads the model, warms up, and then
runs each setting once. The order of the methods is different in every round. Peak memory is that of the run, from the
loaded model on; *added* is its rise during the run. Memory maps of files count while they are dirty. The script reads
the files of each method back and compares their values with ours. It then kills each method before its last batches
and starts it again on the same files. A method is resumable if the second start needs fewer forward passes.

The baseline is the forward pass alone: transformers, no logits, no files and no hooks. *Hooked forward pass only* is
the same pass through TransformerLens's bridge. stratalens and every run_with_cache include its cost; transformers and
nnsight do not. A method requests logits at one token where it can (lmprobe cannot). `capture_overhead` compares at more
prompts, where the constant cost of a job (the fingerprint of the weights, a first pass over a few tokens) matters less.
For all tokens, stratalens, lmprobe and SAELens store every row as long as the longest; the others store no padding.
SAELens needs TransformerLens below 4 and therefore its own environment (`make .venv-saelens/.peers`). nnsight and
lmprobe come from constraints/bench.txt.

    python -m benchmarks.capture.peers [FOLDER] [--prompts 64] [--rounds 3] [--saelens PYTHON]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.document import Column, Report, Table, arguments, parse, spread
from benchmarks.harness.measure import ROOT, Timing, versions_of
from benchmarks.peers.method import Method
from benchmarks.peers.workload import SETTINGS, Workload

TITLE, THEME = "Recording activations, compared with other methods", "Capture"
MODULES = ("plain", "ours", "hooked", "traced", "probed", "sae")
OURS = ("stratalens", "stratalens, all statistics")
BASELINE = "forward pass only"
QUICK = [
    "Forward", "HookedForward", "Capture", "CaptureWithStatistics", "HiddenStates", "RunWithCacheMemmap", "Trace",
    "Warmup", "HookedOneLayer",
]  # fmt: skip


class Runs:
    """Worker processes of all methods and their results."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.methods: dict[str, tuple[str, type[Method]]] = {}
        self.missing: dict[str, str] = {}
        for module in MODULES:
            for kind in importlib.import_module(f"benchmarks.peers.{module}").METHODS:
                if options.methods is None or kind.__name__ in options.methods or kind.name == BASELINE:
                    self.methods[kind.name] = (module, kind)
        for name, (module, kind) in list(self.methods.items()):
            if why := self.missing_requirement(module, kind):
                self.missing[name] = why
                del self.methods[name]

    def python(self, module: str) -> str:
        """Return the interpreter of a method's environment."""
        return str(self.options.saelens) if module == "sae" else sys.executable

    def missing_requirement(self, module: str, kind: type[Method]) -> str | None:
        """Return the reason why a method cannot run on this machine, or None."""
        if module == "sae":
            there = self.options.saelens.exists()
            return None if there else "its environment is missing: make .venv-saelens/.peers"
        absent = [n for n, v in versions_of(*kind.packages).items() if v == "not installed" and n != "stratalens"]
        return f"not installed: {', '.join(absent)}" if absent else None

    def run_worker(self, name: str, *rest: str) -> tuple[dict[str, Any] | None, str]:
        """Run one worker; return its measurements or None, and the last line of its errors."""
        module, kind = self.methods[name]
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        command = [
            self.python(module),
            "-m",
            "benchmarks.peers.worker",
            module,
            kind.__name__,
            str(self.folder),
            str(result),
        ]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        defaults = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        around = defaults | os.environ | {"PYTHONPATH": path}
        done = subprocess.run([*command, *rest], env=around, capture_output=True, text=True, check=False)
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"status {done.returncode}")
        results = json.loads(result.read_text()) if result.exists() else None
        return results, last.replace(str(self.folder), "").strip()

    def version(self, name: str) -> str:
        """Return the version of the compared library in its own environment."""
        module, kind = self.methods[name]
        code = f"from importlib.metadata import version; print(version({kind.packages[0]!r}))"
        done = subprocess.run([self.python(module), "-c", code], capture_output=True, text=True, check=False)
        return f"{kind.packages[0]} {done.stdout.strip()}"


def measure(runs: Runs) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the results by setting, method and round; failed methods go to `runs.missing` with their error."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {
        s: {n: [] for n in runs.methods} for s in runs.options.settings
    }
    reference = runs.folder / "reference"
    reference.mkdir()
    dice = random.Random(0)
    for turn in range(runs.options.rounds):
        order = list(runs.methods)
        dice.shuffle(order)
        if turn == 0:  # ours runs first, because the others are compared with it
            order.sort(key=lambda name: name != OURS[0])
        for name in order:
            keep = ["--keep"] if turn == 0 and name == OURS[0] else []
            settings = ",".join(runs.options.settings)
            answer, error = runs.run_worker(name, "--settings", settings, "--reference", str(reference), *keep)
            if answer is None:
                runs.missing[name] = error
                del runs.methods[name]
                continue
            seconds = ", ".join(f"{s} {v['wall']:.2f} s" for s, v in answer.items() if "wall" in v)
            print(f"  round {turn + 1}: {name}: {seconds}", file=sys.stderr, flush=True)
            for setting, facts in answer.items():
                results[setting][name].append(facts)
    return results


def resumes(runs: Runs, name: str) -> str:
    """Kill a method before its last two forward passes, start it again, and count the passes of the second start."""
    reference = runs.folder / "reference-resume"
    reference.mkdir(exist_ok=True)
    options = ["--workload", "resume", "--settings", "all", "--reference", str(reference), "--into"]
    keep = ["--keep"] if name == OURS[0] else []
    folders = [Path(tempfile.mkdtemp(dir=runs.folder)) for _ in range(2)]
    try:
        whole, error = runs.run_worker(name, *options, str(folders[0]), *keep)
        if whole is None or "forwards" not in whole["all"]:
            return f"not tested: {error}"
        count = whole["all"]["forwards"]
        killed, _ = runs.run_worker(name, *options, str(folders[1]), "--kill", str(count - 1))  # passes count from 1
        assert killed is None, f"{name} was not killed"
        again, error = runs.run_worker(name, *options, str(folders[1]))
        if again is None:
            return f"no: {error}"
        second, gap = again["all"]["forwards"], again["all"].get("difference", 0.0)
        if gap > 1:
            return f"no: the second start leaves wrong values, with differences up to {gap:.3g}"
        return f"{'yes' if second < count else 'no'}: {second} of {count} forward passes run again"
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def tables(report: Report, runs: Runs, results: dict[str, dict[str, list[dict[str, Any]]]], workload: Workload) -> None:
    """Add one table for each setting."""
    for setting, by_way in results.items():
        measured = {n: f for n, f in by_way.items() if n in runs.methods and f and "wall" in f[0]}
        cannot = {n: f[0]["missing"] for n, f in by_way.items() if n in runs.methods and f and "missing" in f[0]}
        labels = ("peak memory [MiB]", "added [MiB]", "on the disk [MB]", "files", "largest difference to ours")
        columns = [
            {n: spread([r["peak"] for r in f]) for n, f in measured.items()},
            {n: spread([r["peak"] - r["loaded"] for r in f]) for n, f in measured.items()},
            {n: f[0]["bytes"] / 1e6 for n, f in measured.items()},
            {n: f[0]["files"] for n, f in measured.items()},
            {n: gap(f[0]) for n, f in measured.items()},
        ]
        cells = dict(zip(labels, columns, strict=True))
        timings = {n: [Timing(r["wall"], r["cpu"]) for r in f] for n, f in measured.items()}
        report.timings(
            setting, f"{SETTINGS[setting]}: {workload.total(setting) * workload.layers:,} vectors", timings, BASELINE,
            ours=[n for n in OURS if n in timings], extra=cells, missing=runs.missing | cannot,
            note="SAELens: one pass for each layer, times and bytes of all layers scaled up from three of them"
            if setting == "all" else "",
        )  # fmt: skip
        for peer in ("run_with_cache, np.memmap", "output_hidden_states, np.memmap"):
            if peer in timings and OURS[0] in timings:
                pairs = zip(timings[OURS[0]], timings[peer], strict=True)
                report.target(
                    f"{SETTINGS[setting]}: seconds of stratalens (no statistics) relative to {peer}",
                    [a.wall / b.wall for a, b in pairs], at_most=1.0,
                )  # fmt: skip


def gap(facts: dict[str, Any]) -> str:
    """Return the largest difference as a cell."""
    if "difference" not in facts:
        return ""
    return f"{facts['difference']:.3g} ({facts['compared']} layers)"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument(
        "--methods", nargs="+", metavar="CLASS", help="run only these methods (names of classes in benchmarks/peers)"
    )
    parser.add_argument("--saelens", type=Path, default=ROOT / ".venv-saelens" / "bin" / "python")
    parser.add_argument("--no-resume", action="store_true", help="skip the test that kills and restarts methods")
    options = parse(
        parser,
        quick={"prompts": 8, "batch": 4, "rounds": 1, "settings": ["two", "all"], "methods": QUICK, "no_resume": True},
    )
    folder = Path(tempfile.mkdtemp(prefix="peers-", dir=options.folder))
    packages = ("torch", "transformers", "transformer-lens", "nnsight", "lmprobe", "datasets", "safetensors")
    try:
        with Report(__file__, options, *packages, folders=[folder]) as report:
            from benchmarks.peers.make import make_model, make_workload
            from stratalens.store.errors import InputError

            try:
                make_model(folder / "model", None)
            except InputError as error:
                report.skip(str(error))
                return
            part = max(options.batch, options.prompts // 4)
            whole = options.prompts
            make_workload(folder / "main", whole, options.batch, {"last": whole, "two": whole, "all": part})
            make_workload(folder / "warm", 2, 2, dict.fromkeys(SETTINGS, 2))
            make_workload(folder / "resume", 32, 4, dict.fromkeys(SETTINGS, 8))  # four blocks of two batches
            workload = Workload(folder / "main")
            runs = Runs(folder, options)
            tokens = int(workload.lengths.sum())
            sizes = f"{workload.layers} blocks of {workload.width}"
            report.note(f"{whole} prompts, {tokens} tokens, batches of {options.batch}, {sizes}")
            results = measure(runs)
            tables(report, runs, results, workload)
            files = Table("files", "Resuming and selecting", [
                Column("name", ""), Column("version", "version"), Column("resumable", "killed and started again"),
                Column("selects", "selections without reading more"),
            ], ours=list(OURS))  # fmt: skip
            writing = sorted((n for n in runs.methods if runs.methods[n][1].writes), key=lambda name: name != OURS[0])
            for name in writing:  # ours runs first: the others' second start is compared with its values
                again = "not tested" if options.no_resume else resumes(runs, name)
                files.add(name=name, version=runs.version(name), resumable=again, selects=runs.methods[name][1].selects)
            report.add(files)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
