"""A small random model of each text architecture that TransformerLens and transformers know, without any download.

The sizes are set by the names that configs share. `SPECIAL` holds what one architecture also needs.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import transformers

VOCABULARY = 400
LAYERS = 3
CONTEXT = 64

DENSE, EXPERTS, STATE_SPACE, HYBRID, ENCODER, ENCODER_DECODER = FAMILIES = (
    "dense",
    "mixture of experts",
    "state space",
    "hybrid",
    "encoder",
    "encoder-decoder",
)

_STATE_SPACES = ("FalconMambaForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "RwkvForCausalLM")
_HYBRIDS = (
    "BambaForCausalLM",
    "FalconH1ForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "JambaForCausalLM",
    "Lfm2ForCausalLM",
    "Lfm2MoeForCausalLM",
    "NemotronHForCausalLM",
    "OlmoHybridForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "RecurrentGemmaForCausalLM",
    "Zamba2ForCausalLM",
)

#: Sizes by the names that configs have for them.
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "max_seq_len": CONTEXT,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 24,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 6,
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 0,
    # encoder-decoder
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": LAYERS,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 0,
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 8,
}

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

_T5GEMMA: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "sliding_window": 6,
    "query_pre_attn_scalar": 8,
}

#: What single architectures need: sizes that depend on each other, or a pattern of layers.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "BambaForCausalLM": {"attn_layer_indices": [1]},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "DeepseekV2ForCausalLM": {"num_key_value_heads": 4, "head_dim": 4, "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": {"num_key_value_heads": 4, "head_dim": 4, "n_group": 1, "topk_group": 1},
    "FalconForCausalLM": {"num_kv_heads": 4},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "GPTNeoForCausalLM": {
        "num_layers": LAYERS,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 6,
    },
    "Gemma4ForCausalLM": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "Glm4MoeLiteForCausalLM": {"num_key_value_heads": 4, "head_dim": 4},
    "GlmMoeDsaForCausalLM": {
        "num_key_value_heads": 4,
        "head_dim": 4,
        "index_topk": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
    },
    "GraniteMoeHybridForCausalLM": {
        "layer_types": ["mamba", "attention", "mamba"],
        "position_embedding_type": "rope",
    },
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2ForCausalLM": {"layer_types": ["conv", FULL, "conv"]},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", FULL, "conv"], "num_dense_layers": 1},
    "Mamba2ForCausalLM": {"head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "NemotronHForCausalLM": {"n_groups": 1, "layers_block_type": ["mamba", "attention", "moe"]},
    # Its decoder masks padding, so a decoder must not start with it.
    "T5GemmaForConditionalGeneration": {
        "encoder": dict(_T5GEMMA),
        "decoder": dict(_T5GEMMA),
        "decoder_start_token_id": 1,
    },
    "YoutuForCausalLM": {"num_key_value_heads": 4, "head_dim": 4},
    "Zamba2ForCausalLM": {
        "layer_types": ["mamba", "hybrid", "mamba"],
        "num_hidden_layers": LAYERS,
        "hybrid_layer_ids": [1],
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 8,
    },
    "OlmoHybridForCausalLM": {"layer_types": [LINEAR, FULL, LINEAR]},
    "Qwen3NextForCausalLM": {"layer_types": [LINEAR, FULL, LINEAR]},
    "Qwen3_5ForCausalLM": {"layer_types": [LINEAR, FULL, LINEAR]},
    "Qwen3_5MoeForCausalLM": {"layer_types": [LINEAR, FULL, LINEAR]},
}


def text_architectures() -> list[str]:
    """List the architectures of TransformerLens that transformers has and that read text alone, by name."""
    factory = importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    names = []
    for name in factory.SUPPORTED_ARCHITECTURES:
        model_class = getattr(transformers, name, None)
        if getattr(model_class, "main_input_name", None) == "input_ids" and not _has_other_inputs(model_class):
            names.append(name)
    return sorted(names)


def _has_other_inputs(model_class: Any) -> bool:
    return any(word in part for part in _parts(model_class.config_class) for word in ("vision", "audio", "vq"))


def _parts(config_class: Any) -> list[str]:
    """List the names of the configs inside a config, and of those inside them."""
    parts: Mapping[str, Any] = getattr(config_class, "sub_configs", {})
    return [*parts, *(name for part in parts.values() for name in _parts(part))]


def make_config(architecture: str, **changes: Any) -> Any:
    """Return the config of a small model."""
    config_class = getattr(transformers, architecture).config_class
    attributes = dict(getattr(config_class, "attribute_map", {}))
    names = {*inspect.signature(config_class.__init__).parameters, *attributes}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    special = SPECIAL.get(architecture, {})
    for name in {*special, *changes}:  # a special size replaces the common one under either of its names
        sizes.pop(name, None)
        for alias, original in attributes.items():
            if name in (alias, original):
                sizes.pop(alias, None)
                sizes.pop(original, None)
    config = config_class(**{**sizes, **special, **changes})
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0  # checkpoints have it, defaults do not
    return config


def make_model(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """Return a random Hugging Face model in evaluation mode.

    Matrices are larger than transformers makes them and vectors are random, so that no part of a block is near zero
    and no norm is the identity.
    """
    model_class = getattr(transformers, architecture)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = model_class(make_config(architecture, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.is_floating_point():
                    continue
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter.shape[-1]))
    model.config.architectures = [architecture]
    return model.float().eval()


def family(model: Any) -> str:
    """Return the family of a model, one of `FAMILIES`."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        return ENCODER_DECODER
    if name.endswith("ForMaskedLM") or name == "BertLMHeadModel":
        return ENCODER
    if name in _STATE_SPACES:
        return STATE_SPACE
    if name in _HYBRIDS:
        return HYBRID
    return EXPERTS if any("expert" in module for module, _ in model.named_modules()) else DENSE


def other_architectures() -> dict[str, str]:
    """Return the architectures of TransformerLens that are not verified, with the reason."""
    factory = importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    ours = set(text_architectures())
    return {
        name: "reads images or sound" if hasattr(transformers, name) else "not in transformers"
        for name in sorted(set(factory.SUPPORTED_ARCHITECTURES) - ours)
    }
