"""The README's table of speeds: a few of the aims, met and missed, in words for those who know no benchmark."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.document import shown

BEGIN, END = "<!-- speed: made by benchmarks/harness/page.py -->", "<!-- /speed -->"

# (words, benchmark, aim); "speed" is how many times as fast, "time" how many times as long.
CHOSEN = [
    ("logistic probes, 30 layers x 2 tokens x 15 pairs x 6 fits, real activations: speed on two cores, against "
     "scikit-learn's lbfgs in float32 on one", "analyses_probes",
     "speed of logistic by that of the tuned loop, real activations"),
    ("the same on Gaussian features", "analyses_probes",
     "speed of logistic by that of the tuned loop, gaussian activations"),
    ("logistic probes on real activations, CPU seconds, against scikit-learn's Newton solver in float64: times as few",
     "analyses_probes", "logistic by the newton loop, CPU seconds, real activations: times as few"),
    ("ridge probes, CPU seconds, against RidgeClassifier in a loop: times as few", "analyses_probes",
     "ridge by the ridge loop, CPU seconds, real activations: times as few"),
    ("recording SmolLM2's 30 layers at two positions of 256 prompts with every statistic (the default), which needs "
     "logits at every token: time, against a forward pass with these logits", "capture_overhead",
     "capture, all statistics, by forward, logits at every token, wall seconds"),
    ("256 prompts without statistics: time, against the forward pass without logits", "capture_alone",
     "recording 256 prompts by their forward pass, wall seconds"),
    ("64 prompts without statistics, a short job: time, against the same", "capture_alone",
     "recording 64 prompts by their forward pass, wall seconds"),
    ("256 prompts without statistics: time, against `run_with_cache` as in the tutorials (logits at every token) and "
     "`np.save`", "capture_overhead",
     "capture, statistics off, by run_with_cache and np.save, wall seconds"),
    ("256 prompts without statistics: time, against `run_with_cache` with one token's logits, float16 and fsync",
     "capture_overhead", "capture, statistics off, by run_with_cache and np.save, lean, wall seconds"),
    ("64 prompts without statistics: time, against the same into `np.memmap`", "capture_peers",
     "two positions: seconds of stratalens (no statistics) by those of run_with_cache, np.memmap"),
    ("64 prompts without statistics: time, against transformers' hidden states without any hooks", "capture_peers",
     "two positions: seconds of stratalens (no statistics) by those of output_hidden_states, np.memmap"),
    ("writing values that are in our buffers already: speed, against TensorStore from an array", "store_write",
     "writing speed by that of TensorStore, memory"),
    ("writing from an array: speed, against TensorStore", "store_write",
     "writing speed from an array by that of TensorStore, memory"),
    ("reading a layer without dask, every byte checked: speed, against a single pass over the same bytes with crc32c",
     "store_read",
     "speed of verified reading of a layer by that of a single pass, stratalens, chunks=None"),
    ("the same through dask, as `open_store` gives it", "store_read",
     "speed of verified reading of a layer by that of a single pass, stratalens"),
    ("reading a layer without dask: speed, against TensorStore", "store_read",
     "speed of verified reading of a layer by that of TensorStore"),
    ("one entity over 16 layers, its chunks checked before: time, against as many bytes in sequence (the store is made "
     "for layers)", "store_read",
     "time of one entity over all layers (16 layers x 2048) by that of as many bytes: stratalens, chunks=None, "
     "verified before"),
    ("shuffled batches for SAE training: speed, against `.values` from memory", "store_torch_batches",
     "speed of shuffled batches, 0 workers, from memory by that of values"),
    ("the same from disk: speed, against reading the bare bytes", "store_torch_batches",
     "speed of shuffled batches, 0 workers, from disk by that of readinto"),
    ("a sweep by two dask workers: speed, against one", "scaling_cluster", "two workers by one, second moments"),
]  # fmt: skip


def table(documents: list[dict[str, Any]]) -> str:
    """The chosen aims in markdown."""
    targets = {(d["name"], target["text"]): target for d in documents for target in d["aims"]}
    rows = ["| | ratio | aim |", "|---|--:|---|"]
    for words, name, text in CHOSEN:
        target = targets[name, text]
        low = target["at_least"] is not None
        bound = f"at least {target['at_least']:g}" if low else f"at most {target['at_most']:g}"
        rows.append(f"| {words} | {shown(target['value'])} | {bound}{'' if target['met'] else ', missed'} |")
    return "\n".join(rows)


def put(text: str, documents: list[dict[str, Any]]) -> str:
    """The README with the table between its two marks.

    Raises:
        SystemExit: a mark is not there, or not one pair of them.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"the README needs one pair of {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(documents)}\n{END}{rest.split(END)[1]}"
