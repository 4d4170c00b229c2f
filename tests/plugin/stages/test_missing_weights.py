"""Checkpoints without some tensors: refused by name; without the head alone, recorded without output statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import stratalens as sl
from stratalens.store.errors import CheckWarning, InputError
from support import models

BASES = {"llama": transformers.LlamaModel, "neox": transformers.GPTNeoXModel}


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [("llama", "model.layers.1.mlp.up_proj.weight"), ("neox", "gpt_neox.layers.0.attention.dense.bias")],
)
def test_a_missing_tensor_is_named(tmp_path: Path, kind: str, tensor: str) -> None:
    folder = models.save_checkpoint(tmp_path / "a", kind)
    weights = load_file(folder / "model.safetensors")
    del weights[tensor]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"no weights for 1 tensors of \w+: {tensor}\."):
        sl.capture({"a": folder}, models.table(4), tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = models.save_checkpoint(tmp_path / "a", "neox")
    weights = load_file(folder / "model.safetensors")
    weights["gpt_neox.final_layer_norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"another shape than its config says: gpt_neox\.final_layer_norm\.weight"):
        sl.capture({"a": folder}, models.table(4), tmp_path / "run.zarr")


@pytest.mark.parametrize("kind", sorted(BASES))
def test_a_missing_head_alone(tmp_path: Path, kind: str) -> None:
    """The activations are right, the output statistics are left out, and a second capture finds the same weights."""
    model = models.hf_model(kind, tie_word_embeddings=False)
    base = BASES[kind](model.config)
    base.load_state_dict(model.base_model.state_dict())
    with pytest.warns(CheckWarning, match="no output statistics .*: the checkpoint has no output layer"):
        ds = sl.capture({"a": save(base, tmp_path / "a")}, models.table(4), tmp_path / "run.zarr")
    assert "loss" not in ds
    whole = sl.capture({"a": save(model, tmp_path / "b")}, models.table(4), tmp_path / "whole.zarr")
    np.testing.assert_array_equal(ds.resid_post.values, whole.resid_post.values)
    with pytest.warns(CheckWarning, match="no output statistics"):
        again = sl.capture({"a": tmp_path / "a"}, models.table(4), tmp_path / "run.zarr")
    assert bool(again.recorded.all())
    with pytest.raises(InputError, match="statistic 'loss' needs logits of the next token, but the checkpoint has no"):
        sl.capture({"a": tmp_path / "a"}, models.table(4), tmp_path / "other.zarr", statistics=("loss",))


@pytest.mark.parametrize("kind", ["masked", "base"])
def test_an_encoder_has_no_output_statistics(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=models.VOCABULARY, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (transformers.BertForMaskedLM if kind == "masked" else transformers.BertModel)(config).eval()
    folder = save(model, tmp_path / "bert")
    with pytest.warns(CheckWarning, match="no output statistics"):
        ds = sl.capture({"a": folder}, models.table(4), tmp_path / "run.zarr")
    assert not {"loss", "entropy"} & set(ds)
    tokenizer, table = models.tokenizer(), models.table(4)
    ids = torch.tensor([tokenizer(table.prompts[0]).input_ids])
    hidden = model(ids, output_hidden_states=True)
    states = hidden.hidden_states[1:]
    expected = np.stack([state[0, -1].detach().numpy() for state in states])
    np.testing.assert_allclose(ds.resid_post.values[0, :, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_hidden_states_are_not_logits(tmp_path: Path) -> None:
    def hidden(model: models.TwoLayers, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.hook_embed(model.embed(ids) * mask[..., None])

    options: dict[str, Any] = {"tokenizer": models.tokenizer(), "forward": hidden, "sites": ["hook_embed"]}
    ds = sl.capture(models.TwoLayers(), models.table(4), tmp_path / "run.zarr", **options)
    assert "loss" not in ds
    with pytest.raises(InputError, match="12 numbers a token, but the vocabulary has 400 tokens"):
        sl.capture(models.TwoLayers(), models.table(4), tmp_path / "b.zarr", statistics=("loss",), **options)
