"""The forward pass alone, and Hugging Face's own `output_hidden_states` into a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.method import Way, hugging_face
from benchmarks.peers.savers import Memmap
from benchmarks.peers.workload import Work


class Forward(Way):
    """Nothing is recorded; no logits."""

    name = "forward pass only"
    packages = ("transformers",)
    writes = False

    def load(self, work: Work) -> Any:
        self.model = hugging_face(work)
        return self.model.model.embed_tokens

    @torch.inference_mode()
    def run(self, work: Work, setting: str, folder: Path) -> None:
        for _, ids, mask in work.batches(setting):
            self.model.model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), use_cache=False)


class HiddenStates(Forward):
    """`output_hidden_states=True` without the output layer, which is as lean as it gets; then a memory map.

    The last of the hidden states is that after the final norm, which is another thing than the last residual stream.
    """

    name = "output_hidden_states, np.memmap"
    selects = Memmap.selects
    writes = True
    layers_missing = 1

    @torch.inference_mode()
    def run(self, work: Work, setting: str, folder: Path) -> None:
        saver = Memmap(work, setting, folder)
        for rows, ids, mask in work.batches(setting):
            out = self.model.model(
                torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), use_cache=False, output_hidden_states=True
            )
            place, token = (torch.from_numpy(i) for i in work.wanted(setting, rows))
            saver.put(rows, torch.stack([h[place, token].half() for h in out.hidden_states[1:]]))
        saver.finish()

    def read(self, work: Work, setting: str, folder: Path, layer: int) -> np.ndarray:
        return Memmap(work, setting, folder).read(layer)


WAYS = (Forward, HiddenStates)
