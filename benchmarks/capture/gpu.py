"""Measure the cost of recording on a GPU: tokens a second with and without recording all layers, in bfloat16.

Random models have the shapes of SmolLM2-135M and of Llama 3.2 1B, with prompts of 64 tokens. All blocks are recorded,
at the last token and at every token. Batches double until the card is full, or --most is reached. The script measures
the largest three, each with enough prompts for some seconds of the forward pass alone. *Forward* is the cheapest pass:
no hooks, no logits. capture() runs from its start until everything is on the disk, including the fingerprint of the
weights. It never runs more rows at once than a block of the store has. A block here is as long as a batch, or as two
buffers of 4 GiB allow; *rows of a pass* are the rows that capture() ran. Device memory is the peak during recording.
The script also measures the limits: copies from the device into pageable and into pinned memory, the disk, and matrix
products on the device.

    python -m benchmarks.capture.gpu [FOLDER] [--shapes smollm2 llama-1b] [--rounds 3] [--seconds 4]

`--device cpu --shapes tiny` tests the script on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.tiny_model import prompts, tokenizer
from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios
from benchmarks.harness.measure import Timing, time_once
from benchmarks.scaling import rates
from stratalens import capture
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.hooks import evaluation_mode

TITLE, THEME = "Cost of recording on a GPU", "GPU"
LENGTH = 64
BUFFER = 4 << 30
# width, layers, heads, key and value heads, hidden width, vocabulary
SHAPES = {
    "smollm2": (576, 30, 9, 3, 1536, 49152),
    "llama-1b": (2048, 16, 32, 8, 8192, 128256),
    "tiny": (64, 2, 4, 2, 128, 1000),
}
POSITIONS: dict[str, Any] = {"last token": ("last",), "every token": "all"}


def model(shape: str, device: str) -> Any:
    """Return a hooked random model in bfloat16."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    width, layers, heads, groups, hidden, words = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
        intermediate_size=hidden, vocab_size=words, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        llama = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    folder = tempfile.mkdtemp(prefix="tokenizer-")  # TransformerLens loads it again
    tokenizer().save_pretrained(folder)
    words_of = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(shape, hf_model=llama, tokenizer=words_of, dtype=torch.bfloat16)


class Workload:
    """The same batches for every method."""

    def __init__(self, hooked: Any, count: int, batch: int) -> None:
        self.hooked, self.adapter, self.batch = hooked, adapt(hooked), batch
        self.most = 0  # rows of a pass
        self.table = prompts(count, words=LENGTH)
        tokenized = self.table.tokenize(hooked.tokenizer)
        self.tokens = int(tokenized.lengths.sum())
        device = self.adapter.device
        self.batches = []
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            ids, mask = tokenized.batch(list(rows), int(tokenized.lengths.max()))
            self.batches.append((torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)))

    def forward(self) -> None:
        """Run without hooks and logits, until the device has finished."""
        with evaluation_mode(self.hooked):
            for ids, mask in self.batches:
                self.adapter.run(ids, mask, "none")
        settle(self.adapter.device)

    def record(self, folder: Path, positions: Any) -> Timing:
        """Time capture() into a fresh folder, without its deletion."""
        config = self.hooked.original_model.config
        row = config.num_hidden_layers * config.hidden_size * 2 * (LENGTH if positions == "all" else 1)
        seen: list[int] = []
        entry = self.hooked.original_model.get_input_embeddings()
        handle = entry.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        try:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                return time_once(lambda: capture(
                    {"model": self.hooked}, self.table, Path(place) / "run.zarr", positions=positions, statistics=False,
                    batch_size=self.batch, block_size=max(1, min(self.batch, BUFFER // row)), progress=False,
                ))  # fmt: skip
        finally:
            handle.remove()
            self.most = max(seen)


def settle(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sizes(report: Report, shape: str, hooked: Any, most: int) -> list[int]:
    """Return the largest three batch sizes, doubling until the card is full."""
    batch_sizes = []
    batch = 32
    while batch <= most:
        try:
            Workload(hooked, batch, batch).forward()
        except RuntimeError as error:  # out of memory, or more rows than a kernel supports
            report.note(f"{shape}: batches of {batch} do not run, {type(error).__name__}")
            break
        batch_sizes.append(batch)
        batch *= 2
    else:
        report.note(f"{shape}: batches of more than {batch_sizes[-1]} were not tried")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return batch_sizes[-3:]


def bounds(device: torch.device, folder: Path) -> dict[str, float]:
    """Measure bytes a second to the host and to the disk, and bfloat16 operations a second."""
    there = torch.ones(256 << 20, dtype=torch.uint8, device=device)
    pageable = torch.empty(there.shape, dtype=torch.uint8)
    pinned = torch.empty(there.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)

    def rate(amount: float, function: Callable[[], object]) -> float:
        return amount / rates.best_of(lambda: (function(), settle(device)))

    return {
        "device to pageable memory [GB/s]": rate(there.numel() / 1e9, lambda: pageable.copy_(there)),
        "device to pinned memory [GB/s]": rate(there.numel() / 1e9, lambda: pinned.copy_(there)),
        "onto the disk, with fsync [GB/s]": rates.disk(folder)["write"] / 1e9,
        "matrix products [TFLOP/s]": rate(2 * side**3 / 1e12, lambda: a @ a),
    }


def measure(report: Report, shape: str, options: argparse.Namespace, folder: Path) -> None:
    """Measure one model at several batch sizes."""
    hooked = model(shape, options.device)
    width, layers = SHAPES[shape][:2]
    table = Table(f"capture-{shape}", f"{shape}: {layers} blocks of {width}, prompts of {LENGTH} tokens", [
        Column("name", ""), Column("forward", "forward", "tokens/s"), Column("recorded", "recorded", "tokens/s"),
        Column("ratio", "time, ratio"), Column("bytes", "recorded", "GB/s"),
        Column("rows", "rows of a pass, recorded"), Column("memory", "device memory", "GiB"),
    ])  # fmt: skip
    shares: dict[str, list[float]] = {}
    for batch in sizes(report, shape, hooked, options.most):
        few = Workload(hooked, batch, batch)
        few.forward()
        count = batch * max(2, round(options.seconds / max(1e-4, rates.best_of(few.forward, 3))))
        workload = Workload(hooked, min(count, options.prompts), batch)
        for label, positions in POSITIONS.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            workload.record(folder, positions)
            memory = used()
            bare, ours = [], []
            for _ in range(options.rounds):
                bare.append(time_once(workload.forward))
                ours.append(workload.record(folder, positions))
            recorded_bytes = len(workload.table) * (LENGTH if positions == "all" else 1) * layers * width * 2
            shares[label] = ratios(ours, bare)
            table.add(
                name=f"{label}, batches of {batch}", forward=[workload.tokens / t.wall for t in bare],
                recorded=[workload.tokens / t.wall for t in ours], ratio=shares[label],
                bytes=[recorded_bytes / t.wall / 1e9 for t in ours], rows=workload.most, memory=memory,
            )  # fmt: skip
    report.add(table)
    for label, times in shares.items():
        report.target(f"{shape}, {label}, largest batches: time relative to the forward pass", times, at_most=1.1)
    shutil.rmtree(hooked.tokenizer.name_or_path, ignore_errors=True)
    del hooked
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def used() -> float | None:
    """Return the peak memory of the device since its reset, GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2", "llama-1b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="approximate time of the forward pass alone")
    parser.add_argument("--most", type=int, default=4096, help="largest batch to try")
    parser.add_argument("--prompts", type=int, default=65536, help="largest number of prompts of one run")
    options = parse(parser, quick={"rounds": 1, "seconds": 0.5, "most": 64, "prompts": 256})
    warnings.simplefilter("ignore")
    with Report(__file__, options, "torch", "transformers", "transformer-lens", folders=[options.folder]) as report:
        if options.device == "cuda" and not torch.cuda.is_available():
            report.skip("recording on a GPU: PyTorch finds no GPU on this machine")
            return
        device = torch.device(options.device)
        if device.type == "cuda":
            report.note(f"Measured on one {torch.cuda.get_device_name(device)}")
        folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
        try:
            table = Table("bounds", "Rates of the machine", [Column("name", ""), Column("rate", "rate")])
            for name, rate in bounds(device, folder).items():
                table.add(name=name, rate=rate)
            report.add(table)
            for shape in options.shapes:
                measure(report, shape, options, folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
