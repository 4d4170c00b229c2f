"""Faults planted into a tiny Llama, and the checks of `stratalens.check` that find each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stratalens.plugin.models.adapters import adapt
from support import models

#: A model or adapter, and the forward function of a loop or None.
Planted = tuple[Any, Any]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        text: the fault, as the page says it.
        found_by: checks that must find it; empty for a fault that no check finds.
        plant: returns a model with the fault.
        remark: why no check finds it, and what to use instead.
    """

    text: str
    found_by: tuple[str, ...]
    plant: Callable[[], Planted]
    remark: str = ""


def other_hook(wrong: str, right: str) -> Callable[[], Planted]:
    def plant() -> Planted:
        adapter = adapt(models.bridge("llama", num_key_value_heads=4))
        adapter.points[wrong] = adapter.points[right]
        return adapter, None

    return plant


def on_output(change: Callable[[Tensor], Tensor], module: str = "embeddings") -> Callable[[], Planted]:
    """Plant a change of the output of a module of the Hugging Face model."""

    def plant() -> Planted:
        model = models.bridge("llama")
        place = model.original_model.get_input_embeddings() if module == "embeddings" else model.original_model.lm_head
        place.register_forward_hook(lambda m, args, output: change(output))
        return model, None

    return plant


def leak() -> Planted:
    model = models.bridge("llama")
    last = [0.0]

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        changed = output + 0.1 * last[0]
        last[0] = float(output.mean())
        return changed

    model.original_model.get_input_embeddings().register_forward_hook(add)
    return model, None


def cache_changes_values() -> Planted:
    model = models.bridge("llama")
    factor = [1.0]

    def see_cache(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        factor[0] = 1.0 if kwargs.get("use_cache") else 1.01

    model.original_model.register_forward_pre_hook(see_cache, with_kwargs=True)
    model.original_model.get_input_embeddings().register_forward_hook(lambda module, args, out: out * factor[0])
    return model, None


def other_computation() -> Planted:
    model = models.bridge("llama")
    model.blocks[0].mlp.register_forward_hook(lambda module, args, output: 1.01 * output)
    return model, None


def mask_replaces_the_causal_mask() -> Planted:
    model = models.bridge("llama")

    def see_all(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None:
            kwargs["attention_mask"] = mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1)
        return args, kwargs

    model.original_model.register_forward_pre_hook(see_all, with_kwargs=True)
    return model, None


def loop(forward: Any) -> Callable[[], Planted]:
    return lambda: (models.bridge("llama"), forward)


def positions_with_padding(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model(ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None].expand_as(ids))


def other_weights() -> Planted:
    model = models.bridge("llama")
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    return model, None


HEAD = ("fault", "found by", "remark")
BLOCK = "blocks.1."
FAULTS = (
    Fault(
        "a hook holds another site of its block (`mlp_out` holds `attn_out`)",
        ("residual sum", "Hugging Face module"),
        other_hook(f"{BLOCK}hook_mlp_out", f"{BLOCK}hook_attn_out"),
    ),
    Fault(
        "a hook holds the same site of the block before",
        ("residual sum", "Hugging Face module"),
        other_hook(f"{BLOCK}hook_resid_mid", "blocks.0.hook_resid_mid"),
    ),
    Fault(
        "a hook holds the input of its block instead of the output",
        ("residual sum", "next block", "Hugging Face module"),
        other_hook(f"{BLOCK}hook_resid_post", f"{BLOCK}hook_resid_pre"),
    ),
    Fault(
        "TransformerLens computes a part in another way than transformers",
        ("same as transformers",),
        other_computation,
        "TransformerLens 3.9 does this to the attention of Cohere, DeepSeek and others",
    ),
    Fault(
        "keys under the name of queries",
        ("Hugging Face module",),
        other_hook(f"{BLOCK}attn.hook_q", f"{BLOCK}attn.hook_k"),
    ),
    Fault(
        "the final norm's input under the name of its output",
        ("Hugging Face module",),
        other_hook("ln_final.hook_out", "ln_final.hook_in"),
    ),
    Fault(
        "the loop passes no attention mask",
        ("left padding",),
        loop(lambda model, ids, mask: model(ids)),
        "not seen by `capture`, which pads on the right",
    ),
    Fault(
        "the model looks at the padding (a mean over all tokens is added)",
        ("padded = unpadded", "mask respected"),
        on_output(lambda x: x + x.mean(dim=1, keepdim=True)),
    ),
    Fault("a pass depends on the pass before it", ("padded = unpadded",), leak),
    Fault(
        "a pass is random (noise, dropout that evaluation mode does not end)",
        ("twice = once",),
        on_output(lambda x: x + 0.01 * torch.randn_like(x)),
    ),
    Fault(
        "an attention mask replaces the causal mask of the whole model, so that tokens see later ones",
        (),
        mask_replaces_the_causal_mask,
        "Every pass of the check has a mask. Where TransformerLens does this to an attention, as to GPT-1, "
        "*same as transformers* finds it.",
    ),
    Fault(
        "a row depends on the other rows of its batch",
        ("batch = single",),
        on_output(lambda x: x + 0.5 * x.mean(dim=0, keepdim=True)),
    ),
    Fault("`use_cache=False` changes values", ("cache on = off",), cache_changes_values),
    Fault(
        "the logits are changed behind the head",
        (),
        on_output(lambda x: 2 * x, "head"),
        "Some architectures scale their logits, so this check cannot tell. The logits check is then *not checkable*.",
    ),
    Fault(
        "position ids count the padding on the left",
        (),
        loop(positions_with_padding),
        "Both passes of the check count in the same way. stratalens itself pads on the right.",
    ),
    Fault(
        "the weights are not those of the checkpoint",
        (),
        other_weights,
        "The check compares hooks with the model in memory. Stages have weight fingerprints for this.",
    ),
)


def table() -> str:
    """Return the table of the page."""
    rows = ((fault.text, ", ".join(fault.found_by) or "**not found**", fault.remark) for fault in FAULTS)
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in (HEAD, ("---",) * 3, *rows))
