"""check(): silent on models that are right, and each planted fault is found by its own check."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from stratalens.plugin.check.check import check
from stratalens.plugin.check.report import relative_difference
from stratalens.plugin.models.adapters import adapt
from support import models

# TransformerLens 3.9 computes the attention of Cohere in another way than transformers.
KINDS = ("llama", "gpt2", "neox", "gemma2", "gemma", *(() if models.ON_39 else ("cohere",)))


def checks_that_fail(report: Any) -> set[str]:
    return {finding.check for finding in report.failures}


@pytest.mark.parametrize("kind", KINDS)
def test_no_false_alarm(kind: str) -> None:
    report = check(models.bridge(kind), models.table(4))
    assert report.ok, str(report)
    verdicts = report.table.groupby("check").verdict.unique()
    for name in ("logits", "Hugging Face module", "padded = unpadded", "cache on = off", "left padding"):
        assert "not checkable" not in verdicts[name], (name, str(report))
    assert report.rows == 1
    assert report.tokens <= 12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "neox", "gemma"])
def test_no_false_alarm_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    report = check(models.bridge(kind, dtype=dtype), models.table(4))
    assert report.ok, str(report)
    assert {"Hugging Face module", "padded = unpadded"} <= set(report.table.check)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fault_in_half_precision(dtype: torch.dtype) -> None:
    adapter = adapt(models.bridge("llama", dtype=dtype))
    adapter.points["blocks.1.hook_mlp_out"] = adapter.points["blocks.1.hook_attn_out"]
    report = check(adapter, models.table(4))
    assert {("mlp_out", 1)} <= {(f.site, f.layer) for f in report.failures if f.check == "Hugging Face module"}


@pytest.mark.parametrize("name", ["Apertus", "Afmoe"])
def test_no_false_alarm_where_a_norm_has_another_name(name: str) -> None:
    """The norm before the MLP is feedforward_layernorm or pre_mlp_layernorm; its input is resid_mid."""
    sizes = {**models.COMMON, "num_key_value_heads": 2, "head_dim": 8}
    if name == "Afmoe":
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "sliding_window": 8}
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    model.config.architectures = [f"{name}ForCausalLM"]
    bridge = TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=models.tokenizer(), device="cpu")
    report = check(bridge, models.table(4))
    assert report.ok, str(report)
    assert "resid_mid" in set(report.table[report.table.check == "Hugging Face module"].site)


@pytest.mark.skipif(not models.ON_39, reason="HookedTransformer exists in TransformerLens 3.9 only")
def test_no_false_alarm_on_a_hooked_transformer() -> None:
    report = check(models.hooked_transformer(), models.table(4))
    assert report.ok, str(report)
    assert {"residual sum", "logits", "padded = unpadded"} <= set(report.table.check)


def test_a_model_of_the_users_own() -> None:
    report = check(models.TwoLayers(), models.table(4), tokenizer=models.tokenizer(), forward=models.run_two_layers)
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", ["llama", "neox"])
@pytest.mark.parametrize(
    ("site", "other"), [("mlp_out", "attn_out"), ("resid_post", "resid_pre"), ("q", "k"), ("v", "k")]
)
def test_the_wrong_tensor_under_a_name(kind: str, site: str, other: str) -> None:
    """The site of one layer holds another tensor of the same layer."""
    adapter = adapt(models.bridge(kind, num_key_value_heads=4))
    name = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v"}
    wrong, right = (f"blocks.1.{name.get(s, f'hook_{s}')}" for s in (site, other))
    adapter.points[wrong] = adapter.points[right]
    report = check(adapter, models.table(4))
    assert "Hugging Face module" in checks_that_fail(report)
    assert {(f.site, f.layer) for f in report.failures if f.check == "Hugging Face module"} == {(site, 1)}


def test_the_layer_before_under_a_name() -> None:
    adapter = adapt(models.bridge("llama"))
    adapter.points["blocks.2.hook_resid_mid"] = adapter.points["blocks.1.hook_resid_mid"]
    report = check(adapter, models.table(4))
    assert {"residual sum", "Hugging Face module"} <= checks_that_fail(report)
    assert {f.layer for f in report.failures} == {2}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_mask_that_is_ignored(kind: str) -> None:
    model = models.bridge(kind)
    report = check(model, models.table(4), forward=lambda model, ids, mask: model(ids))
    assert checks_that_fail(report) == {"left padding"}


class Leak:
    """Adds a part of the last pass to the embeddings of this one."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        changed = output + 0.1 * self.last
        self.last = float(output.mean())
        return changed


def test_state_from_the_last_pass() -> None:
    model = models.bridge("llama")
    model.original_model.get_input_embeddings().register_forward_hook(Leak())
    assert "padded = unpadded" in checks_that_fail(check(model, models.table(4)))


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_use_cache_that_changes_values(kind: str) -> None:
    """Models that share keys and values between layers once gave other values without a cache."""
    model = models.bridge(kind)
    factor = [1.0]

    def see_cache(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        factor[0] = 1.0 if kwargs.get("use_cache") else 1.01

    model.original_model.register_forward_pre_hook(see_cache, with_kwargs=True)
    model.original_model.get_input_embeddings().register_forward_hook(lambda module, args, out: out * factor[0])
    assert checks_that_fail(check(model, models.table(4))) == {"cache on = off"}


def test_a_mask_that_attention_needs() -> None:
    """A model that looks at all tokens in both directions must not see the padding."""

    def mean_of_all(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        x = model.hook_embed(model.embed(ids))
        return model.layers[0]["hook_state"](x + x.mean(dim=1, keepdim=True))

    report = check(models.TwoLayers(), models.table(4), tokenizer=models.tokenizer(), forward=mean_of_all)
    assert {"padded = unpadded", "mask respected"} <= checks_that_fail(report)


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    model = models.bridge("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    model.original_model.train()
    assert check(model, models.table(4)).ok
    assert model.original_model.training


def test_no_hook_is_left_behind() -> None:
    model = models.bridge("llama")
    check(model, models.table(2))  # the bridge adds hooks of its own in the first pass
    modules = list(model.original_model.modules())
    before = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules]
    check(model, models.table(2))
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules] == before


def test_without_a_table_and_without_a_tokenizer() -> None:
    model = models.bridge("llama")
    assert check(model).ok
    model.tokenizer = None
    assert check(model).ok


def test_the_report_as_text_table_and_json() -> None:
    report = check(models.bridge("llama"), models.table(3))
    text = str(report)
    assert "Every value that can be checked is what the model computes." in text
    assert max(map(len, text.splitlines())) <= 100
    assert list(report.table.columns) == ["check", "site", "layer", "verdict", "difference", "note"]
    document = json.loads(report.to_json())
    assert document["ok"] is True
    assert len(document["findings"]) == len(report.table)
    assert json.loads(json.dumps(report.summary()))["checks"]["residual sum: resid_mid"]["verdict"] == "equal"


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, float("nan")], [1.0, float("nan")], 0.0),
        ([1.0, float("nan")], [1.0, 2.0], float("inf")),
        ([float("inf"), 1.0], [float("inf"), 1.0], 0.0),
        ([0.0, 1e-9], [0.0, 0.0], float("inf")),
    ],
)
def test_relative_difference(value: list[float], reference: list[float], expected: float) -> None:
    assert relative_difference(torch.tensor(value), torch.tensor(reference)) == expected


def test_a_hook_of_the_users_own_is_no_fault() -> None:
    """Whoever changes activations on purpose records what the changed model computes."""
    model = models.bridge("llama")
    model.add_hook("blocks.1.hook_resid_post", lambda value, hook: value * 1.5)
    report = check(model, models.table(4))
    assert report.ok, str(report)
    assert "hooks of your own are on the model" in set(report.table.note)
