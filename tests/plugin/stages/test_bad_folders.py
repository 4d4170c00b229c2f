"""Checkpoint folders that cannot be loaded: one message that names the file or the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import stratalens as sl
from stratalens.store.errors import CheckWarning, InputError
from support import models

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**document, **changes}))

    return change


def replace_model(model: Any) -> Callable[[Path], None]:
    return lambda folder: model().save_pretrained(folder)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated weights": (cut, r"model\.safetensors is damaged or incomplete: .*Copy the file again"),
    "no safetensors": (write("model.safetensors", "abc"), r"model\.safetensors is damaged or incomplete"),
    "broken config": (write("config.json", "{broken"), r"config\.json cannot be read: .*line 1 column 2"),
    "no object": (write("config.json", "[]"), r"config\.json cannot be read: it is not a JSON object"),
    "broken tokenizer": (write("tokenizer.json", "{broken"), r"tokenizer\.json cannot be read: .*line 1 column 2"),
    "other size": (config(hidden_size=64), r"another shape than its config says: .* and \d+ more"),
    "more layers": (config(num_hidden_layers=5), r"no weights for \d+ tensors"),
    "invalid value": (config(hidden_size="big"), "could not be loaded: .*expected int, got str"),
    "unknown type": (config(model_type="foo"), "model_type 'foo', which transformers .* does not know"),
    "image model": (
        replace_model(lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES))),
        "is of type 'vit', which transformers does not load as a language model",
    ),
    "unknown to TransformerLens": (
        replace_model(lambda: transformers.BioGptForCausalLM(transformers.BioGptConfig(vocab_size=400, **SIZES))),
        r"TransformerLens \S+ cannot hook BioGptForCausalLM .*most similar names are \w+, \w+, \w+, \w+, \w+\. Install",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore:Config:UserWarning")
def test_a_bad_folder_is_named_with_its_reason(tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    folder = models.save_checkpoint(tmp_path / "a", "neox" if "size" in fault or "layers" in fault else "llama")
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        sl.capture({"a": folder}, models.table(3), tmp_path / "run.zarr")
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 900
    assert not (tmp_path / "run.zarr").exists()


def test_a_config_with_fewer_blocks_than_the_weights(tmp_path: Path) -> None:
    folder = models.save_checkpoint(tmp_path / "a", "neox")
    config(num_hidden_layers=2)(folder)
    with pytest.warns(
        CheckWarning, match=r"\d+ tensors of blocks that its config\.json leaves out: gpt_neox\.layers\.2"
    ):
        ds = sl.capture({"a": folder}, models.table(3), tmp_path / "run.zarr")
    assert ds.sizes["layer"] == 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_a_broken_base_of_an_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder, adapter = models.save_checkpoint(tmp_path / "base"), tmp_path / "adapter"
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    peft.get_peft_model(models.hf_model("llama"), lora).save_pretrained(adapter)
    weights = (folder / "model.safetensors").read_bytes()
    cut(folder)
    stage = sl.LoraAdapter(adapter, base=folder)
    with pytest.raises(InputError, match=r"base.*model\.safetensors is damaged"):
        sl.capture({"a": stage}, models.table(3), tmp_path / "run.zarr")
    (folder / "model.safetensors").write_bytes(weights)
    (adapter / "adapter_model.safetensors").write_bytes(b"abc")
    with pytest.raises(InputError, match=r"adapter.*adapter_model\.safetensors is damaged"):
        sl.capture({"a": stage}, models.table(3), tmp_path / "run.zarr")
