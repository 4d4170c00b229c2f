"""Checkpoints of a HookedRootModule that load in milliseconds, for tests of what happens around the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from support.models import TwoLayers, run_two_layers, tokenizer

OPTIONS: dict[str, Any] = {
    "sites": ("layers.{layer}.hook_state",),
    "statistics": False,
    "check": False,
    "tokenizer": tokenizer(),
    "forward": run_two_layers,
}


def save_light(folder: Path, seed: int) -> Path:
    """Write config, weights and tokenizer; return the folder."""
    folder.mkdir(parents=True)
    save_file(TwoLayers(seed).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "two layers"}))
    tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class LightCheckpoint:
    """A folder of `save_light`; takes the place of `stratalens.Checkpoint`."""

    folder: Path

    def load(self, tokenizer: Any, device: Any) -> TwoLayers:
        """Load the weights."""
        model = TwoLayers()
        model.load_state_dict(load_file(self.folder / "model.safetensors"))
        return model
