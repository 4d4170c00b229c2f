"""Encoders and encoder-decoders: sites of both stacks, folders, and no statistics of the next token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from stratalens.store.format.schema import OUTPUT_STATISTICS
from support import models

SIZES = {"vocab_size": models.VOCABULARY, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0}
BERT = {
    **SIZES,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
BART = {**SIZES, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
T5 = {**SIZES, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
START = {"decoder_start_token_id": 0}
MINILM = {**BERT, "num_attention_heads": 2}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, **START))
    elif kind == "bart":
        model = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART, **HEADS, **START))
    elif kind == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    elif kind == "roberta":
        model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**BERT))
    else:  # a sentence encoder such as MiniLM has no output layer
        model = transformers.BertModel(transformers.BertConfig(**MINILM))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.architectures = [type(model).__name__]
    return model.eval()


def bridge(kind: str) -> Any:
    return TransformerBridge.boot_transformers(kind, hf_model=make(kind), tokenizer=models.tokenizer(), device="cpu")


def save(kind: str, folder: Path) -> Path:
    make(kind).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


def truth(model: Any, table: Any) -> tuple[Any, list[int]]:
    tokenized = table.tokenize(models.tokenizer())
    lengths = [len(row) for row in tokenized.ids]
    ids, mask = (torch.from_numpy(part) for part in tokenized.batch(np.arange(len(lengths)), max(lengths)))
    with torch.no_grad():
        return model.run_with_cache(ids, attention_mask=mask, use_cache=False)[1], lengths


def record(*args: Any, **options: Any) -> Any:
    """Record a model that gives no statistics of the next token, and says so."""
    with pytest.warns(sl.errors.CheckWarning, match="no output statistics"):
        return sl.capture(*args, **options)


NO_T5 = pytest.mark.skipif(models.ON_39, reason="TransformerLens 3.9 cannot run T5 with transformers 5")
KINDS = [pytest.param("t5", marks=NO_T5), "bart"]
SITES = {
    "encoder_resid_post": "encoder_blocks.1.hook_out",
    "encoder_attn_out": "encoder_blocks.1.hook_attn_out",
    "decoder_resid_post": "decoder_blocks.1.hook_out",
    "decoder_resid_mid": "decoder_blocks.1.hook_resid_mid",
    "decoder_cross_attn_out": "decoder_blocks.1.hook_cross_attn_out",
    "encoder_q": "encoder_blocks.1.attn.hook_q",
    "decoder_q": "decoder_blocks.1.self_attn.hook_q",
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_stacks_of_an_encoder_decoder(kind: str, tmp_path: Path) -> None:
    model, table = bridge(kind), models.table(4)
    cache, lengths = truth(model, table)
    sites = [site for site, hook in SITES.items() if hook in model.hook_dict]
    assert {"encoder_resid_post", "decoder_resid_post"} <= set(sites)
    ds = record(
        model,
        table,
        tmp_path / "run.zarr",
        sites=sites,
        layers=[0, 1],
        positions=["last"],
        dtype="float32",
        batch_size=4,
    )
    for site in sites:
        hook = model.hook_dict[SITES[site]].name
        expected = torch.stack([cache[hook][row, length - 1] for row, length in enumerate(lengths)])
        recorded = ds[site].isel(stage=0, layer=1, token=0).values
        np.testing.assert_allclose(recorded, expected.numpy(), rtol=1e-5, atol=1e-5, err_msg=site)
    assert not np.allclose(ds.encoder_resid_post.values, ds.decoder_resid_post.values)
    assert set(OUTPUT_STATISTICS).isdisjoint(ds.variables), "the encoder reads the whole prompt"


@NO_T5
def test_the_full_name_of_a_stack_is_its_short_name(tmp_path: Path) -> None:
    ds = record(bridge("t5"), models.table(2), tmp_path / "run.zarr", sites=["decoder_blocks.2.hook_resid_post"])
    assert ds.decoder_resid_post.layer.values.tolist() == [2]


@pytest.mark.parametrize(("start", "shifted"), [(0, "prompt, shifted right"), (None, "prompt")])
def test_what_the_decoder_reads_is_known(start: int | None, shifted: str) -> None:
    model = bridge("t5")
    model.original_model.config.decoder_start_token_id = start
    assert adapt(model).processing["decoder_input"] == shifted
    assert "decoder_input" not in adapt(model, forward=lambda model, ids, mask: None).processing


def test_a_layer_that_one_stack_has_not(tmp_path: Path) -> None:
    with pytest.raises(sl.errors.InputError, match=r"'encoder_resid_post' does not exist in layers \[2\]"):
        sl.capture(bridge("t5"), models.table(2), tmp_path / "run.zarr", sites=["encoder_resid_post"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_an_encoder_decoder(kind: str, tmp_path: Path) -> None:
    folder, table = save(kind, tmp_path / "model"), models.table(3)
    sites = {"sites": ["encoder_resid_post", "decoder_resid_post"], "layers": [0, 1]}
    loaded = record({"a": folder}, table, tmp_path / "folder.zarr", **sites)
    direct = record({"a": bridge(kind)}, table, tmp_path / "bridge.zarr", **sites)
    for site in sites["sites"]:
        np.testing.assert_array_equal(loaded[site].values, direct[site].values)


def test_a_folder_of_t5_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = save("t5", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    missing = "encoder.block.1.layer.0.SelfAttention.q.weight"
    del tensors[missing]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(sl.errors.InputError, match=missing):
        sl.capture({"a": folder}, models.table(2), tmp_path / "run.zarr", sites=["encoder_resid_post"], layers=[0])


@pytest.mark.skipif(models.ON_39, reason="TransformerLens 3.9 does not know RoBERTa, and BERT as another class")
@pytest.mark.parametrize("kind", ["bert", "roberta", "minilm"])
def test_a_folder_of_an_encoder(kind: str, tmp_path: Path) -> None:
    folder, table = save(kind, tmp_path / "model"), models.table(3)
    ds = record({"a": folder}, table, tmp_path / "run.zarr", positions=["last"], batch_size=1)
    assert set(OUTPUT_STATISTICS).isdisjoint(ds.variables), "an encoder looks at later tokens"
    plain = make(kind)
    for row, ids in enumerate(table.tokenize(models.tokenizer()).ids):
        with torch.no_grad():
            states = plain(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states
        expected = torch.stack([state[0, -1] for state in states[1:]]).numpy()
        np.testing.assert_allclose(ds.resid_post.isel(stage=0, entity=row, token=0), expected, rtol=1e-4, atol=1e-4)
    again = record({"a": folder}, table, tmp_path / "run.zarr", positions=["last"], batch_size=1)
    assert again.sizes["stage"] == 1
