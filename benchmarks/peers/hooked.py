"""TransformerLens 4: `run_with_cache` of the bridge, its residual streams cast and put into files.

`return_type=None` alone does not keep the bridge from running the output layer at every token; `logits_to_keep=1`,
which it hands on to transformers, leaves one token of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.method import Way, hugging_face
from benchmarks.peers.savers import SAVERS, Saver
from benchmarks.peers.workload import Work

#: What transformers need not do for anybody who records.
SPARED: dict[str, Any] = {"logits_to_keep": 1, "use_cache": False}


def bridge(work: Work) -> Any:
    """The model in TransformerLens, without compatibility mode: nothing folded, nothing centred."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    return TransformerBridge.boot_transformers(
        str(work.model), hf_model=hugging_face(work), tokenizer=AutoTokenizer.from_pretrained(work.model), device="cpu"
    )


class HookedForward(Way):
    """The bridge's own forward pass: its hook points are there and nothing listens; logits of one token."""

    name = "hooked forward pass only"
    packages = ("transformer-lens",)
    writes = False

    def load(self, work: Work) -> Any:
        self.model = bridge(work)
        return self.model.original_model.model.embed_tokens

    @torch.inference_mode()
    def run(self, work: Work, setting: str, folder: Path) -> None:
        for _, ids, mask in work.batches(setting):
            self.model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), return_type=None, **SPARED)


class RunWithCache(Way):
    """The loop of the tutorials with what it can be spared: only the wanted hooks are cached, logits of one token."""

    saver: type[Saver]

    def load(self, work: Work) -> Any:
        self.model = bridge(work)
        self.hooks = [f"blocks.{n}.hook_resid_post" for n in range(work.layers)]
        return self.model.original_model.model.embed_tokens

    @torch.inference_mode()
    def run(self, work: Work, setting: str, folder: Path) -> None:
        saver = self.saver(work, setting, folder)
        for rows, ids, mask in work.batches(setting):
            _, cache = self.model.run_with_cache(
                torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), return_type=None,
                names_filter=lambda name: name in self.hooks, **SPARED,
            )  # fmt: skip
            place, token = (torch.from_numpy(i) for i in work.wanted(setting, rows))
            saver.put(rows, torch.stack([cache[name][place, token].half() for name in self.hooks]))
        saver.finish()

    def read(self, work: Work, setting: str, folder: Path, layer: int) -> np.ndarray:
        return self.saver(work, setting, folder).read(layer)


def way(saver: type[Saver]) -> type[RunWithCache]:
    """`run_with_cache` with one way of saving."""
    about = {
        "saver": saver,
        "name": f"run_with_cache, {saver.name}",
        "packages": ("transformer-lens", *saver.packages),
        "selects": saver.selects,
    }
    return type(f"RunWithCache{saver.__name__}", (RunWithCache,), about)


WAYS = (HookedForward, *(way(saver) for saver in SAVERS))
