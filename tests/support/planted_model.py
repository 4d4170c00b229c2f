"""A model with one causal and one merely correlated direction for the same label, both perfectly decodable."""

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from stratalens.plugin.prompts.table import PromptTable
from support.models import VOCABULARY, tokenizer

WIDTH = 24
NOISE = 1.0  # length of the other features of an embedding, in standard deviations of each


class Planted(HookedRootModule):
    """Residual layers over running means; the label moves the state along two axes, and the output reads one of them.

    The rows of `axes` are the causal and the correlated axis. A layer with a nonlinearity mixes all other features, and
    a norm in front of the output lets every direction change every logit a little.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        frame = torch.tensor(np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].T, dtype=torch.float32)
        self.axes, rest = frame[:2], frame[2:]
        tokens = tokenizer()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        noise = torch.tensor(rng.normal(size=(VOCABULARY, WIDTH)), dtype=torch.float32)
        vectors = NOISE * noise @ rest.T @ rest
        signs = [tokens(text).input_ids[0] for text in "+-"]
        for token, sign in zip(signs, (1.0, -1.0), strict=True):  # nothing else tells the labels from each other
            vectors[token] = sign * 4 * self.axes.sum(0)
        self.embed.weight.data = vectors
        mix = torch.tensor(rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH), dtype=torch.float32)
        self.mix = nn.ParameterList([rest.T @ rest @ mix @ rest.T @ rest for _ in range(2)])
        head = 0.3 * torch.tensor(rng.normal(size=(VOCABULARY, WIDTH)), dtype=torch.float32) @ rest.T @ rest
        for text, sign in (("y", 1.0), ("n", -1.0)):
            (token,) = tokens(text).input_ids
            head[token] += sign * 2 * self.axes[0]
        self.head = nn.Parameter(head)
        self.layers = nn.ModuleList(nn.ModuleDict({"hook_state": HookPoint()}) for _ in range(2))
        self.rest = rest.T @ rest  # projection onto the other features, which a nonlinearity would leave
        self.setup()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits of shape (batch, position, vocab)."""
        x = self.embed(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None] ** 0.5
        for mix, layer in zip(self.mix, self.layers, strict=True):
            x = layer["hook_state"](x + torch.tanh(x @ mix) @ self.rest)
        return (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6) * 3) @ self.head.T


def run(model: Planted, ids: Tensor, mask: Tensor) -> Tensor:
    """Run the model; the argument `forward=`."""
    return model(ids, mask)


def prompts(seed: int, rows: int = 24) -> PromptTable:
    """Return prompts with the label as a sign, and two answers, "y" (right for plus) and "n"."""
    rng = np.random.default_rng([seed, 1])
    signs = rng.permutation(np.resize([1, -1], rows))
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(rows)]
    return PromptTable.from_dataframe(
        pd.DataFrame(
            {
                "prompt": [
                    f"{'+' if s > 0 else '-'} {word} {i}:" for i, (s, word) in enumerate(zip(signs, words, strict=True))
                ],
                "entity_id": [f"e{i}" for i in range(rows)],
                "answer": "y",
                "other_answer": "n",
                "label": np.where(signs > 0, "plus", "minus"),
            }
        )
    )


def axes(model: Planted) -> xr.DataArray:
    """Return the two axes as vectors for `directions`."""
    vectors = np.repeat(model.axes.numpy()[None], 2, 0)
    return xr.DataArray(
        vectors, dims=("layer", "direction", "d_model"), coords={"layer": [0, 1], "direction": ["causal", "correlated"]}
    )


def decoding(model: Planted, table: PromptTable) -> np.ndarray[Any, Any]:
    """Return the accuracy with which each axis gives the label of every prompt at the last token, by layer and axis."""
    tokens = table.tokenize(tokenizer())
    ids, mask = (torch.from_numpy(a) for a in tokens.batch(range(len(table)), int(tokens.lengths.max())))
    with torch.no_grad():
        _, cache = model.run_with_cache(ids, mask)
    states = [
        cache[f"layers.{i}.hook_state"][torch.arange(len(ids)), torch.from_numpy(tokens.lengths - 1)] for i in (0, 1)
    ]
    plus = torch.from_numpy(table.labels()["label"] == "plus")
    return np.array([[float(((x @ axis > 0) == plus).float().mean()) for axis in model.axes] for x in states])


def options() -> dict[str, Any]:
    """Arguments of `intervene` for this model."""
    return {"tokenizer": tokenizer(), "forward": run, "progress": False, "positions": "last"}
