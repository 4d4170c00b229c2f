"""Site names as hooks, with shapes and dtypes from short forward passes.

A site is one variable of the store. Its hook name is a template with `{layer}`
if the model has it in every block. The config does not decide shapes, dtypes
and the position axis: a dry run of different lengths shows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stratalens.plugin.models.adapters import Adapter, Output
from stratalens.plugin.models.hooks import evaluation_mode, observed
from stratalens.plugin.models.sites import (
    Site,
    SiteSelection,
    available_names,
    has_hook,
    hook_of,
    name_sites,
    template_of,
    variable_name,
)
from stratalens.store.errors import InputError, join_names, suggest


class SiteName(NamedTuple):
    """A site before its shape is known.

    Attributes:
        name: name of the variable in the store.
        hook: TransformerLens name, with `{layer}` if the site is in every block.
    """

    name: str
    hook: str

    def hooks(self, layers: Sequence[int]) -> list[str]:
        """Return the TransformerLens names of the site at some layers."""
        if "{layer}" not in self.hook:
            return [self.hook]
        return [self.hook.replace("{layer}", str(layer)) for layer in layers]


def resolve(
    adapter: Adapter,
    sites: Sequence[str] | str,
    layers: Sequence[int] | None,
    sample_ids: Tensor,
    existing: Mapping[str, str] | None = None,
) -> SiteSelection:
    """Find the hooks of site names, and their shapes in short forward passes.

    Args:
        adapter: the model.
        sites: short names (`SHORT_NAMES`) or full TransformerLens names. A full name with a
            block index selects its site in all `layers`. If every name has a block index and
            `layers` is None, these blocks are the layers: two blocks of one site are one site in
            two layers.
        layers: block indices; negative ones count from the end; None selects all.
        sample_ids: at least four valid token ids, int64 tensor of shape (n,).
        existing: hook -> variable name in the store that exists.

    Raises:
        InputError: an unknown site or layer; a site that has no position axis, never fires, or
            does not exist in some layer.
    """
    requested = [sites] if isinstance(sites, str) else list(sites)
    if not requested:
        raise InputError(f"no sites given. Valid: {_valid_names(adapter, sample_ids)}, or a full TransformerLens name.")
    parsed = [_parse_name(adapter, name, sample_ids) for name in requested]
    if repeated := next((pair for pair in parsed if parsed.count(pair) > 1), None):
        raise InputError(f"site {repeated[0]!r} is requested twice, as {requested}. Name every site once.")
    templates = list(dict.fromkeys(hook for hook, _ in parsed))
    blocks = {block for _, block in parsed if block is not None}
    if layers is None and blocks and all(block is not None or "{layer}" not in hook for hook, block in parsed):
        layers = sorted(blocks)
    names = name_sites(adapter, templates, existing)
    if len(templates) < len(parsed) and any((hook, None) in parsed for hook, block in parsed if block is not None):
        remedy = f"sites={[names[hook] for hook in templates]}, layers={sorted(blocks)}"
        raise InputError(f"{requested} requests a site twice, with a block index and without one. Pass {remedy}.")
    block_layers = _parse_layers(adapter, layers) if any("{layer}" in hook for hook in templates) else ()
    if outside := sorted(blocks - set(block_layers)):
        raise InputError(
            f"a site is named with block {outside[0]}, which is not among layers={list(block_layers)}. "
            "Name sites without a block index, or add the layer."
        )
    chosen = [SiteName(names[hook], hook) for hook in templates]
    for site in chosen:
        _check_present(adapter, site, block_layers)
    return SiteSelection(tuple(_dry_run(adapter, chosen, block_layers, sample_ids)), block_layers)


def _parse_name(adapter: Adapter, name: str, sample_ids: Tensor) -> tuple[str, int | None]:
    """Return the TransformerLens name of a requested site, with `{layer}` in every block, and its block index."""
    if not isinstance(name, str):
        raise InputError(f"site {name!r} is not a name. Valid: {_valid_names(adapter, sample_ids)}.")
    if hook := hook_of(adapter, name):
        return hook, None
    hook, block = (name, None) if "{layer}" in name else template_of(name)
    if has_hook(adapter, hook):
        if block is not None and name not in adapter.points:
            last = (adapter.n_layers or 1) - 1
            raise InputError(f"site {name!r}: this model has no block {block}. Valid blocks: 0 to {last}.")
        return hook, block
    firing = [hook for hook in _firing(adapter, sample_ids) if hook != name]
    shown = _short_names_of(adapter, firing)
    valid = [*shown, *(hook for hook in firing if hook not in {hook_of(adapter, short) for short in shown})]
    raise InputError(f"unknown site {name!r} on this {adapter.kind}: {suggest(name, valid, limit=_LISTED)}")


_LISTED = 10  # names in a message


def _valid_names(adapter: Adapter, sample_ids: Tensor) -> str:
    """Write the first short names of sites that fire, as part of a message."""
    return join_names(_short_names_of(adapter, _firing(adapter, sample_ids)), _LISTED)


def _short_names_of(adapter: Adapter, firing: Sequence[str]) -> list[str]:
    """Return the short names of this model, those alone that fire where any hook does."""
    return [name for name in available_names(adapter) if not firing or hook_of(adapter, name) in firing]


def _firing(adapter: Adapter, ids: Tensor) -> list[str]:
    """Return the hooks that hold activations in one short pass, with `{layer}` in every block.

    Only messages need them. Where the pass fails, the list is empty and the message names no hooks.
    """
    length = _pass_lengths(adapter)[1]
    try:
        fired = _observe(adapter, list(adapter.points), ids, length, "logits")
    except Exception:
        return []
    templates = (
        template_of(hook)[0]
        for hook, values in fired.items()
        if len(values) == 1 and isinstance(values[0], Tensor) and values[0].ndim >= 3 and values[0].shape[1] == length
        if values[0].is_floating_point()
    )
    return sorted(set(templates))


def _parse_layers(adapter: Adapter, layers: Sequence[int] | None) -> tuple[int, ...]:
    count = adapter.n_layers or 0
    if layers is None:
        return tuple(range(count))
    try:
        indices = [int(layer) for layer in layers]
    except (TypeError, ValueError) as error:
        raise InputError(f"layers={layers!r} is not a list of block indices, such as [0, 5, -1].") from error
    if not indices:
        raise InputError(f"layers is empty. Valid: 0 to {count - 1}, negative from the end, or None for all.")
    for layer in indices:
        if not -count <= layer < count:
            raise InputError(f"unknown layer {layer}: this model has blocks 0 to {count - 1} (or -{count} to -1).")
    blocks = sorted(layer % count for layer in indices)
    if len(set(blocks)) != len(blocks):
        raise InputError(f"layers={indices} names a block twice. Name every layer once.")
    return tuple(blocks)


def _check_present(adapter: Adapter, site: SiteName, layers: Sequence[int]) -> None:
    if "{layer}" not in site.hook:
        return
    blocks = range(adapter.n_layers or 0)
    present = {layer for layer in blocks if site.hook.replace("{layer}", str(layer)) in adapter.points}
    if absent := [layer for layer in layers if layer not in present]:
        raise InputError(f"site {site.name!r} does not exist in layers {absent}. Pass layers= from {sorted(present)}.")


# The passes of the dry run have two sequences, of three and of four tokens: only the position axis differs.
_BATCH, _SHORT, _LONG = 2, 3, 4


def _pass_lengths(adapter: Adapter) -> tuple[int, int]:
    """Return the lengths of the two passes: 3 and 4 tokens, or the two longest in a shorter context.

    In a context of one token there is one length.
    """
    longest = min(_LONG, adapter.max_length or _LONG)
    return max(1, longest - 1), longest


_DISTINCT_LENGTHS = (5, 7, 11, 13, 17, 19)  # rarely the size of another axis


_SIZES = ("d_model", "d_mlp", "d_head", "n_heads", "n_key_value_heads", "d_vocab", "n_layers")


_KEY_VALUE_SITE = re.compile(r"(^|[._])(rot_)?[kv]($|[._])")


def _dry_run(adapter: Adapter, names: Sequence[SiteName], layers: Sequence[int], ids: Tensor) -> list[Site]:
    """Find shapes and dtypes of sites in short passes over valid token ids.

    Raises:
        InputError: a site that never fires, has no position axis, or differs between layers.
    """
    sites_by_hook = {hook: site for site in names for hook in site.hooks(layers)}
    for hook, site in sites_by_hook.items():
        if setter := adapter.setter_for(hook):
            raise InputError(
                f"site {site.name!r} ({hook}) fires only after model.{setter}(True). Call it on every stage's model "
                "before recording, and leave it on."
            )
    values, after_head = _one_pass(adapter, list(sites_by_hook), ids), set[str]()
    if values is None:
        values, after_head = _two_passes(adapter, sites_by_hook, ids)
    dims: dict[str, int] = {}
    sites = []
    for site in names:
        activations = [values[hook] for hook in site.hooks(layers)]
        shapes = [tuple(activation.shape[2:]) for activation in activations]
        if len(set(shapes)) > 1:
            listing = ", ".join(f"{layer}: {list(shape)}" for layer, shape in zip(layers, shapes, strict=True))
            raise InputError(
                f"site {site.name!r} differs in shape between layers ({listing}). Record layers of one shape at a time."
            )
        feature_dims = _feature_dims(adapter, site, shapes[0])
        for axis, (dim, size) in enumerate(zip(feature_dims, shapes[0], strict=True)):
            if dims.setdefault(dim, size) != size:  # a dim has one size in a store
                feature_dims[axis] = f"{site.name}_{dim}"
        late = site.hook in after_head
        sites.append(Site(site.name, site.hook, tuple(feature_dims), shapes[0], activations[0].dtype, late))
    return sites


def _one_pass(adapter: Adapter, hooks: Sequence[str], ids: Tensor) -> dict[str, Tensor] | None:
    """Return the activations by hook if one pass is unambiguous, else None.

    Only sites inside the blocks qualify: they fire whether or not the output layer runs.
    """
    if not adapter.can_stop or not all(hook.startswith("blocks.") for hook in hooks):
        return None
    sizes = {adapter.size(name) for name in _SIZES}
    limit = adapter.max_length
    length = next((n for n in _DISTINCT_LENGTHS if n not in sizes and (limit is None or n <= limit)), None)
    if length is None:
        return None
    fired = _observe(adapter, hooks, ids, length, "logits")
    if not all(len(values) == 1 and _is_aligned(values[0], length) for values in fired.values()):
        return None
    return {hook: values[0] for hook, values in fired.items()}


def _two_passes(
    adapter: Adapter, sites_by_hook: dict[str, SiteName], ids: Tensor
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the activations by hook, and the templates of late hooks.

    Late hooks fire only if the output layer runs.
    """
    hooks, (fewer, more) = list(sites_by_hook), _pass_lengths(adapter)
    short = _observe(adapter, hooks, ids, fewer, "none")
    long = _observe(adapter, hooks, ids, more, "logits")
    late_hooks = [hook for hook in hooks if len(short[hook]) != len(long[hook]) or _has_empty(short[hook])]
    if late_hooks:  # the first pass skipped the output layer, which these hooks need
        short |= _observe(adapter, late_hooks, ids, fewer, "logits")
    values = {
        hook: _check_axes(site.name, hook, short[hook], long[hook], (fewer, more))
        for hook, site in sites_by_hook.items()
    }
    return values, {sites_by_hook[hook].hook for hook in late_hooks}


def _is_aligned(value: Any, length: int) -> bool:
    """Return whether a value has the shape (batch, position, ...).

    Only the position axis may have this length.
    """
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim >= 3
        and value.shape[0] in (1, _BATCH)
        and [axis for axis, size in enumerate(value.shape) if size == length] == [1]
    )


def _has_empty(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Tensor) and value.numel() == 0 for value in values)


def _sample_batch(ids: Tensor, length: int) -> Tensor:
    """Return two rows of valid token ids that differ in the last token alone, int64 tensor of shape (2, length)."""
    row = ids[torch.arange(length) % len(ids)]
    others = ids[ids != row[-1]]
    last = others[0] if len(others) else int(row[-1] == 0)  # every vocabulary has the tokens 0 and 1
    batch = row.repeat(_BATCH, 1)
    batch[1:, -1] = last
    return batch


def _observe(adapter: Adapter, hooks: Sequence[str], ids: Tensor, length: int, output: Output) -> dict[str, list[Any]]:
    """Return all values at some hooks in one pass over (2, length) token ids."""
    fired: dict[str, list[Any]] = {hook: [] for hook in hooks}
    batch = _sample_batch(ids, length).to(adapter.device)
    functions = [(adapter.points[hook], fired[hook].append) for hook in hooks]
    with observed(functions), evaluation_mode(adapter.model):
        adapter.dry_run(batch, output)
    return fired


def _check_axes(name: str, hook: str, short: list[Any], long: list[Any], lengths: tuple[int, int]) -> Tensor:
    """Return the activation of the longer pass, of shape (batch, position, ...).

    In a context of one token both passes have this length, and an axis of one in the second place counts as positions.

    Raises:
        InputError: a value of another shape or type, or not exactly one value.
    """
    if not long:
        raise InputError(
            f"site {name!r} ({hook}) exists but did not fire in a forward pass of this model, so there is nothing to "
            "record. Choose another site."
        )
    if len(long) > 1:
        raise InputError(
            f"site {name!r} ({hook}) fires {len(long)} times in one forward pass. Choose a site that fires once."
        )
    before, after = short[0], long[0]
    if not isinstance(after, Tensor) or not after.is_floating_point():
        kind = str(after.dtype) if isinstance(after, Tensor) else type(after).__name__
        raise InputError(f"site {name!r} ({hook}) holds {kind}, not floating-point activations. Choose another site.")
    changed = [axis for axis, (m, n) in enumerate(zip(before.shape, after.shape, strict=False)) if m != n]
    expected = [1] if lengths[0] != lengths[1] else []
    aligned = after.ndim >= 3 and changed == expected and (before.shape[1], after.shape[1]) == lengths
    if not aligned or after.shape[0] not in (1, _BATCH):
        raise InputError(
            f"site {name!r} ({hook}) has no position axis after the batch axis: its shape is {list(after.shape)} for "
            f"{_BATCH} sequences of {lengths[1]} tokens, so positions cannot be taken from it. "
            "Choose a site of shape (batch, position, ...)."
        )
    return after


def _feature_dims(adapter: Adapter, site: SiteName, shape: Sequence[int]) -> list[str]:
    """Name the axes after batch and position, from their sizes and the name of the hook."""
    hook = site.hook
    own = site.name if hook.endswith("{layer}") else variable_name(hook)  # for axes of no known size
    sizes = {name: adapter.size(name) for name in ("d_model", "d_mlp", "d_head", "n_heads", "n_key_value_heads")}
    tail = hook.split("{layer}.")[-1].removeprefix("attn.").replace("hook_", "")
    if len(shape) == 1:
        is_mlp = tail in ("mlp.pre", "mlp.post", "mlp.pre_linear")
        candidates = ["d_mlp", "d_model", "d_head"] if is_mlp else ["d_model", "d_mlp", "d_head"]
        return [next((dim for dim in candidates if sizes[dim] == shape[0]), f"{own}_dim")]
    if len(shape) == 2:
        is_key_value = bool(_KEY_VALUE_SITE.search(tail))
        head_dim = "kv_head" if is_key_value else "head"
        last = next((dim for dim in ("d_head", "d_model") if sizes[dim] == shape[1]), None)
        if last and (is_key_value or sizes["n_heads"] in (None, shape[0])):
            return [head_dim, last]
        if is_key_value or tail in ("z", "q", "result"):
            return [head_dim, "d_head"]
    return [f"{own}_dim{axis}" for axis in range(len(shape))]
