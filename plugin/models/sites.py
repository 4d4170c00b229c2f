"""Sites, the selection of sites and layers, and the short names of sites."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from transformer_lens.hook_points import HookPoint

from stratalens.plugin.models.adapters import Adapter
from stratalens.store.format.schema import AXES, COORDINATES, FEATURE_DIMS, OUTPUT_STATISTICS, STATISTICS

_INDEX = re.compile(r"(^|\.)(\d{1,9})(?=\.|$)")

# The last component of the path of a stack of blocks, which every stack has.
_GENERIC = re.compile(r"(?:^|[._])(?:blocks?|layers?|h)$")

# Variables, dims and coordinates of a store that are not sites.
_RESERVED = {*AXES, *COORDINATES, *FEATURE_DIMS, *OUTPUT_STATISTICS}


@dataclass(frozen=True)
class Site:
    """One variable to record.

    Attributes:
        name: name of the variable in the store.
        hook: TransformerLens name, with `{layer}` if the site is in every block.
        feature_dims: names of the axes after batch and position.
        feature_shape: sizes of these axes.
        dtype: dtype of the model's activations at this site.
        after_head: whether the site fires only if the output layer runs on every position.
    """

    name: str
    hook: str
    feature_dims: tuple[str, ...]
    feature_shape: tuple[int, ...]
    dtype: torch.dtype
    after_head: bool = False

    @property
    def in_blocks(self) -> bool:
        """Whether the site exists once in each block."""
        return "{layer}" in self.hook

    def hook_at(self, layer: int) -> str:
        """Return the TransformerLens name at one block."""
        return self.hook.replace("{layer}", str(layer))


@dataclass(frozen=True)
class SiteSelection:
    """Sites and layers of one recording.

    Attributes:
        sites: sites in the requested order.
        layers: block indices, ascending; empty if every site is outside the blocks.
    """

    sites: tuple[Site, ...]
    layers: tuple[int, ...]

    def points(self, adapter: Adapter) -> dict[str, list[HookPoint]]:
        """Return the hook points of every site.

        A site has one point per layer, or one if it is outside the blocks.
        """
        return {
            site.name: [adapter.points[site.hook_at(layer)] for layer in (self.layers if site.in_blocks else (0,))]
            for site in self.sites
        }

    @property
    def needs_full_logits(self) -> bool:
        """Whether a site fires only if the output layer runs."""
        return any(site.after_head for site in self.sites)

    def stop_at_layer(self, adapter: Adapter) -> int | None:
        """Return the first block that no site needs, or None if the model cannot stop there."""
        only_blocks = all(site.in_blocks or _is_before_blocks(site) for site in self.sites)
        stop = max(self.layers) + 1 if any(site.in_blocks for site in self.sites) else 0
        can_stop = adapter.can_stop and only_blocks and adapter.n_layers is not None and stop < adapter.n_layers
        return stop if can_stop else None


def _is_before_blocks(site: Site) -> bool:
    return site.hook.startswith(("hook_embed", "hook_pos_embed", "hook_tokens", "embed.", "pos_embed."))


def variable_name(hook: str) -> str:
    """Return the plain variable name of a site without a short name.

    >>> variable_name("blocks.{layer}.ln1.hook_normalized"), variable_name("encoder.h.{layer}")
    ('ln1_normalized', 'h')
    """
    stack, _, tail = hook.rpartition("{layer}")
    tail = tail.strip(".") or stack.strip(".").rpartition(".")[2] or hook
    return "_".join(component.removeprefix("hook_") for component in tail.split("."))


def template_of(name: str) -> tuple[str, int | None]:
    """Return a hook name with `{layer}` instead of its first index, and that index.

    >>> template_of("blocks.3.hook_resid_post"), template_of("hook_embed")
    (('blocks.{layer}.hook_resid_post', 3), ('hook_embed', None))
    """
    match = _INDEX.search(name)
    if match is None:
        return name, None
    return name[: match.start(2)] + "{layer}" + name[match.end(2) :], int(match.group(2))


def name_sites(adapter: Adapter, hooks: Iterable[str], existing: Mapping[str, str] | None = None) -> dict[str, str]:
    """Choose the variable names of sites, so that no two names collide.

    A hook keeps the name that the store already has for it. Other hooks get their short name, or else the plain name
    (`variable_name`). In a model with several stacks of blocks, such as an encoder and a decoder, the name of the stack
    comes first: `encoder_resid_post`. A name that is still taken keeps the prefixes `hook_` of its components.

    Args:
        adapter: the model.
        hooks: TransformerLens names, with `{layer}` in every block.
        existing: hook -> variable name in the store that exists.

    Returns:
        Hook -> variable name; neither a name nor its statistics are names of other variables of the store.
    """
    hooks = list(hooks)
    names = {hook: name for hook, name in (existing or {}).items() if hook in hooks}
    for short in SHORT_NAMES:
        if (hook := hook_of(adapter, short)) in hooks:
            names.setdefault(str(hook), short)
    prefixes = _stack_prefixes(adapter)
    taken = {variable for name in names.values() for variable in _variables_of(name)} | _RESERVED
    for hook in sorted(set(hooks) - set(names)):
        prefix = prefixes.get(hook.partition("{layer}")[0], "") if "{layer}" in hook else ""
        whole = hook.replace("{layer}", "").strip(".").replace("..", ".").replace(".", "_")
        tail = hook.rpartition("{layer}")[2].strip(".").replace(".", "_") or whole
        candidates = [f"{prefix}{variable_name(hook)}", f"{prefix}{tail}", whole, f"{whole}_site"]
        free = (name for name in candidates if taken.isdisjoint(_variables_of(name)))
        names[hook] = next(free, f"{whole}_{len(names)}")
        taken |= _variables_of(names[hook])
    return {hook: names[hook] for hook in hooks}


def _stack_prefixes(adapter: Adapter) -> dict[str, str]:
    """Return the prefixes of variable names for the stacks of blocks that have sites of the same plain name.

    Returns:
        Path in front of the block index -> prefix. TransformerLens' own stack `blocks` has none.
    """
    templates = {hook for hook, block in map(template_of, adapter.points) if block is not None}
    stacks: dict[str, set[str]] = {}
    for template in templates:
        stack, _, tail = template.partition("{layer}")
        stacks.setdefault(stack, set()).add(tail)
    shared = {
        stack
        for stack, tails in stacks.items()
        if any(stack != other and not tails.isdisjoint(others - {""}) for other, others in stacks.items())
    }
    short = {stack: _GENERIC.sub("", stack.strip(".")).replace(".", "_") for stack in shared - {"blocks."}}
    prefixes = {}
    for stack, name in short.items():
        is_unique = name and list(short.values()).count(name) == 1
        prefixes[stack] = f"{name if is_unique else stack.strip('.').replace('.', '_')}_"
    return prefixes


def _variables_of(site: str) -> set[str]:
    """Return the names of all variables that a store may have for one site."""
    return {site, f"{site}_scale", f"{site}_error", *(f"{site}_{statistic}" for statistic in STATISTICS)}


# Sites of TransformerLens' own stack `blocks`.
_IN_BLOCKS: Mapping[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "result": "attn.hook_result",
}


def _stack_names(stack: str) -> dict[str, tuple[str, ...]]:
    """Return the short names of an encoder or a decoder that has a stack of its own, as in T5 and BART."""
    blocks = f"{stack}_blocks.{{layer}}."
    names = {
        f"{stack}_{name}": (f"{blocks}{hook}", *([f"{blocks}self_{hook}"] if hook.startswith("attn.") else []))
        for name, hook in _IN_BLOCKS.items()
        if name != "result"
    }
    return {**names, f"{stack}_ln_final": (f"{stack}_ln_final.hook_out",)}


#: Short name -> TransformerLens names in order of preference. A model uses the first one that it has.
SHORT_NAMES: Mapping[str, tuple[str, ...]] = {
    **{name: (f"blocks.{{layer}}.{hook}",) for name, hook in _IN_BLOCKS.items()},
    "embed": ("hook_embed",),
    "pos_embed": ("hook_pos_embed",),
    # Output of the final norm after its weights. HookedTransformer's ln_final.hook_normalized is before them.
    "ln_final": ("ln_final.hook_out", "unembed.hook_in", "ln_final.hook_normalized"),
    **_stack_names("encoder"),
    **_stack_names("decoder"),
    "decoder_cross_attn_out": ("decoder_blocks.{layer}.hook_cross_attn_out",),
}


def available_names(adapter: Adapter) -> list[str]:
    """Return the short names of the sites that this model has."""
    return [name for name in SHORT_NAMES if hook_of(adapter, name)]


def has_hook(adapter: Adapter, hook: str) -> bool:
    """Return whether the model has a hook, for a name with `{layer}` in any block."""
    if "{layer}" not in hook:
        return hook in adapter.points
    return any(hook.replace("{layer}", str(layer)) in adapter.points for layer in range(adapter.n_layers or 0))


def hook_of(adapter: Adapter, short_name: str) -> str | None:
    """Return the TransformerLens name of a short name on this model, or None."""
    return next((hook for hook in SHORT_NAMES.get(short_name, ()) if has_hook(adapter, hook)), None)
