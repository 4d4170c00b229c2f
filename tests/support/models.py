"""Tiny random models of several architectures with hooks, built from configs without any download.

There are Hugging Face models, a TransformerBridge around each, a HookedTransformer with TransformerLens 3.9, and a
HookedRootModule as a user may write one.
"""

import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformer_lens
import transformers
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge

from stratalens.plugin.models.adapters import HookedTransformer
from stratalens.plugin.prompts.table import PromptTable
from support.tokenizers import byte_level

VOCABULARY = 400
LAYERS = 3
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GEMMA = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
BRIDGES = ("llama", "gpt2", "neox", "gemma2")
ON_39 = HookedTransformer is not None


def config(kind: str, **changes: Any) -> Any:
    """Return the config of a tiny model."""
    if kind == "llama":
        return transformers.LlamaConfig(**{**COMMON, "num_key_value_heads": 2, "tie_word_embeddings": True, **changes})
    if kind == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
        return transformers.GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes})
    if kind == "neox":
        return transformers.GPTNeoXConfig(**{**COMMON, **changes})
    if kind == "gemma":
        return transformers.GemmaConfig(**{**_GEMMA, "num_key_value_heads": 1, **changes})
    if kind == "gemma2":  # the cap is so low that it changes the logits
        special = {"sliding_window": 8, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8}
        return transformers.Gemma2Config(**{**_GEMMA, **special, **changes})
    if kind == "cohere":  # logits are scaled
        return transformers.CohereConfig(**{**COMMON, "num_key_value_heads": 2, "logit_scale": 0.25, **changes})
    if kind == "opt":  # a projection between the final norm and the output layer
        sizes = {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": True}
        return transformers.OPTConfig(**{**COMMON, **sizes, **changes})
    raise ValueError(kind)


def hf_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return a random Hugging Face model in evaluation mode; norms and biases are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config(kind, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.mul_(3.0)
    model.config.architectures = [type(model).__name__]
    return model.to(dtype).eval()


@cache
def tokenizer_folder() -> str:
    """Save a byte-level tokenizer; TransformerLens loads tokenizers by their path."""
    folder = tempfile.mkdtemp(prefix="tokenizer-")
    byte_level(VOCABULARY).save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """Return the tokenizer of all these models; it has no BOS."""
    return transformers.AutoTokenizer.from_pretrained(tokenizer_folder())


def bridge(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return a TransformerBridge around `hf_model`."""
    model = hf_model(kind, seed, dtype, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns about random models
        return TransformerBridge.boot_transformers(
            f"tiny-{kind}", hf_model=model, tokenizer=tokenizer(), dtype=dtype, device="cpu"
        )


def hooked(kind: str) -> Any:
    """A hooked model: a bridge, one in compatibility mode, or "hooked" for a HookedTransformer."""
    if kind == "hooked":
        return hooked_transformer()
    model = bridge("gpt2" if kind == "compatibility" else kind)
    if kind == "compatibility":
        model.enable_compatibility_mode(disable_warnings=True)
    return model


def hooked_transformer(seed: int = 0, **changes: Any) -> Any:
    """Return a random HookedTransformer with grouped-query attention and softcapped logits; needs version 3.9."""
    sizes = {"n_layers": LAYERS, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 48, "n_ctx": 64}
    special = {
        "n_key_value_heads": 2,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "output_logits_soft_cap": 2.0,
        "d_vocab": VOCABULARY,
        "device": "cpu",
    }
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(seed)
        cfg = transformer_lens.HookedTransformerConfig(**{**sizes, **special, **changes})
        model = transformer_lens.HookedTransformer(cfg, tokenizer=tokenizer())
        model.init_weights()
        with torch.no_grad():
            model.ln_final.w.add_(0.1 * torch.randn_like(model.ln_final.w))
    return model.eval()


class TwoLayers(HookedRootModule):
    """A causal model as a user may write one: running means through two residual layers, with hooks."""

    def __init__(self, seed: int = 0, width: int = 12) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(VOCABULARY, width)
            self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
            self.out = nn.Linear(width, VOCABULARY)
        self.layers = nn.ModuleList(nn.ModuleDict({"hook_state": HookPoint()}) for _ in range(2))
        self.hook_embed = HookPoint()
        self.hook_total = HookPoint()
        self.setup()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits of shape (batch, position, vocab)."""
        x = self.hook_embed(self.embed(ids) * mask[..., None])
        self.hook_total(x.sum(1))
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)[:, None]
        for weights, layer in zip(self.maps, self.layers, strict=True):
            x = layer["hook_state"](x + torch.tanh(weights(x)).cumsum(1) / steps)
        return self.out(x)


def run_two_layers(model: TwoLayers, ids: Tensor, mask: Tensor) -> Tensor:
    """Run a `TwoLayers`; the argument `forward=` of a capture."""
    return model(ids, mask)


NAMES = ("Ann", "Bob", "the river Donau", "Ann Smith", "São Paulo", "it", "a very long name of a village", "Norway")


def table(rows: int = 10, seed: int = 0, answers: bool = False) -> PromptTable:
    """Return prompts of several lengths with an entity in each."""
    rng = np.random.default_rng(seed)
    entities = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(rows)]
    prompts = [f"Q: Who is {e}?" + " The" * int(rng.integers(0, 9)) + "\nA:" for e in entities]
    frame = pd.DataFrame({"prompt": prompts, "entity": entities, "group": [i % 3 for i in range(rows)]})
    if answers:
        frame["answer"] = [f" a {NAMES[int(i)]}" for i in rng.integers(0, len(NAMES), rows)]
    return PromptTable.from_dataframe(frame)


def save_checkpoint(folder: Path, kind: str = "llama", seed: int = 0, **kwargs: Any) -> Path:
    """Write a checkpoint folder with config, safetensors and tokenizer; return the folder."""
    hf_model(kind, seed, **kwargs).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
