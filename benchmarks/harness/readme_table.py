"""Write the README's table of speeds: six tasks against what people use for them, won and lost."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.document import shown

BEGIN, END = "<!-- speed: made by benchmarks/harness/page.py -->", "<!-- /speed -->"

# (task, what people use for it, benchmark, text of the target, whether the ratio is one of speeds or of times).
CHOSEN = [
    (
        "fit 900 probes with five folds, SmolLM2's activations",
        "scikit-learn, lbfgs, float32, one of the two cores",
        "analyses_probes",
        "speed of logistic relative to the tuned loop, real activations",
        "speed",
    ),
    (
        "the same on random features",
        "scikit-learn, lbfgs, float32, one of the two cores",
        "analyses_probes",
        "speed of logistic relative to the tuned loop, gaussian activations",
        "speed",
    ),
    (
        "record 30 layers of 256 prompts, no statistics",
        "`run_with_cache` as in tutorials, `np.save`",
        "capture_overhead",
        "capture, statistics off, relative to run_with_cache and np.save, wall seconds",
        "time",
    ),
    (
        "record 30 layers of 64 prompts, no statistics",
        "transformers' hidden states, `np.memmap`",
        "capture_peers",
        "two positions: seconds of stratalens (no statistics) relative to output_hidden_states, np.memmap",
        "time",
    ),
    (
        "read a layer, every byte verified",
        "TensorStore",
        "store_read",
        "speed of verified reading of a layer relative to TensorStore",
        "speed",
    ),
    (
        "write activations from an array",
        "TensorStore",
        "store_write",
        "writing speed from an array relative to TensorStore, memory",
        "speed",
    ),
]


def table(documents: list[dict[str, Any]]) -> str:
    """Return the chosen targets as a Markdown table."""
    targets = {(d["name"], target["text"]): target for d in documents for target in d["aims"]}
    rows = ["| task | compared with | stratalens |", "|---|---|---|"]
    for task, peer, name, text, kind in CHOSEN:
        words = "times as fast" if kind == "speed" else "times as long"
        value, _, spread = shown(targets[name, text]["value"]).partition(" ")
        rows.append(f"| {task} | {peer} | {value} {words} {spread} |")
    return "\n".join(rows)


def put(text: str, documents: list[dict[str, Any]]) -> str:
    """Return the README with the table between its two marks.

    Raises:
        SystemExit: The README does not have exactly one pair of marks.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"the README needs one pair of {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(documents)}\n{END}{rest.split(END)[1]}"
