"""Modules of a Hugging Face model by site, found by the names that transformers gives them.

The bridge replaces modules inside the Hugging Face model by components with hook points. The mapping here does not use
that of the bridge, so that a site which the bridge takes from the wrong tensor is seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from stratalens.plugin.check.traces import Side
from stratalens.plugin.models.adapters import BridgeAdapter

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "feedforward", "mlp_block")
_QUERY = ("q_proj", "query", "q_lin", "wq")
_KEY = ("k_proj", "key", "k_lin", "wk")
_VALUE = ("v_proj", "value", "v_lin", "wv")
_JOINT = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj", "att_proj")
_OUT = ("o_proj", "out_proj", "dense", "c_proj", "out_lin", "wo", "Wo")
_DOWN = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "lin2", "output_linear", "Wo")
_UP = ("gate_proj", "c_fc", "fc1", "fc_in", "dense_h_to_4h", "w1", "lin1", "up_proj")
_GATE_UP = ("gate_up_proj", "Wi")
_PRE_MLP_NORM = (
    "pre_feedforward_layernorm",
    "pre_ff_layernorm",
    "pre_mlp_layernorm",
    "feedforward_layernorm",
    "ln_2",
    "ln2",
    "ffn_norm",
    "final_layer_norm",
    "norm_2",
    "mlp_norm",
)
_POST_MLP_NORM = ("post_feedforward_layernorm", "post_mlp_layernorm")
_STACK = re.compile(r"(?:^|\.)(encoder|decoder)\.(?:block|layers)$")
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")


@dataclass(frozen=True)
class ModuleSide:
    """The input or the output of a module."""

    name: str
    side: Side


@dataclass
class HFModules:
    """Modules of a Hugging Face model by site.

    Attributes:
        sides: (site, layer) -> module and side that hold the site.
        joint: layer -> (projection of q, k and v, attention module whose input it takes).
        halves: layer -> module whose output holds gate and up projection behind each other.
        modules: name -> module, for the hooks.
    """

    sides: dict[tuple[str, int | None], ModuleSide] = field(default_factory=dict)
    joint: dict[int, tuple[str, str]] = field(default_factory=dict)
    halves: dict[int, str] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def add(self, site: str, layer: int | None, name: str, module: nn.Module | None, side: Side) -> None:
        """Add the module of a site, if there is one."""
        if module is not None and (site, layer) not in self.sides:
            self.modules[name] = module
            self.sides[site, layer] = ModuleSide(name, side)


def find_modules(adapter: BridgeAdapter) -> HFModules:
    """Find the modules of all sites."""
    modules = HFModules()
    modules.add("embed", None, "input embeddings", _embeddings(adapter, "get_input_embeddings"), "output")
    modules.add("ln_final", None, "output embeddings", _embeddings(adapter, "get_output_embeddings"), "input")
    for name, module in adapter.hf.named_modules():
        if name.rsplit(".", 1)[-1] in _POSITIONS:
            modules.add("pos_embed", None, "position embeddings", module, "output")
    if adapter.final_norm is not None:
        modules.modules["final norm"] = plain_module(adapter.final_norm)
    if adapter.is_encoder_decoder:
        _add_stacks(modules, adapter)
        return modules
    has_middle = "blocks.0.hook_resid_mid" in adapter.points
    for layer, block in enumerate(_blocks(adapter)):
        _add_block(modules, layer, block, has_middle)
    return modules


def _add_block(modules: HFModules, layer: int, block: nn.Module, has_middle: bool) -> None:
    at = f"block {layer}"
    modules.add("resid_pre", layer, at, block, "input")
    modules.add("resid_post", layer, at, block, "output")
    attention, mlp = child(block, _ATTENTION), child(block, _MLP)
    if (dense := descend(attention, "output", "dense")) is not None:  # BERT and its kind
        modules.add("attn_out", layer, f"{at} attention output", dense, "output")
        modules.add("z", layer, f"{at} attention output", dense, "input")
    if (up := descend(block, "intermediate", "dense")) is not None:
        down = descend(block, "output", "dense")
        modules.add("mlp_pre", layer, f"{at} intermediate", up, "output")
        modules.add("resid_mid", layer, f"{at} intermediate", up, "input")
        modules.add("mlp_post", layer, f"{at} output", down, "input")
        modules.add("mlp_out", layer, f"{at} output", down, "output")
    if mlp is None:  # OPT and its kind have the layers of the MLP in the block
        mlp = block if child(block, ("fc2",)) is not None else None
        modules.add("mlp_out", layer, f"{at} mlp down", child(mlp, ("fc2",)), "output")
    _add_norms(modules, layer, block, attention, mlp, has_middle)
    attention = child(attention, ("self", "attention")) or attention
    for site, names in (("q", _QUERY), ("k", _KEY), ("v", _VALUE)):
        modules.add(site, layer, f"{at} {site}", child(attention, names), "output")
    joint = child(attention, _JOINT)
    if joint is not None and attention is not None:
        modules.modules[f"{at} qkv"], modules.modules[f"{at} attention itself"] = joint, attention
        modules.joint[layer] = (f"{at} qkv", f"{at} attention itself")
    modules.add("z", layer, f"{at} attention out", child(attention, _OUT), "input")
    modules.add("mlp_post", layer, f"{at} mlp down", child(mlp, _DOWN), "input")
    modules.add("mlp_pre", layer, f"{at} mlp up", child(mlp, _UP), "output")
    if (gate_up := child(mlp, _GATE_UP)) is not None and ("mlp_pre", layer) not in modules.sides:
        modules.modules[f"{at} gate and up"] = gate_up
        modules.halves[layer] = f"{at} gate and up"


def _add_stacks(modules: HFModules, adapter: BridgeAdapter) -> None:
    """Add the blocks of an encoder and of a decoder; what is inside them differs too much between models."""
    for name, module in adapter.hf.named_modules():
        match = _STACK.search(name)
        if match is None or not isinstance(module, nn.ModuleList):
            continue
        stack = match.group(1)
        for layer, block in enumerate(module):
            at = f"{stack} block {layer}"
            modules.add(f"{stack}_resid_pre", layer, at, block, "input")
            modules.add(f"{stack}_resid_post", layer, at, block, "output")


def _add_norms(
    modules: HFModules,
    layer: int,
    block: nn.Module,
    attention: nn.Module | None,
    mlp: nn.Module | None,
    has_middle: bool,
) -> None:
    """Add attn_out, mlp_out and resid_mid, which depend on the norms of the block.

    The name post_attention_layernorm means two things. Where a norm follows the MLP, and there is no
    post_self_attn_layernorm, it normalises the output of the attention; otherwise it is the norm before the MLP.
    """
    at = f"block {layer}"
    post_mlp, post_attention = child(block, _POST_MLP_NORM), child(block, ("post_self_attn_layernorm",))
    before_mlp = child(block, _PRE_MLP_NORM)
    ambiguous = child(block, ("post_attention_layernorm",))
    if post_mlp is not None and post_attention is None:
        post_attention = ambiguous
    elif before_mlp is None:
        before_mlp = ambiguous
    modules.add("attn_out", layer, f"{at} norm after attention", post_attention, "output")
    modules.add("attn_out", layer, f"{at} attention", attention, "output")
    if attention is not None:
        modules.modules[f"{at} attention"] = attention
    modules.add("mlp_out", layer, f"{at} norm after mlp", post_mlp, "output")
    if mlp is not block:
        modules.add("mlp_out", layer, f"{at} mlp", mlp, "output")
    if has_middle:
        modules.add("resid_mid", layer, f"{at} norm before mlp", before_mlp, "input")
        if mlp is not block and _norms(block) <= {post_mlp, post_attention}:  # no norm is between the two
            modules.add("resid_mid", layer, f"{at} mlp", mlp, "input")


def _norms(block: nn.Module) -> set[nn.Module | None]:
    """Return the norms of a block, by their names."""
    return {m for name, m in plain_module(block).named_children() if "norm" in name.lower() or name.startswith("ln")}


def child(module: nn.Module | None, names: Sequence[str]) -> nn.Module | None:
    """Return the first child with one of these names, of the Hugging Face module inside a bridge component."""
    if module is None:
        return None
    children = dict(plain_module(module).named_children())
    return next((children[name] for name in names if name in children), None)


def descend(module: nn.Module | None, *names: str) -> nn.Module | None:
    """Return the child of a child of a module, or None."""
    for name in names:
        module = child(module, (name,))
    return module


def plain_module(module: nn.Module) -> nn.Module:
    """Return the Hugging Face module inside a bridge component; any other module unchanged."""
    inner = getattr(module, "original_component", None)
    return inner if isinstance(inner, nn.Module) else module


def _embeddings(adapter: BridgeAdapter, getter: str) -> nn.Module | None:
    """Return the module of input or output embeddings as transformers reports it."""
    try:
        module = getattr(adapter.hf, getter)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return module if isinstance(module, nn.Module) else None


def _blocks(adapter: BridgeAdapter) -> list[nn.Module]:
    """Return the blocks of the Hugging Face model: its first list of as many modules as the model has blocks."""
    for name, module in adapter.hf.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == adapter.n_layers and "expert" not in name:
            return list(module)
    return []
