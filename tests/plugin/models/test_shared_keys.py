"""Models whose blocks share keys and values: the key-value cache changes nothing that is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from support import models

SHARED = ("gemma3n_text", "gemma4_text")


def shared_model(kind: str) -> Any:
    """Return a tiny model whose last two blocks read the keys and values of earlier blocks; skip if there is none."""
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    sizes = {"vocab_size": models.VOCABULARY, "vocab_size_per_layer_input": models.VOCABULARY, "hidden_size": 32}
    sizes |= {"intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 8, "hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 2}
    types = ["sliding_attention", "full_attention"] * 2
    extra: dict[str, Any] = (
        {"activation_sparsity_pattern": [0.0] * 4} if kind == "gemma3n_text" else {"global_head_dim": 8}
    )
    config = transformers.CONFIG_MAPPING[kind](**sizes, **extra, layer_types=types, sliding_window=8, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", SHARED)
def test_the_cache_changes_nothing(tmp_path: Path, kind: str) -> None:
    model = shared_model(kind)
    ids = torch.tensor([models.tokenizer()(models.table(1).prompts[0]).input_ids])
    with torch.no_grad():
        expected = model(ids, use_cache=True, output_hidden_states=True)
    try:
        bridge = transformers_bridge(model)
    except Exception as error:  # whatever TransformerLens cannot do with it
        pytest.skip(f"TransformerLens cannot boot {kind}: {error}")
    adapter = adapt(bridge)
    assert adapter.shares_keys_and_values
    ds = sl.capture(bridge, models.table(1), tmp_path / "run.zarr", statistics=("entropy",), check=False)
    hidden = [state[0, -1] for state in expected.hidden_states[1:-1]]
    for layer, value in enumerate(hidden):
        value = value[0] if value.ndim > 1 else value
        np.testing.assert_allclose(
            ds.resid_post.values[0, layer, 0, 0].ravel()[: value.numel()], value.ravel(), rtol=1e-3, atol=1e-4
        )
    entropy = torch.distributions.Categorical(logits=expected.logits[0, -1]).entropy()
    np.testing.assert_allclose(ds.entropy.values[0, 0, 0], entropy, rtol=1e-4)


def transformers_bridge(model: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model.config.architectures = [type(model).__name__]
    return TransformerBridge.boot_transformers("tiny", hf_model=model, tokenizer=models.tokenizer(), device="cpu")


def test_a_model_that_computes_something_else_without_a_cache(tmp_path: Path) -> None:
    """Keys and values of a shared block come from the cache alone, as in earlier versions of transformers."""
    model = models.hf_model("llama")
    model.config.num_kv_shared_layers = 1
    plain = model.forward

    def forward(*args: Any, use_cache: bool = True, **kwargs: Any) -> Any:
        result = plain(*args, use_cache=use_cache, **kwargs)
        result.logits = result.logits + (0 if use_cache else 1) * torch.arange(models.VOCABULARY)
        return result

    ids = torch.tensor([models.tokenizer()(models.table(1).prompts[0]).input_ids])
    with torch.no_grad():
        expected = torch.distributions.Categorical(logits=model(ids).logits[0, -1]).entropy()
    model.forward = forward
    bridge = transformers_bridge(model)
    seen: list[Any] = []
    bridge.original_model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs.get("use_cache")), with_kwargs=True
    )
    ds = sl.capture(bridge, models.table(1), tmp_path / "run.zarr", statistics=("entropy",), check=False)
    assert False not in seen
    np.testing.assert_allclose(ds.entropy.values[0, 0, 0], expected, rtol=1e-4)


@pytest.mark.parametrize(("kind", "changes"), [("llama", False), ("mixtral", True)])
def test_the_store_says_whether_the_batch_size_changes_values(tmp_path: Path, kind: str, changes: bool) -> None:
    if kind == "mixtral":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.MixtralConfig(vocab_size=models.VOCABULARY, num_key_value_heads=2, **sizes)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bridge = transformers_bridge(transformers.MixtralForCausalLM(config).eval())
    else:
        bridge = models.bridge(kind)
    sl.capture(bridge, models.table(6), tmp_path / "run.zarr", statistics=False)
    with sl.create_store(tmp_path / "run.zarr", models.table(6), bridge, statistics=False) as store:
        note = store.writer.store.recorded_with["batch_size"]
    assert note["changes_values"] is changes
    assert (note["largest_difference"] > 0) is changes
    assert note["sites"] == (["resid_post"] if changes else [])
