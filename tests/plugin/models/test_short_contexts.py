"""Contexts of a few tokens, and vocabularies smaller than the tokenizer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformers import PreTrainedTokenizerFast

import stratalens as sl
from stratalens.store.errors import InputError
from support import models as tiny

WORDS = ["?", "who", "is", "ann", "bob", "now"]
LIMIT = {"gpt2": "n_positions", "llama": "max_position_embeddings", "opt": "max_position_embeddings"}


def word_tokenizer(pad: str = "?") -> Any:
    """Return a tokenizer of one token a word; ids 0 to 5, and 6 for another padding token."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token=pad)


def prompts(length: int) -> sl.PromptTable:
    texts = [" ".join(np.roll(WORDS[1:], -start)[: max(1, length - start % 2)]) for start in range(4)]
    return sl.PromptTable.from_dataframe(pd.DataFrame({"prompt": texts, "entity_id": range(4)}))


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("kind", sorted(LIMIT))
def test_a_short_context(tmp_path: Path, kind: str, length: int) -> None:
    model = tiny.bridge(kind, **{LIMIT[kind]: length, "vocab_size": len(WORDS)})
    tokenizer, table = word_tokenizer(), prompts(length)
    sites = ("resid_post", "z", "ln_final", "embed")
    ds = sl.capture(model, table, tmp_path / "run.zarr", sites=sites, tokenizer=tokenizer)
    ids = tokenizer(table.prompts[0], return_tensors="pt").input_ids
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids)
    for name, hook in (("resid_post", "blocks.{}.hook_resid_post"), ("z", "blocks.{}.attn.hook_z")):
        expected = torch.stack([cache[hook.format(layer)][0, -1] for layer in range(tiny.LAYERS)])
        np.testing.assert_allclose(ds[name].values[0, :, 0, 0].ravel(), expected.ravel(), rtol=1e-4, atol=1e-6)
    entropy = torch.distributions.Categorical(logits=logits[0, -1]).entropy()
    np.testing.assert_allclose(ds.entropy.values[0, 0, 0], entropy, rtol=1e-4)
    longer = prompts(length + 1)
    with pytest.raises(InputError, match=f"longer than the model's context of {length} tokens"):
        sl.capture(model, longer, tmp_path / "b.zarr", tokenizer=tokenizer)


@pytest.mark.skipif(not tiny.ON_39, reason="HookedTransformer exists in TransformerLens 3.9 only")
def test_modular_addition(tmp_path: Path) -> None:
    """A context of three tokens, and one output fewer than the vocabulary: no logits of the next token."""
    model = tiny.hooked_transformer(n_ctx=3, d_vocab=len(WORDS), d_vocab_out=len(WORDS) - 1)
    ds = sl.capture(model, prompts(3), tmp_path / "run.zarr", tokenizer=word_tokenizer(), sites=("resid_post", "q"))
    assert np.isfinite(ds.resid_post.values).all()
    assert "loss" not in ds


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_a_token_id_that_the_model_does_not_have(tmp_path: Path, kind: str) -> None:
    model = tiny.bridge(kind, vocab_size=4)
    frame = pd.DataFrame({"prompt": ["who is ann", "is ann now"], "answer": ["is", "bob"]})
    table = sl.PromptTable.from_dataframe(frame)
    with pytest.raises(InputError, match=r"row 1: token id 5, but the model has 4 \(ids 0 to 3\)"):
        sl.capture(model, table, tmp_path / "run.zarr", tokenizer=word_tokenizer())
    answers = sl.PromptTable.from_dataframe(frame.assign(prompt="who is ann", prompt_id=["a", "b"]))
    with pytest.raises(InputError, match="the answer of row 1: token id 4, but the model has 4"):
        sl.capture(model, answers, tmp_path / "run.zarr", tokenizer=word_tokenizer())
    with pytest.raises(InputError, match="row 1: token id 5, but the model has 4"):
        sl.check(model, table, tokenizer=word_tokenizer())
    assert not (tmp_path / "run.zarr").exists()


def test_a_padding_token_that_the_model_does_not_have(tmp_path: Path) -> None:
    """A padding token that was added to the tokenizer alone: its id never reaches the model."""
    model, table = tiny.bridge("llama", vocab_size=len(WORDS)), prompts(3)
    values = []
    for name in ("?", "<pad>"):
        tokenizer = word_tokenizer()
        tokenizer.add_special_tokens({"pad_token": name})
        ds = sl.capture(model, table, tmp_path / f"{len(values)}.zarr", tokenizer=tokenizer)
        values.append(ds.resid_post.values)
    assert tokenizer.pad_token_id == len(WORDS)
    np.testing.assert_array_equal(*values)


class Embeds(HookedRootModule):
    """A model of the user's, without a config, with fewer embeddings than the tokenizer has ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hook_embed = nn.Embedding(4, 8), HookPoint()
        self.setup()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.hook_embed(self.embed(ids))


def test_a_model_without_a_config_names_the_largest_id(tmp_path: Path) -> None:
    table = sl.PromptTable.from_dataframe(pd.DataFrame({"prompt": ["who is ann", "is ann now"]}))
    with pytest.raises(InputError, match="the token ids go up to 5, the positions to"):
        sl.capture(Embeds(), table, tmp_path / "run.zarr", sites=["hook_embed"], tokenizer=word_tokenizer())
