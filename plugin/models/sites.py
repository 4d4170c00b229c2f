"""What is recorded of a model: sites with their shapes, and the blocks they are taken from.

How names become a selection is in sites.py.
"""

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
        name: variable name in the store.
        hook: TransformerLens name, with `{layer}` where it is in every block.
        feature_dims: names of the axes behind batch and position.
        feature_shape: their sizes.
        dtype: dtype that the model produces there.
        after_head: fires only when the output layer runs on every position.
    """

    name: str
    hook: str
    feature_dims: tuple[str, ...]
    feature_shape: tuple[int, ...]
    dtype: torch.dtype
    after_head: bool = False

    @property
    def in_blocks(self) -> bool:
        """Whether the site exists once per block."""
        return "{layer}" in self.hook

    def hook_at(self, layer: int) -> str:
        """TransformerLens name at one block."""
        return self.hook.replace("{layer}", str(layer))


@dataclass(frozen=True)
class SiteSelection:
    """Sites and layers of one recording.

    Attributes:
        sites: in the order asked for.
        layers: block indices, ascending; empty where every site is outside the blocks.
    """

    sites: tuple[Site, ...]
    layers: tuple[int, ...]

    def points(self, adapter: Adapter) -> dict[str, list[HookPoint]]:
        """Hook points of every site, one per layer (one for sites outside the blocks)."""
        return {
            s.name: [adapter.points[s.hook_at(n)] for n in (self.layers if s.in_blocks else (0,))] for s in self.sites
        }

    @property
    def needs_full_logits(self) -> bool:
        """Whether a site only fires when the output layer runs."""
        return any(s.after_head for s in self.sites)

    def stop_at_layer(self, adapter: Adapter) -> int | None:
        """First block that no site needs, where the model can stop there."""
        inside = all(s.in_blocks or _before_blocks(s) for s in self.sites)
        last = max(self.layers) + 1 if any(s.in_blocks for s in self.sites) else 0
        if adapter.can_stop and inside and adapter.n_layers is not None and last < adapter.n_layers:
            return last
        return None


def _before_blocks(site: Site) -> bool:
    return site.hook.startswith(("hook_embed", "hook_pos_embed", "hook_tokens", "embed.", "pos_embed."))


def variable_name(hook: str) -> str:
    """`blocks.{layer}.ln1.hook_normalized` -> `ln1_normalized`."""
    tail = hook.split("{layer}.")[-1]
    return "_".join(part.removeprefix("hook_") for part in tail.split("."))


#: Short name -> TransformerLens names in order of preference; the first one that the model has is taken.
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
    # Output of the final norm, its weights applied. HookedTransformer's ln_final.hook_normalized comes before them.
    "ln_final": ("ln_final.hook_out", "unembed.hook_in", "ln_final.hook_normalized"),
}


def available(adapter: Adapter) -> list[str]:
    """Short names that this model has."""
    return [name for name, hooks in SHORT_NAMES.items() if any(_exists(adapter, h) for h in hooks)]


def _exists(adapter: Adapter, hook: str) -> bool:
    if "{layer}" not in hook:
        return hook in adapter.points
    return any(hook.replace("{layer}", str(n)) in adapter.points for n in range(adapter.n_layers or 0))


def _first(adapter: Adapter, short: str) -> str | None:
    return next((hook for hook in SHORT_NAMES[short] if _exists(adapter, hook)), None)
