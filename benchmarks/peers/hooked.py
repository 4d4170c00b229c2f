"""TransformerLens 4: `run_with_cache` of the bridge, with the residual streams cast and saved to files.

With `return_type=None` alone the bridge still runs the output layer at every token. It passes `logits_to_keep=1` on to
transformers, which restricts the output layer to one token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.method import Method, hugging_face
from benchmarks.peers.savers import SAVERS, Saver
from benchmarks.peers.workload import Workload

#: Work that transformers can skip for every method of recording.
LEAN_OPTIONS: dict[str, Any] = {"logits_to_keep": 1, "use_cache": False}


def bridge(workload: Workload) -> Any:
    """Load the model in TransformerLens without compatibility mode: nothing folded, nothing centred."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    return TransformerBridge.boot_transformers(
        str(workload.model),
        hf_model=hugging_face(workload),
        tokenizer=AutoTokenizer.from_pretrained(workload.model),
        device="cpu",
    )


class HookedForward(Method):
    """The bridge's forward pass with its hook points, no hooks, and logits of one token."""

    name = "hooked forward pass only"
    packages = ("transformer-lens",)
    writes = False

    def load(self, workload: Workload) -> Any:
        self.model = bridge(workload)
        return self.model.original_model.model.embed_tokens

    @torch.inference_mode()
    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        for _, ids, mask in workload.batches(setting):
            self.model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), return_type=None, **LEAN_OPTIONS)


class RunWithCache(Method):
    """The loop of the tutorials, optimized: it caches only the requested hooks and computes logits of one token."""

    saver: type[Saver]

    def load(self, workload: Workload) -> Any:
        self.model = bridge(workload)
        self.hooks = [f"blocks.{n}.hook_resid_post" for n in range(workload.layers)]
        return self.model.original_model.model.embed_tokens

    @torch.inference_mode()
    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        saver = self.saver(workload, setting, folder)
        for rows, ids, mask in workload.batches(setting):
            _, cache = self.model.run_with_cache(
                torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), return_type=None,
                names_filter=lambda name: name in self.hooks, **LEAN_OPTIONS,
            )  # fmt: skip
            place, token = (torch.from_numpy(i) for i in workload.wanted(setting, rows))
            saver.put(rows, torch.stack([cache[name][place, token].half() for name in self.hooks]))
        saver.finish()

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        return self.saver(workload, setting, folder).read(layer)


def method_for(saver: type[Saver]) -> type[RunWithCache]:
    """Return the `run_with_cache` method with one saver."""
    about = {
        "saver": saver,
        "name": f"run_with_cache, {saver.name}",
        "packages": ("transformer-lens", *saver.packages),
        "selects": saver.selects,
    }
    return type(f"RunWithCache{saver.__name__}", (RunWithCache,), about)


METHODS = (HookedForward, *(method_for(saver) for saver in SAVERS))
