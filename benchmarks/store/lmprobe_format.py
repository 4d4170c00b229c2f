"""The files of lmprobe's cache: one safetensors file for each prompt, one tensor for each layer.

Only the query benchmark uses this format. lmprobe fills the cache prompt by prompt with a manifest next to it. It is
made to reuse earlier activations, not to write many at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.store.formats import Format


class Lmprobe(Format):
    """`save_prompt_activations` and `load_prompt_activations`; each stage is a separate model, as it has no stages."""

    name, module = "lmprobe UnifiedCache", "lmprobe"

    def begin(self) -> None:
        super().begin()
        self.use()

    def use(self) -> Any:
        """Set the cache of the process to this folder and return its module."""
        cache = import_module("lmprobe.cache")
        cache.set_cache_backend(str(self.folder))
        cache.set_cache_dtype("float16")
        return cache

    def put(self, stage: int, start: int, values: np.ndarray) -> None:
        torch, cache = import_module("torch"), self.use()
        layers, mask = list(range(len(values))), torch.ones(1, values.shape[2], dtype=torch.int64)
        for row in range(values.shape[1]):
            whole = torch.from_numpy(np.concatenate(list(values[:, row]), axis=-1))[None]
            cache.save_prompt_activations(f"stage{stage}", f"row {start + row}", layers, whole, mask)

    def open(self) -> Any:
        return self.use()

    def rows_of(self, handle: Any, stage: int, layers: list[int]) -> np.ndarray:
        """Return some layers of all prompts, of shape (layers, entities, tokens, d_model)."""
        out = np.empty((len(layers), *self.shape[2:]), np.float16)
        for row in range(self.shape[2]):
            out[:, row] = self.prompt(handle, stage, row, layers)
        return out

    def prompt(self, handle: Any, stage: int, row: int, layers: list[int]) -> np.ndarray:
        """Return some layers of one prompt, of shape (layers, tokens, d_model)."""
        values, _ = handle.load_prompt_activations(f"stage{stage}", f"row {row}", layers)
        tokens, width = self.shape[3:]
        return np.moveaxis(values.numpy().reshape(tokens, len(layers), width), 1, 0)

    def layer(self, handle: Any, stage: int, layer: int) -> np.ndarray:
        return self.rows_of(handle, stage, [layer])[0]

    def stage(self, handle: Any, stage: int) -> np.ndarray:
        return self.rows_of(handle, stage, list(range(self.shape[1])))

    def entity(self, handle: Any, stage: int, row: int) -> np.ndarray:
        return self.prompt(handle, stage, row, list(range(self.shape[1])))

    def token(self, handle: Any, stage: int, token: int) -> np.ndarray:
        return np.ascontiguousarray(self.stage(handle, stage)[:, :, token])
