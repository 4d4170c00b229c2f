"""nnsight: a trace with `tracer.cache` on the decoder layers, gathered into a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.method import Way, hugging_face
from benchmarks.peers.savers import Memmap
from benchmarks.peers.workload import Work


class Trace(Way):
    """nnsight has no files of its own; it runs the whole model, of the output layer one token."""

    name = "nnsight tracer.cache, np.memmap"
    packages = ("nnsight",)
    selects = Memmap.selects

    def load(self, work: Work) -> Any:
        from nnsight import LanguageModel
        from transformers import AutoTokenizer

        model = hugging_face(work)
        self.model = LanguageModel(model, tokenizer=AutoTokenizer.from_pretrained(work.model))
        return model.model.embed_tokens

    @torch.inference_mode()
    def run(self, work: Work, setting: str, folder: Path) -> None:
        saver = Memmap(work, setting, folder)
        layers = [self.model.model.layers[n] for n in range(work.layers)]
        for rows, ids, mask in work.batches(setting):
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            with self.model.trace(given, logits_to_keep=1, use_cache=False) as tracer:
                cache = tracer.cache(modules=layers).save()
            place, token = (torch.from_numpy(i) for i in work.wanted(setting, rows))
            outputs = [cache[layer.path].output for layer in layers]
            found = [o[0] if isinstance(o, tuple) else o for o in outputs]
            saver.put(rows, torch.stack([f[place, token].half() for f in found]))
        saver.finish()

    def read(self, work: Work, setting: str, folder: Path, layer: int) -> np.ndarray:
        return Memmap(work, setting, folder).read(layer)


WAYS = (Trace,)
