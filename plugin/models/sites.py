"""Sites, the selection of sites and layers, and the short names of sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformer_lens.hook_points import HookPoint

from stratalens.plugin.models.adapters import Adapter


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
    """Return the variable name of a site without a short name.

    >>> variable_name("blocks.{layer}.ln1.hook_normalized")
    'ln1_normalized'
    """
    tail = hook.split("{layer}.")[-1]
    return "_".join(component.removeprefix("hook_") for component in tail.split("."))


#: Short name -> TransformerLens names in order of preference. A model uses the first one that it has.
SHORT_NAMES: Mapping[str, tuple[str, ...]] = {
    "resid_pre": ("blocks.{layer}.hook_resid_pre",),
    "resid_mid": ("blocks.{layer}.hook_resid_mid",),
    "resid_post": ("blocks.{layer}.hook_resid_post",),
    "attn_out": ("blocks.{layer}.hook_attn_out",),
    "mlp_out": ("blocks.{layer}.hook_mlp_out",),
    "mlp_pre": ("blocks.{layer}.mlp.hook_pre",),
    "mlp_post": ("blocks.{layer}.mlp.hook_post",),
    "z": ("blocks.{layer}.attn.hook_z",),
    "q": ("blocks.{layer}.attn.hook_q",),
    "k": ("blocks.{layer}.attn.hook_k",),
    "v": ("blocks.{layer}.attn.hook_v",),
    "result": ("blocks.{layer}.attn.hook_result",),
    "embed": ("hook_embed",),
    "pos_embed": ("hook_pos_embed",),
    # Output of the final norm after its weights. HookedTransformer's ln_final.hook_normalized is before them.
    "ln_final": ("ln_final.hook_out", "unembed.hook_in", "ln_final.hook_normalized"),
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
