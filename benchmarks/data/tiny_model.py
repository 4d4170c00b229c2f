"""A random model that only adds vectors, with its tokenizer and prompts, to measure capture without computation.

The model has any number of layers of any width, a hook after each layer and no other computation. A measurement on it
therefore covers capture itself, the prompts, the buffers and the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformers import PreTrainedTokenizerFast

from stratalens import PromptTable, capture

WORDS = 100
SITE = "layers.{layer}.hook_state"


class Adding(HookedRootModule):  # type: ignore[misc]
    """Embeddings followed by `layers` additions, with a hook after each."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(WORDS, width)
        self.steps = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(width)) for _ in range(layers))
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"hook_state": HookPoint()}) for _ in range(layers))
        self.setup()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the embeddings plus all added vectors."""
        x = self.embed(ids)
        for step, layer in zip(self.steps, self.layers, strict=True):
            x = layer["hook_state"](x + step)
        return x


def tokenizer() -> Any:
    """Return a tokenizer with one token for each word."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, WORDS)}}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")


def prompts(rows: int, groups: int = 0, words: int = 4) -> PromptTable:
    """Return prompts of random words; with `groups`, a label trained_stage that cycles over the groups."""
    draws = np.random.default_rng(0).integers(1, WORDS, (rows, words))
    frame = pd.DataFrame({"prompt": [" ".join(f"w{i}" for i in row) for row in draws]})
    if groups:
        frame["trained_stage"] = [f"s{i % groups + 1}" for i in range(rows)]
    return PromptTable.from_dataframe(frame)


def silent(model: Adding, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Run a forward pass without logits."""
    model(ids, mask)


def record(model: Adding, table: PromptTable, path: Path, words: Any, **options: Any) -> Any:
    """Capture the last token at every layer."""
    return capture(
        model,
        table,
        path,
        sites=(SITE,),
        positions=("last",),
        tokenizer=words,
        forward=silent,
        **{"progress": False, **options},
    )
