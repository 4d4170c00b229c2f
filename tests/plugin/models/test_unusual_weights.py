"""Weights that are not dense tensors in memory: offloaded, quantised, sharded, or on no device."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformer_lens.model_bridge import TransformerBridge

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.store.errors import InputError
from support import models


class Int8Weight(Tensor):
    """A quantised weight as torchao makes them: a subclass that consists of codes and of a scale for each row."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def of(cls, weight: Tensor) -> Any:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return ["codes", "scale"], {"block_size": (1, self.codes.shape[1]), "reader": object()}

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        args, kwargs = tree_map(
            lambda x: x.codes.to(x.scale.dtype) * x.scale if isinstance(x, cls) else x, (args, kwargs)
        )
        return function(*args, **(kwargs or {}))


class Opaque(Int8Weight):
    """A quantised weight that does not tell what it consists of."""

    __tensor_flatten__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"no {function}")


def quantise(model: Any, kind: Any = Int8Weight) -> Any:
    """Quantise the MLP of every block of a Hugging Face model."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.shape[0] == 48:
            module.weight = nn.Parameter(kind.of(module.weight.detach()), requires_grad=False)
    return model


def boot(model: Any, name: str = "tiny") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=models.tokenizer(), device="cpu")


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_weights_on_disk_have_the_fingerprint_of_weights_in_memory(tmp_path: Path, kind: str) -> None:
    folder = models.save_checkpoint(tmp_path / "a", kind, tie_word_embeddings=False)
    base = "model" if kind == "llama" else "gpt_neox"
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    places = {"lm_head": "cpu"} | {
        f"{base}.{name}": "cpu" for name, _ in getattr(plain, base).named_children() if name != "layers"
    }
    places |= {f"{base}.layers.{layer}": "disk" if layer else "cpu" for layer in range(models.LAYERS)}
    load = transformers.AutoModelForCausalLM.from_pretrained
    offloaded = load(folder, device_map=places, offload_folder=str(tmp_path / "disk"))
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    assert weights_fingerprint(offloaded) == weights_fingerprint(plain)
    if models.ON_39:  # its bridge refuses weights on disk
        return
    model = boot(offloaded, str(folder))
    assert weights_fingerprint(adapt(model)) == weights_fingerprint(plain)
    ds = sl.capture(model, models.table(3), tmp_path / "run.zarr")
    expected = sl.capture({"model": folder}, models.table(3), tmp_path / "b.zarr")
    np.testing.assert_array_equal(ds.resid_post.values, expected.resid_post.values)
    again = sl.capture({"model": folder}, models.table(3), tmp_path / "run.zarr")  # the same store, from memory
    assert bool(again.recorded.all())


def test_weights_on_no_device_are_named() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(models.config("gpt2"))
    with pytest.raises(
        InputError, match=r"the weights of \d+ tensors cannot be read: lm_head\.weight, transformer\.h\.0"
    ):
        weights_fingerprint(model)


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_quantised_weights(tmp_path: Path, kind: str) -> None:
    plain, one, two = (models.hf_model(kind) for _ in range(3))
    quantise(one), quantise(two)
    assert weights_fingerprint(one) == weights_fingerprint(two)
    assert weights_fingerprint(one) != weights_fingerprint(plain)
    linear = next(module for module in two.modules() if isinstance(getattr(module, "weight", None), Int8Weight))
    linear.weight.codes[0, 0] += 1
    assert weights_fingerprint(one) != weights_fingerprint(two)
    model = boot(one)
    fingerprint = weights_fingerprint(adapt(model))
    assert fingerprint == weights_fingerprint(quantise(models.hf_model(kind)))
    ds = sl.capture(model, models.table(3), tmp_path / "run.zarr")
    assert ds.weights_fingerprint.values.tolist() == [fingerprint]
    assert ds.attrs["recorded_with"]["quantization"] == {"weights": ["Int8Weight"]}
    ids = torch.tensor([models.tokenizer()(models.table(3).prompts[0]).input_ids])
    hidden = quantise(models.hf_model(kind))(ids, output_hidden_states=True).hidden_states[1]
    np.testing.assert_allclose(ds.resid_post.values[0, 0, 0, 0], hidden[0, -1].detach(), rtol=1e-4, atol=1e-5)


def test_a_tensor_without_bytes_is_named() -> None:
    model = quantise(models.hf_model("llama"), Opaque)
    with pytest.raises(
        InputError, match=r"the weights of 'model\.layers\.0\.mlp\.\w+\.weight' cannot be read: a Opaque"
    ):
        weights_fingerprint(model)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
def test_packed_parameters_of_pytorch() -> None:
    """Layers of torch.ao keep their weights in a tuple, and quantised tensors have no bytes to view."""
    weights = [torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]

    class Packed(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.packed = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)

        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            destination[f"{prefix}packed"] = (self.packed, None)

    first, same, other = (weights_fingerprint(Packed(weight)) for weight in (weights[0], weights[0], weights[1]))
    assert first == same
    assert first != other


def test_layers_whose_tensors_have_other_names_than_the_config_says() -> None:
    """GPTQ and its like keep `qweight` where the config's own class has `weight`."""

    class Quantised(nn.Module):
        def __init__(self, value: int) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.full((3,), value))

    fingerprints = []
    for value in (1, 1, 2):
        model = models.bridge("llama").original_model
        model.config.quantization_config = {"quant_method": "gptq"}
        model.model.layers[1].mlp.original_component.up_proj = Quantised(value)
        fingerprints.append(weights_fingerprint(model))
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprints[2]
