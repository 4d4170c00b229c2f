"""Which hook points are recorded: short names, full TransformerLens names, shapes found by probing.

A site is one variable of the store. Its hook name is a template with `{layer}`
where the model has it in every block. Shapes, dtypes and whether a site has a
position axis are not guessed from the config but seen in two tiny forward passes
of different length (probing.py). What is chosen in the end is a Selection
(selection.py). How values are taken off the hook points is in tap.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stratalens.plugin.models.adapters import Adapter, Output
from stratalens.plugin.models.hooks import attach, detach, evaluation_mode
from stratalens.plugin.models.sites import SHORT_NAMES, Site, SiteSelection, _exists, _first, available, variable_name
from stratalens.store.errors import InputError, suggest

_INDEX = re.compile(r"(^|\.)(\d+)(?=\.|$)")


def resolve(
    adapter: Adapter, sites: Sequence[str] | str, layers: Sequence[int] | None, probe_ids: Tensor
) -> SiteSelection:
    """Turn names into sites, with their shapes seen in tiny forward passes.

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
    return SiteSelection(tuple(dry_run(adapter, found, chosen, probe_ids)), chosen)


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
        return short or variable_name(hook), hook, index
    valid = [*available(adapter), *sorted({_INDEX.sub(r"\1{layer}", point) for point in adapter.points})]
    raise InputError(f"unknown site {name!r} on this {adapter.kind}: {suggest(name, valid, limit=40)}")


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


# Lengths of the two probing passes. Only the position axis may differ between them.
_PROBE_BATCH, _PROBE_SHORT, _PROBE_LONG = 2, 3, 4


_TELLING = (5, 7, 11, 13, 17, 19)  # lengths that are hardly the size of anything else


_SIZES = ("d_model", "d_mlp", "d_head", "n_heads", "n_key_value_heads", "d_vocab", "n_layers")


_KEY_VALUE_SITE = re.compile(r"(^|[._])(rot_)?[kv]($|[._])")


def dry_run(
    adapter: Adapter, found: Sequence[tuple[str, str, int | None]], layers: Sequence[int], ids: Tensor
) -> list[Site]:
    """The sites, as two passes over valid token ids show them.

    Args:
        adapter: the model.
        found: (variable name, hook template, block index or None) of every site.
        layers: blocks in which sites with `{layer}` are looked at.
        ids: valid token ids, shape (n,).

    Raises:
        InputError: a site that is silent, has no position axis, or differs between layers.
    """
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
    seen, late = _one_pass(adapter, list(hooks), ids), set[str]()
    if seen is None:
        short = observe(adapter, list(hooks), ids, _PROBE_SHORT, "none")
        long = observe(adapter, list(hooks), ids, _PROBE_LONG, "logits")
        late_hooks = [hook for hook in hooks if len(short[hook]) != len(long[hook]) or _empty(short[hook])]
        if late_hooks:  # the output layer was left out; these need it
            short |= observe(adapter, late_hooks, ids, _PROBE_SHORT, "logits")
        late = {hooks[hook][1] for hook in late_hooks}
        seen = {hook: _check_axes(name, hook, short[hook], long[hook]) for hook, (name, _) in hooks.items()}
    shapes: dict[str, list[Tensor]] = {}
    for hook, (_, template) in hooks.items():
        shapes.setdefault(template, []).append(seen[hook])
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


def _one_pass(adapter: Adapter, hooks: Sequence[str], ids: Tensor) -> dict[str, Tensor] | None:
    """What sites inside the blocks hold, by hook, if a single pass leaves no doubt; else None.

    They fire whether or not the output layer runs.
    """
    if not adapter.can_stop or not all(hook.startswith("blocks.") for hook in hooks):
        return None
    sizes = {adapter.size(name) for name in _SIZES}
    length = next((n for n in _TELLING if n not in sizes and (adapter.max_length or n) >= n), None)
    if length is None:
        return None
    fired = observe(adapter, hooks, ids, length, "logits")
    clear = all(len(values) == 1 and _aligned(values[0], length) for values in fired.values())
    return {hook: values[0] for hook, values in fired.items()} if clear else None


def _aligned(value: Any, length: int) -> bool:
    """Whether it has the shape (batch, position, ...), and `length` stands for nothing but the position."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim >= 3
        and value.shape[0] in (1, _PROBE_BATCH)
        and [axis for axis, size in enumerate(value.shape) if size == length] == [1]
    )


def sample_batch(ids: Tensor, length: int) -> Tensor:
    """Two rows of `length` valid token ids."""
    return ids[torch.arange(_PROBE_BATCH * length) % len(ids)].reshape(_PROBE_BATCH, length)


def _empty(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Tensor) and v.numel() == 0 for v in values)


def observe(adapter: Adapter, hooks: Sequence[str], ids: Tensor, length: int, output: Output) -> dict[str, list[Any]]:
    """Everything that fires at some hook points in one pass over (2, length) token ids."""
    fired: dict[str, list[Any]] = {hook: [] for hook in hooks}
    batch = sample_batch(ids, length).to(adapter.device)
    attached = [(adapter.points[hook], attach(adapter.points[hook], fired[hook].append)) for hook in hooks]
    try:
        with evaluation_mode(adapter.model):
            adapter.probe_run(batch, output)
    finally:
        for point, handle in attached:
            detach(point, handle)
    return fired


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
        return [next((d for d in [*prefer, "d_head"] if known[d] == shape[0]), f"{variable_name(hook)}_dim")]
    if len(shape) == 2:
        key_value = bool(_KEY_VALUE_SITE.search(tail))
        last = "d_head" if shape[1] == sizes["d_head"] else "d_model" if shape[1] == sizes["d_model"] else None
        heads = sizes["n_key_value_heads"] or sizes["n_heads"] if key_value else sizes["n_heads"]
        if last and (heads is None or shape[0] == heads or key_value):
            return ["kv_head" if key_value else "head", last]
        if key_value or tail in ("z", "q", "result"):
            return ["kv_head" if key_value else "head", "d_head"]
    return [f"{variable_name(hook)}_dim{axis}" for axis in range(len(shape))]
