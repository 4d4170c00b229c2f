"""Site names as hooks, with shapes and dtypes from short forward passes.

A site is one variable of the store. Its hook name is a template with `{layer}`
if the model has it in every block. The config does not decide shapes, dtypes
and the position axis: a dry run of different lengths shows them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stratalens.plugin.models.adapters import Adapter, Output
from stratalens.plugin.models.hooks import evaluation_mode, observed
from stratalens.plugin.models.sites import (
    SHORT_NAMES,
    Site,
    SiteSelection,
    available_names,
    has_hook,
    hook_of,
    variable_name,
)
from stratalens.store.errors import InputError, suggest

_INDEX = re.compile(r"(^|\.)(\d+)(?=\.|$)")


class SiteName(NamedTuple):
    """A site before its shape is known.

    Attributes:
        name: name of the variable in the store.
        hook: TransformerLens name, with `{layer}` if the site is in every block.
        block: block index in the requested name, or None.
    """

    name: str
    hook: str
    block: int | None

    def hooks(self, layers: Sequence[int]) -> list[str]:
        """Return the TransformerLens names of the site at some layers."""
        if "{layer}" not in self.hook:
            return [self.hook]
        return [self.hook.replace("{layer}", str(layer)) for layer in layers]


def resolve(
    adapter: Adapter, sites: Sequence[str] | str, layers: Sequence[int] | None, sample_ids: Tensor
) -> SiteSelection:
    """Find the hooks of site names, and their shapes in short forward passes.

    Args:
        adapter: the model.
        sites: short names (`SHORT_NAMES`) or full TransformerLens names. A full name with a
            block index selects its site in all `layers`. If every name has a block index and
            `layers` is None, these blocks are the layers.
        layers: block indices; negative ones count from the end; None selects all.
        sample_ids: at least four valid token ids, int64 tensor of shape (n,).

    Raises:
        InputError: an unknown site or layer; a site that has no position axis, never fires, or
            does not exist in some layer.
    """
    requested = [sites] if isinstance(sites, str) else list(sites)
    if not requested:
        valid = ", ".join(available_names(adapter))
        raise InputError(f"no sites given. Valid: {valid}, or a full TransformerLens name.")
    names = [_parse_name(adapter, name) for name in requested]
    templates = [name.hook for name in names]
    if repeated := sorted({hook for hook in templates if templates.count(hook) > 1}):
        raise InputError(f"site {repeated[0]!r} is requested twice, as {requested}. Name every site once.")
    blocks = {name.block for name in names if name.block is not None}
    if layers is None and blocks and all(name.block is not None or "{layer}" not in name.hook for name in names):
        layers = sorted(blocks)
    block_layers = _parse_layers(adapter, layers) if any("{layer}" in hook for hook in templates) else ()
    if outside := sorted(blocks - set(block_layers)):
        raise InputError(
            f"a site is named with block {outside[0]}, which is not among layers={list(block_layers)}. "
            "Name sites without a block index, or add the layer."
        )
    for name in names:
        _check_present(adapter, name, block_layers)
    return SiteSelection(tuple(_dry_run(adapter, names, block_layers, sample_ids)), block_layers)


def _parse_name(adapter: Adapter, name: str) -> SiteName:
    if not isinstance(name, str):
        raise InputError(f"site {name!r} is not a name. Valid: {', '.join(available_names(adapter))}.")
    if hook := hook_of(adapter, name):
        return SiteName(name, hook, None)
    match = _INDEX.search(name)
    hook = name if match is None else name[: match.start(2)] + "{layer}" + name[match.end(2) :]
    if match is not None and name not in adapter.points and has_hook(adapter, hook):
        last = (adapter.n_layers or 1) - 1
        raise InputError(f"site {name!r}: this model has no block {match.group(2)}. Valid blocks: 0 to {last}.")
    if has_hook(adapter, hook):
        block = int(match.group(2)) if match else None
        short_name = next((short for short in SHORT_NAMES if hook_of(adapter, short) == hook), None)
        return SiteName(short_name or variable_name(hook), hook, block)
    valid = [*available_names(adapter), *sorted({_INDEX.sub(r"\1{layer}", point) for point in adapter.points})]
    raise InputError(f"unknown site {name!r} on this {adapter.kind}: {suggest(name, valid, limit=40)}")


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
        feature_dims = _feature_dims(adapter, site.hook, shapes[0])
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
    hooks = list(sites_by_hook)
    short = _observe(adapter, hooks, ids, _SHORT, "none")
    long = _observe(adapter, hooks, ids, _LONG, "logits")
    late_hooks = [hook for hook in hooks if len(short[hook]) != len(long[hook]) or _has_empty(short[hook])]
    if late_hooks:  # the first pass skipped the output layer, which these hooks need
        short |= _observe(adapter, late_hooks, ids, _SHORT, "logits")
    values = {hook: _check_axes(site.name, hook, short[hook], long[hook]) for hook, site in sites_by_hook.items()}
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
    """Return two rows of valid token ids, int64 tensor of shape (2, length)."""
    return ids[torch.arange(_BATCH * length) % len(ids)].reshape(_BATCH, length)


def _observe(adapter: Adapter, hooks: Sequence[str], ids: Tensor, length: int, output: Output) -> dict[str, list[Any]]:
    """Return all values at some hooks in one pass over (2, length) token ids."""
    fired: dict[str, list[Any]] = {hook: [] for hook in hooks}
    batch = _sample_batch(ids, length).to(adapter.device)
    functions = [(adapter.points[hook], fired[hook].append) for hook in hooks]
    with observed(functions), evaluation_mode(adapter.model):
        adapter.dry_run(batch, output)
    return fired


def _check_axes(name: str, hook: str, short: list[Any], long: list[Any]) -> Tensor:
    """Return the activation of the longer pass, of shape (batch, position, ...).

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
    aligned = after.ndim >= 3 and changed == [1] and (before.shape[1], after.shape[1]) == (_SHORT, _LONG)
    if not aligned or after.shape[0] not in (1, _BATCH):
        raise InputError(
            f"site {name!r} ({hook}) has no position axis after the batch axis: its shape is {list(after.shape)} for "
            f"{_BATCH} sequences of {_LONG} tokens, so positions cannot be taken from it. "
            "Choose a site of shape (batch, position, ...)."
        )
    return after


def _feature_dims(adapter: Adapter, hook: str, shape: Sequence[int]) -> list[str]:
    """Name the axes after batch and position, from their sizes and the name of the hook."""
    sizes = {name: adapter.size(name) for name in ("d_model", "d_mlp", "d_head", "n_heads", "n_key_value_heads")}
    tail = hook.split("{layer}.")[-1].removeprefix("attn.").replace("hook_", "")
    if len(shape) == 1:
        is_mlp = tail in ("mlp.pre", "mlp.post", "mlp.pre_linear")
        candidates = ["d_mlp", "d_model", "d_head"] if is_mlp else ["d_model", "d_mlp", "d_head"]
        return [next((dim for dim in candidates if sizes[dim] == shape[0]), f"{variable_name(hook)}_dim")]
    if len(shape) == 2:
        is_key_value = bool(_KEY_VALUE_SITE.search(tail))
        head_dim = "kv_head" if is_key_value else "head"
        last = next((dim for dim in ("d_head", "d_model") if sizes[dim] == shape[1]), None)
        if last and (is_key_value or sizes["n_heads"] in (None, shape[0])):
            return [head_dim, last]
        if is_key_value or tail in ("z", "q", "result"):
            return [head_dim, "d_head"]
    return [f"{variable_name(hook)}_dim{axis}" for axis in range(len(shape))]
