"""Which hook points are recorded: short names, full TransformerLens names, shapes found by probing.

A site is one variable of the store. Its hook name is a template with `{layer}`
where the model has it in every block. Shapes, dtypes and whether a site has a
position axis are not guessed from the config but seen in two tiny forward passes
of different length. How values are taken off the hook points is in recorder.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from stratalens.models import Adapter, Output, evaluation_mode
from stratalens.store.errors import InputError, near

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

# Lengths of the two probing passes. Only the position axis may differ between them.
_PROBE_BATCH, _PROBE_SHORT, _PROBE_LONG = 2, 3, 4
_INDEX = re.compile(r"(^|\.)(\d+)(?=\.|$)")
_KEY_VALUE_SITE = re.compile(r"(^|[._])(rot_)?[kv]($|[._])")


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
class Selection:
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


def resolve(adapter: Adapter, sites: Sequence[str] | str, layers: Sequence[int] | None, probe_ids: Tensor) -> Selection:
    """Turn names into sites, with their shapes seen in two probing passes.

    Args:
        adapter: the model.
        sites: short names (`SHORT_NAMES`) or full TransformerLens names. A full name with a
            block index stands for that site; where every name has one and `layers` is None,
            these are the layers.
        layers: block indices, negative ones count from the end; None is all of them.
        probe_ids: at least four valid token ids, shape (n,).

    Raises:
        InputError: a site unknown, without a position axis, silent, or missing in some layer;
            a layer that the model does not have.
    """
    wanted = [sites] if isinstance(sites, str) else list(sites)
    if not wanted:
        raise InputError(f"no sites given. Valid: {', '.join(available(adapter))}, or a full TransformerLens name.")
    found = [_template(adapter, name) for name in wanted]
    templates = [hook for _, hook, _ in found]
    if doubled := sorted({hook for hook in templates if templates.count(hook) > 1}):
        raise InputError(f"site {doubled[0]!r} is asked for twice, as {wanted}. Name every site once.")
    numbers = {index for _, _, index in found if index is not None}
    everywhere = all(index is not None or "{layer}" not in hook for _, hook, index in found)
    if layers is None and numbers and everywhere:
        layers = sorted(numbers)
    chosen = _layers(adapter, layers) if any("{layer}" in hook for hook in templates) else ()
    if stray := sorted(numbers - set(chosen)):
        raise InputError(
            f"a site is named with block {stray[0]}, which is not among layers={list(chosen)}. "
            "Name sites without a block index, or add the layer."
        )
    for name, hook, _ in found:
        _check_present(adapter, name, hook, chosen)
    return Selection(tuple(_probe(adapter, found, chosen, probe_ids)), chosen)


def available(adapter: Adapter) -> list[str]:
    """Short names that this model has."""
    return [name for name, hooks in SHORT_NAMES.items() if any(_exists(adapter, h) for h in hooks)]


def _exists(adapter: Adapter, hook: str) -> bool:
    if "{layer}" not in hook:
        return hook in adapter.points
    return any(hook.replace("{layer}", str(n)) in adapter.points for n in range(adapter.n_layers or 0))


def _template(adapter: Adapter, name: str) -> tuple[str, str, int | None]:
    """(variable name, hook template, block index named) of one name."""
    if not isinstance(name, str):
        raise InputError(f"site {name!r} is not a name. Valid: {', '.join(available(adapter))}.")
    for hook in SHORT_NAMES.get(name, ()):
        if _exists(adapter, hook):
            return name, hook, None
    match = _INDEX.search(name)
    hook = name if match is None else name[: match.start(2)] + "{layer}" + name[match.end(2) :]
    if match is not None and name not in adapter.points and _exists(adapter, hook):
        top = (adapter.n_layers or 1) - 1
        raise InputError(f"site {name!r}: this model has no block {match.group(2)}. Valid blocks: 0 to {top}.")
    if _exists(adapter, hook):
        index = int(match.group(2)) if match else None
        short = next((s for s, hooks in SHORT_NAMES.items() if hook in hooks and _first(adapter, s) == hook), None)
        return short or _variable_name(hook), hook, index
    valid = [*available(adapter), *sorted({_INDEX.sub(r"\1{layer}", point) for point in adapter.points})]
    raise InputError(f"unknown site {name!r} on this {adapter.kind}: {near(name, valid, limit=40)}")


def _first(adapter: Adapter, short: str) -> str | None:
    return next((hook for hook in SHORT_NAMES[short] if _exists(adapter, hook)), None)


def _variable_name(hook: str) -> str:
    """`blocks.{layer}.ln1.hook_normalized` -> `ln1_normalized`."""
    tail = hook.split("{layer}.")[-1]
    return "_".join(part.removeprefix("hook_") for part in tail.split("."))


def _layers(adapter: Adapter, layers: Sequence[int] | None) -> tuple[int, ...]:
    count = adapter.n_layers or 0
    if layers is None:
        return tuple(range(count))
    try:
        asked = [int(n) for n in layers]
    except (TypeError, ValueError) as error:
        raise InputError(f"layers={layers!r} is not a list of block indices, such as [0, 5, -1].") from error
    if not asked:
        raise InputError(f"layers is empty. Valid: 0 to {count - 1}, negative from the end, or None for all.")
    for n in asked:
        if not -count <= n < count:
            raise InputError(f"unknown layer {n}: this model has blocks 0 to {count - 1} (or -{count} to -1).")
    normal = sorted(n % count for n in asked)
    if len(set(normal)) != len(normal):
        raise InputError(f"layers={list(asked)} names a block twice. Name every layer once.")
    return tuple(normal)


def _check_present(adapter: Adapter, name: str, hook: str, layers: Sequence[int]) -> None:
    if "{layer}" not in hook:
        return
    absent = [n for n in layers if hook.replace("{layer}", str(n)) not in adapter.points]
    if absent:
        has = [n for n in range(adapter.n_layers or 0) if n not in absent]
        have = [n for n in has if hook.replace("{layer}", str(n)) in adapter.points]
        raise InputError(f"site {name!r} does not exist in layers {absent}. Pass layers= from {have}.")


def _before_blocks(site: Site) -> bool:
    return site.hook.startswith(("hook_embed", "hook_pos_embed", "hook_tokens", "embed.", "pos_embed."))


# ---- probing ------------------------------------------------------------------------------


def _probe(
    adapter: Adapter, found: Sequence[tuple[str, str, int | None]], layers: Sequence[int], ids: Tensor
) -> list[Site]:
    hooks = {
        hook.replace("{layer}", str(n)): (name, hook)
        for name, hook, _ in found
        for n in (layers if "{layer}" in hook else (0,))
    }
    for hook, (name, _) in hooks.items():
        if setter := adapter.setter_for(hook):
            raise InputError(
                f"site {name!r} ({hook}) fires only after model.{setter}(True). Call it on every stage's model "
                "before recording, and leave it on."
            )
    short = observe(adapter, list(hooks), ids, _PROBE_SHORT, "none")
    long = observe(adapter, list(hooks), ids, _PROBE_LONG, "logits")
    late_hooks = [hook for hook in hooks if len(short[hook]) != len(long[hook]) or _empty(short[hook])]
    if late_hooks:  # the output layer was left out; these need it
        short |= observe(adapter, late_hooks, ids, _PROBE_SHORT, "logits")
    late = {hooks[hook][1] for hook in late_hooks}
    shapes: dict[str, list[Tensor]] = {}
    for hook, (name, template) in hooks.items():
        shapes.setdefault(template, []).append(_check_axes(name, hook, short[hook], long[hook]))
    dims: dict[str, int] = {}
    sites = []
    for name, template, _ in found:
        values = shapes[template]
        features = [tuple(v.shape[2:]) for v in values]
        if len(set(features)) > 1:
            listing = ", ".join(f"{layer}: {list(f)}" for layer, f in zip(layers, features, strict=True))
            raise InputError(
                f"site {name!r} differs in shape between layers ({listing}). Record layers of one shape at a time."
            )
        names = _feature_dims(adapter, template, features[0])
        for axis, (dim, size) in enumerate(zip(names, features[0], strict=True)):
            if dims.setdefault(dim, size) != size:  # one name, one size in a store
                names[axis] = f"{name}_{dim}"
        sites.append(Site(name, template, tuple(names), features[0], values[0].dtype, template in late))
    return sites


def probe_batch(ids: Tensor, length: int = _PROBE_LONG) -> Tensor:
    """Two rows of `length` valid token ids."""
    return ids[torch.arange(_PROBE_BATCH * length) % len(ids)].reshape(_PROBE_BATCH, length)


def _empty(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Tensor) and v.numel() == 0 for v in values)


def observe(adapter: Adapter, hooks: Sequence[str], ids: Tensor, length: int, output: Output) -> dict[str, list[Any]]:
    """Everything that fires at some hook points in one pass over (2, length) token ids."""
    fired: dict[str, list[Any]] = {hook: [] for hook in hooks}
    batch = probe_batch(ids, length).to(adapter.device)
    attached = [(adapter.points[hook], attach(adapter.points[hook], fired[hook].append)) for hook in hooks]
    try:
        with evaluation_mode(adapter.model):
            adapter.probe_run(batch, output)
    finally:
        for point, handle in attached:
            detach(point, handle)
    return fired


def attach(point: HookPoint, function: Any) -> Any:
    """Add a forward hook that only looks on; returns its handle.

    Goes through HookPoint.add_hook so that the value is the one that
    run_with_cache sees (compatibility mode converts it), but keeps the handle, so
    that removing it touches no hook of anybody else. The 3.9 line returns no handle.
    """

    def look(tensor: Any, *, hook: Any) -> None:
        function(tensor)

    point.add_hook(look)
    return point.fwd_hooks[-1]


def detach(point: HookPoint, handle: Any) -> None:
    """Remove one hook that `attach` added; harmless where somebody reset all hooks meanwhile."""
    handle.hook.remove()
    point.fwd_hooks[:] = [h for h in point.fwd_hooks if h is not handle]


def _check_axes(name: str, hook: str, short: list[Any], long: list[Any]) -> Tensor:
    if not long:
        raise InputError(
            f"site {name!r} ({hook}) exists but did not fire in a forward pass of this model, so there is nothing to "
            "record. Choose another site."
        )
    if len(long) > 1:
        raise InputError(
            f"site {name!r} ({hook}) fires {len(long)} times in one forward pass; record one that fires once."
        )
    a, b = short[0], long[0]
    if not isinstance(b, Tensor) or not b.is_floating_point():
        what = str(b.dtype) if isinstance(b, Tensor) else type(b).__name__
        raise InputError(f"site {name!r} ({hook}) holds {what}, not floating-point activations. Choose another site.")
    changed = [axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if m != n]
    aligned = b.ndim >= 3 and changed == [1] and (a.shape[1], b.shape[1]) == (_PROBE_SHORT, _PROBE_LONG)
    if not aligned or b.shape[0] not in (1, _PROBE_BATCH):
        raise InputError(
            f"site {name!r} ({hook}) has no position axis behind the batch axis: its shape is {list(b.shape)} for "
            f"{_PROBE_BATCH} sequences of {_PROBE_LONG} tokens, so positions cannot be taken from it. "
            "Choose a site of shape (batch, position, ...)."
        )
    return b


def _feature_dims(adapter: Adapter, hook: str, shape: Sequence[int]) -> list[str]:
    sizes = {name: adapter.size(name) for name in ("d_model", "d_mlp", "d_head", "n_heads", "n_key_value_heads")}
    tail = hook.split("{layer}.")[-1].removeprefix("attn.").replace("hook_", "")
    if len(shape) == 1:
        known = {"d_model": sizes["d_model"], "d_mlp": sizes["d_mlp"], "d_head": sizes["d_head"]}
        prefer = ["d_mlp", "d_model"] if tail in ("mlp.pre", "mlp.post", "mlp.pre_linear") else ["d_model", "d_mlp"]
        return [next((d for d in [*prefer, "d_head"] if known[d] == shape[0]), f"{_variable_name(hook)}_dim")]
    if len(shape) == 2:
        key_value = bool(_KEY_VALUE_SITE.search(tail))
        last = "d_head" if shape[1] == sizes["d_head"] else "d_model" if shape[1] == sizes["d_model"] else None
        heads = sizes["n_key_value_heads"] or sizes["n_heads"] if key_value else sizes["n_heads"]
        if last and (heads is None or shape[0] == heads or key_value):
            return ["kv_head" if key_value else "head", last]
        if key_value or tail in ("z", "q", "result"):
            return ["kv_head" if key_value else "head", "d_head"]
    return [f"{_variable_name(hook)}_dim{axis}" for axis in range(len(shape))]
