"""lmprobe: `UnifiedCache.warmup`, which fills its cache with one safetensors file for each prompt.

It takes texts instead of token ids and pads each batch as it arrives. It therefore receives the prompts in the order of
our batches, so that its batches equal ours. It stores the last token or all tokens of a prompt, but no other positions.
Its backend always runs the output layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.method import CannotError, Method, sync_tree
from benchmarks.peers.workload import Workload


class Warmup(Method):
    """Its local backend (transformers), values stored as float16."""

    name = "lmprobe UnifiedCache"
    packages = ("lmprobe",)
    selects = "a layer of a prompt, by its text"

    def load(self, workload: Workload) -> Any:
        import torch
        from lmprobe.backends import _get_local_model

        # Its local backend loads the model with this call and caches it for later runs.
        model, tokenizer = _get_local_model(str(workload.model), "cpu", torch.float32)
        tokenizer.padding_side = "right"
        return model.model.embed_tokens

    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        from lmprobe import UnifiedCache, set_cache_backend, set_cache_dtype

        if setting == "two":
            raise CannotError("stores one token of a prompt (last, first or a mean) or all of them, no named positions")
        set_cache_backend(str(folder))
        set_cache_dtype("float16")
        cache = UnifiedCache(
            str(workload.model), layers="all", compute_perplexity=False, device="cpu", batch_size=workload.batch_size,
            cache_pooled=setting == "last", pooling="last_token", dtype="float32",
        )  # fmt: skip
        cache.warmup([workload.prompts[row] for row in workload.order(setting)])
        sync_tree(folder)

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        from lmprobe.cache import load_prompt_activations, load_prompt_pooled_activations

        parts = []
        for row, prompt in enumerate(workload.prompts):
            if setting == "last":
                parts.append(load_prompt_pooled_activations(str(workload.model), prompt, [layer], "last_token").numpy())
            else:
                values, _ = load_prompt_activations(str(workload.model), prompt, [layer])
                parts.append(values.reshape(-1, workload.width)[: workload.lengths[row]].numpy())
        return np.concatenate([p.reshape(-1, workload.width) for p in parts])


METHODS = (Warmup,)
