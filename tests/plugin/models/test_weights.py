"""Weights fingerprints: equal through a bridge, on both lines and in any order; different for other weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.models.weights import weights_fingerprint
from support.models import BRIDGES, bridge, config, hf_model, save_checkpoint

# Of a GPT-2 whose weights are consecutive numbers; equal on TransformerLens 3.9 and 4.x.
COUNTED = "b83bd83a125e04701f75c87f3a909d5de8865b7659da829fa9b6eb43ed5dd562"


@pytest.mark.parametrize("kind", BRIDGES)
def test_a_bridge_has_the_fingerprint_of_the_model_inside(kind: str) -> None:
    plain = weights_fingerprint(hf_model(kind))
    assert weights_fingerprint(adapt(bridge(kind))) == plain
    assert weights_fingerprint(adapt(bridge(kind, seed=1))) != plain


def test_it_is_equal_on_both_lines() -> None:
    model = AutoModelForCausalLM.from_config(config("gpt2"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).remainder(251).reshape(parameter.shape) / 16)
    assert weights_fingerprint(model) == COUNTED


def test_a_saved_checkpoint_has_the_same_fingerprint(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a")
    assert weights_fingerprint(AutoModelForCausalLM.from_pretrained(folder)) == weights_fingerprint(hf_model("llama"))


def test_it_depends_on_names_dtypes_shapes_and_values() -> None:
    a = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    first = weights_fingerprint(a)
    b = nn.Module()
    b.add_module("1", a[1])  # another order of registration
    b.add_module("0", a[0])
    assert weights_fingerprint(b) == first
    assert weights_fingerprint(a.to(torch.bfloat16)) != first
    a.to(torch.float32)
    with torch.no_grad():
        a[0].bias[2] += 1
    assert weights_fingerprint(a) != first
    tall, wide = nn.Module(), nn.Module()
    tall.register_buffer("x", torch.ones(2, 3))
    wide.register_buffer("x", torch.ones(3, 2))
    assert weights_fingerprint(tall) != weights_fingerprint(wide)


def test_a_config_with_infinities_has_a_fingerprint() -> None:
    """Mamba2 limits its time step by infinity, which JSON cannot rebuild."""
    model = bridge("llama")
    before = weights_fingerprint(adapt(model))
    model.original_model.config.time_step_limit = (0.0, float("inf"))
    assert weights_fingerprint(adapt(model)) == before
