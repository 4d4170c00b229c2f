"""nnsight: a trace with `tracer.cache` on the decoder layers, written to a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.method import Method, hugging_face
from benchmarks.peers.savers import Memmap
from benchmarks.peers.workload import Workload


class Trace(Method):
    """nnsight has no file format; it runs the full model, with the output layer at one token."""

    name = "nnsight tracer.cache, np.memmap"
    packages = ("nnsight",)
    selects = Memmap.selects

    def load(self, workload: Workload) -> Any:
        from nnsight import LanguageModel
        from transformers import AutoTokenizer

        model = hugging_face(workload)
        self.model = LanguageModel(model, tokenizer=AutoTokenizer.from_pretrained(workload.model))
        return model.model.embed_tokens

    @torch.inference_mode()
    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        saver = Memmap(workload, setting, folder)
        layers = [self.model.model.layers[n] for n in range(workload.layers)]
        for rows, ids, mask in workload.batches(setting):
            inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            with self.model.trace(inputs, logits_to_keep=1, use_cache=False) as tracer:
                cache = tracer.cache(modules=layers).save()
            place, token = (torch.from_numpy(i) for i in workload.wanted(setting, rows))
            outputs = [cache[layer.path].output for layer in layers]
            hidden = [o[0] if isinstance(o, tuple) else o for o in outputs]
            saver.put(rows, torch.stack([f[place, token].half() for f in hidden]))
        saver.finish()

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        return Memmap(workload, setting, folder).read(layer)


METHODS = (Trace,)
