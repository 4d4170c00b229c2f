"""Write the README's table of speeds: a selection of the targets, met and missed, in plain words."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.document import shown

BEGIN, END = "<!-- speed: made by benchmarks/harness/page.py -->", "<!-- /speed -->"

# (words, benchmark, text of the target). The first quantity named is the numerator of the ratio.
CHOSEN = [
    (
        "logistic probes, 30 layers x 2 tokens x 15 pairs x 6 fits, real activations, two cores: speed relative to "
        "scikit-learn's lbfgs in float32 on one core",
        "analyses_probes",
        "speed of logistic relative to the tuned loop, real activations",
    ),
    (
        "the same on Gaussian features: speed relative to scikit-learn",
        "analyses_probes",
        "speed of logistic relative to the tuned loop, gaussian activations",
    ),
    (
        "logistic probes on real activations: CPU time of scikit-learn's Newton solver in float64 relative to ours",
        "analyses_probes",
        "CPU seconds of the newton loop relative to logistic, real activations",
    ),
    (
        "ridge probes: CPU time of RidgeClassifier in a loop relative to ours",
        "analyses_probes",
        "CPU seconds of the ridge loop relative to ridge, real activations",
    ),
    (
        "recording SmolLM2's 30 layers at two positions of 256 prompts with every statistic (the default): time "
        "relative to a forward pass with logits at every token, which these statistics need",
        "capture_overhead",
        "capture, all statistics, relative to forward, logits at every token, wall seconds",
    ),
    (
        "256 prompts without statistics: time relative to the forward pass without logits",
        "capture_alone",
        "recording 256 prompts relative to their forward pass, wall seconds",
    ),
    (
        "64 prompts without statistics, a short job: time relative to the forward pass without logits",
        "capture_alone",
        "recording 64 prompts relative to their forward pass, wall seconds",
    ),
    (
        "256 prompts without statistics: time relative to `run_with_cache` as in the tutorials (logits at every token) "
        "and `np.save`",
        "capture_overhead",
        "capture, statistics off, relative to run_with_cache and np.save, wall seconds",
    ),
    (
        "256 prompts without statistics: time relative to `run_with_cache` with one token's logits, float16 and fsync",
        "capture_overhead",
        "capture, statistics off, relative to run_with_cache and np.save, lean, wall seconds",
    ),
    (
        "64 prompts without statistics: time relative to the same `run_with_cache` into `np.memmap`",
        "capture_peers",
        "two positions: seconds of stratalens (no statistics) relative to run_with_cache, np.memmap",
    ),
    (
        "64 prompts without statistics: time relative to transformers' hidden states without any hooks",
        "capture_peers",
        "two positions: seconds of stratalens (no statistics) relative to output_hidden_states, np.memmap",
    ),
    (
        "writing values that are already in our buffers: speed relative to TensorStore from an array",
        "store_write",
        "writing speed relative to TensorStore, memory",
    ),
    (
        "writing from an array: speed relative to TensorStore",
        "store_write",
        "writing speed from an array relative to TensorStore, memory",
    ),
    (
        "reading a layer without dask, every byte verified: speed relative to a single pass over the same bytes with "
        "crc32c",
        "store_read",
        "speed of verified reading of a layer relative to a single pass, stratalens, chunks=None",
    ),
    (
        "the same through dask, the default of `open_store`: speed relative to the single pass",
        "store_read",
        "speed of verified reading of a layer relative to a single pass, stratalens",
    ),
    (
        "reading a layer without dask: speed relative to TensorStore",
        "store_read",
        "speed of verified reading of a layer relative to TensorStore",
    ),
    (
        "one entity over 16 layers, its chunks verified before: time relative to reading as many bytes in sequence "
        "(the store is optimized for reading layers)",
        "store_read",
        "time of one entity over all layers (16 layers x 2048) relative to reading as many bytes: stratalens, "
        "chunks=None, verified before",
    ),
    (
        "shuffled batches for SAE training, from memory: speed relative to `.values`",
        "store_torch_batches",
        "speed of shuffled batches, 0 workers, from memory relative to values",
    ),
    (
        "shuffled batches from disk: speed relative to reading the bytes alone",
        "store_torch_batches",
        "speed of shuffled batches, 0 workers, from disk relative to readinto",
    ),
    (
        "a sweep by two dask workers: speed relative to one worker",
        "scaling_cluster",
        "speed of two workers relative to one, second moments",
    ),
]


def table(documents: list[dict[str, Any]]) -> str:
    """Return the chosen targets as a Markdown table."""
    targets = {(d["name"], target["text"]): target for d in documents for target in d["aims"]}
    rows = ["| | ratio | target |", "|---|--:|---|"]
    for words, name, text in CHOSEN:
        target = targets[name, text]
        low = target["at_least"] is not None
        bound = f"at least {target['at_least']:g}" if low else f"at most {target['at_most']:g}"
        rows.append(f"| {words} | {shown(target['value'])} | {bound}{'' if target['met'] else ', missed'} |")
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
