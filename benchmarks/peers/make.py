"""Write the folders of a workload: weights as safetensors, prompts, token ids and planned batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.capture.overhead import prompts
from benchmarks.peers.workload import POSITIONS, SETTINGS
from stratalens.plugin.capture.batching import length_buckets
from stratalens.plugin.prompts.positions import resolve


def make_model(folder: Path, layers: int | None) -> None:
    """Save SmolLM2-135M in float32 and its tokenizer in a folder that transformers can load."""
    from stratalens.plugin.study.models.smollm import load_smollm2

    model, tokenizer = load_smollm2(layers)
    model.save_pretrained(folder)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)


def make_workload(folder: Path, count: int, batch: int, block: dict[str, int]) -> None:
    """Write `count` prompts of 20 to 60 tokens, in batches of at most `batch`, sorted by length within a block."""
    from transformers import AutoConfig, AutoTokenizer

    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "model")
    config = AutoConfig.from_pretrained(folder.parent / "model")
    table = prompts(count)
    tokenized = table.tokenize(tokenizer)
    table.frame[["prompt", "entity"]].to_csv(folder / "prompts.csv", index=False)
    ids = np.full((count, int(tokenized.lengths.max())), tokenizer.pad_token_id, np.int64)
    for row, tokens in enumerate(tokenized.ids):
        ids[row, : len(tokens)] = tokens
    np.save(folder / "ids.npy", ids)
    batches = {
        setting: [
            (part.tolist(), group.pad_to)
            for start in range(0, count, block[setting])
            for group in length_buckets(np.arange(start, min(start + block[setting], count)), tokenized.lengths)
            for part in group.batches(batch)
        ]
        for setting in SETTINGS
    }
    facts = {
        "lengths": tokenized.lengths.tolist(),
        "two": resolve(POSITIONS["two"], table, tokenized).index.tolist(),
        "batch_size": batch,
        "block_size": block,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "prompts": table.frame["prompt"].tolist(),
        "batches": batches,
    }
    (folder / "workload.json").write_text(json.dumps(facts))
