"""Measure training steps while waiting OpenMP threads spin (the default) or sleep, with and without other processes.

A tiny Llama-shaped model takes gradient steps in its own process, once alone and once together with processes that keep
every core busy. OMP_WAIT_POLICY is unset and PASSIVE in turn. The command line sets PASSIVE.

    python -m benchmarks.capture.waiting_threads [--steps 5] [--rounds 3]

Not part of the suite: it keeps every core busy on purpose, and its result is one line of the command line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks.harness.measure import describe, module_of

BUSY = "while True: pass"


def steps(count: int) -> None:
    """Print the median seconds of a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
        num_key_value_heads=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.randint(1000, (16, 20))
    seconds = []
    for _ in range(count + 1):
        began = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    print(statistics.median(seconds[1:]))


def measure(count: int, policy: str | None, company: int) -> float:
    """Return the seconds of a step in a fresh process next to `company` busy processes."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(company)]
    try:
        command = [sys.executable, "-m", module_of(__file__), "--alone", "--steps", str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        steps(options.steps)
        return
    print(describe("torch", "transformers"))
    seconds: dict[tuple[int, str], list[float]] = {}
    cores = os.cpu_count() or 1
    for _ in range(options.rounds):
        for company in (0, 1, cores):
            for policy in (None, "PASSIVE"):
                seconds.setdefault((company, policy or "unset"), []).append(measure(options.steps, policy, company))
    print(f"{'busy processes':>15}{'OMP_WAIT_POLICY':>17}   seconds a step: median (min .. max)")
    for (company, policy), values in seconds.items():
        print(f"{company:>15}{policy:>17}   {statistics.median(values):.3f} ({min(values):.3f} .. {max(values):.3f})")
    for company in (0, 1, cores):
        ratio = [a / b for a, b in zip(seconds[company, "unset"], seconds[company, "PASSIVE"], strict=True)]
        print(f"{company} busy processes: unset takes {statistics.median(ratio):.2f} times as long as PASSIVE")


if __name__ == "__main__":
    main()
