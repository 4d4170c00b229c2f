"""Checkpoints that are loaded over several devices, or with quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stratalens as sl
from stratalens.plugin.cli.capture_jobs import run_stages
from stratalens.plugin.cli.run_file import read_run_file
from stratalens.store.errors import InputError, MismatchError
from support import models

BASES = {"llama": "model", "neox": "gpt_neox"}


def places(kind: str) -> dict[str, str]:
    """Blocks on disk but the first one; everything else in memory."""
    base, model = BASES[kind], models.hf_model(kind)
    named = {f"{base}.{name}": "cpu" for name, _ in getattr(model, base).named_children() if name != "layers"}
    blocks = {f"{base}.layers.{layer}": "disk" if layer else "cpu" for layer in range(models.LAYERS)}
    head = next(name for name, _ in model.named_children() if name != base)
    return {head: "cpu"} | named | blocks


@pytest.mark.skipif(models.ON_39, reason="the bridge of TransformerLens 3.9 refuses weights on disk")
@pytest.mark.parametrize("kind", BASES)
def test_blocks_on_disk_record_the_bytes_of_one_device(tmp_path: Path, kind: str) -> None:
    folders = {
        n: models.save_checkpoint(tmp_path / n, kind, seed=i, tie_word_embeddings=False) for i, n in enumerate("ab")
    }
    options: dict[str, Any] = {"positions": ("last", "-2"), "sites": ("resid_post", "mlp_out"), "statistics": "all"}
    expected = sl.capture(folders, models.table(5), tmp_path / "one.zarr", **options)
    where = {"device_map": places(kind), "offload_folder": str(tmp_path / "disk")}
    over = {name: sl.Checkpoint(folder, model_kwargs=where) for name, folder in folders.items()}
    ds = sl.capture(over, models.table(5), tmp_path / "over.zarr", **options)
    assert ds.weights_fingerprint.values.tolist() == expected.weights_fingerprint.values.tolist()
    for name in expected.data_vars:
        np.testing.assert_array_equal(ds[name].values, expected[name].values, err_msg=str(name))
    third = models.save_checkpoint(tmp_path / "c", kind, seed=7, tie_word_embeddings=False)
    more = sl.capture(
        {"c": sl.Checkpoint(third, model_kwargs=where)}, models.table(5), tmp_path / "one.zarr", **options
    )
    assert more.stage.values.tolist() == ["a", "b", "c"]  # one store has stages of either kind
    with pytest.raises(InputError, match="device='cpu' and model_kwargs"):
        sl.capture(over, models.table(5), tmp_path / "c.zarr", device="cpu")
    assert not (tmp_path / "c.zarr").exists()


def test_arguments_that_a_stage_sets_itself_are_refused(tmp_path: Path) -> None:
    folder = models.save_checkpoint(tmp_path / "a", "llama")
    stage = sl.Checkpoint(folder, model_kwargs={"torch_dtype": "bfloat16", "revision": "main"})
    with pytest.raises(InputError, match="has revision, torch_dtype, which a stage sets itself"):
        sl.capture({"a": stage}, models.table(3), tmp_path / "run.zarr")
    hash(stage)


def test_attention_of_your_choice(tmp_path: Path) -> None:
    folder = models.save_checkpoint(tmp_path / "a", "llama")
    stages = {"a": sl.Checkpoint(folder, model_kwargs={"attn_implementation": "eager"})}
    ds = sl.capture(stages, models.table(3), tmp_path / "run.zarr")
    assert "quantization" not in ds.attrs["recorded_with"]
    again = sl.capture({"a": folder}, models.table(3), tmp_path / "b.zarr")
    np.testing.assert_allclose(ds.resid_post.values, again.resid_post.values, rtol=1e-4, atol=1e-6)


def test_quantised_weights_are_named_in_the_store(tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    transformers = pytest.importorskip("transformers")
    folder = models.save_checkpoint(tmp_path / "a", "llama", tie_word_embeddings=False)
    config = transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    stage = sl.Checkpoint(folder, model_kwargs={"quantization_config": config, "device_map": "cpu"})
    ds = sl.capture({"a": stage}, models.table(3), tmp_path / "run.zarr")
    facts = ds.attrs["recorded_with"]["quantization"]
    assert facts["config"]["quant_method"] == "torchao"
    assert facts["weights"] == ["Int8Tensor"]
    model = stage.load(None, None)
    ids = torch.tensor([models.tokenizer()(models.table(3).prompts[0]).input_ids])
    hidden = model.original_model(ids, output_hidden_states=True).hidden_states[1]  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(ds.resid_post.values[0, 0, 0, 0], hidden[0, -1].detach(), rtol=1e-4, atol=1e-6)
    with pytest.raises(MismatchError, match="fingerprint"):  # the same folder with its own weights is another model
        sl.capture({"a": folder}, models.table(3), tmp_path / "run.zarr")


def test_a_run_file_passes_them_on(tmp_path: Path) -> None:
    folder = models.save_checkpoint(tmp_path / "a", "llama")
    models.table(3).frame.to_csv(tmp_path / "prompts.csv", index=False)
    run = tmp_path / "run.yaml"
    run.write_text(
        "prompts: prompts.csv\nstore: run.zarr\nstages: {a: a}\nmodel_kwargs: {attn_implementation: eager}\n"
    )
    (stage,) = run_stages(read_run_file(run))
    assert stage.source == sl.Checkpoint(folder, model_kwargs={"attn_implementation": "eager"})
