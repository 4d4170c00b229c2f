"""The forward pass alone, and Hugging Face's `output_hidden_states` written to a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.method import Method, hugging_face
from benchmarks.peers.savers import Memmap
from benchmarks.peers.workload import Workload


class Forward(Method):
    """The forward pass without recording and without logits."""

    name = "forward pass only"
    packages = ("transformers",)
    writes = False

    def load(self, workload: Workload) -> Any:
        self.model = hugging_face(workload)
        return self.model.model.embed_tokens

    @torch.inference_mode()
    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        for _, ids, mask in workload.batches(setting):
            self.model.model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), use_cache=False)


class HiddenStates(Forward):
    """`output_hidden_states=True` without the output layer, the cheapest form; saved to a memory map.

    The last hidden state is the output of the final norm, which differs from the last residual stream.
    """

    name = "output_hidden_states, np.memmap"
    selects = Memmap.selects
    writes = True
    layers_missing = 1

    @torch.inference_mode()
    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        saver = Memmap(workload, setting, folder)
        for rows, ids, mask in workload.batches(setting):
            out = self.model.model(
                torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), use_cache=False, output_hidden_states=True
            )
            place, token = (torch.from_numpy(i) for i in workload.wanted(setting, rows))
            saver.put(rows, torch.stack([h[place, token].half() for h in out.hidden_states[1:]]))
        saver.finish()

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        return Memmap(workload, setting, folder).read(layer)


METHODS = (Forward, HiddenStates)
