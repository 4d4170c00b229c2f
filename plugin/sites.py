"""Which hook points are recorded: short names, full TransformerLens names, shapes found by probing.

A site is one variable of the store. Its hook name is a template with `{layer}`
where the model has it in every block. Shapes, dtypes and whether a site has a
position axis are not guessed from the config but seen in two tiny forward passes
of different length (probing.py). What is chosen in the end is a Selection
(selection.py). How values are taken off the hook points is in tap.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from stratalens.models import Adapter
from stratalens.probing import probe
from stratalens.selection import Selection, variable_name
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

_INDEX = re.compile(r"(^|\.)(\d+)(?=\.|$)")


def resolve(adapter: Adapter, sites: Sequence[str] | str, layers: Sequence[int] | None, probe_ids: Tensor) -> Selection:
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
    return Selection(tuple(probe(adapter, found, chosen, probe_ids)), chosen)


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
        return short or variable_name(hook), hook, index
    valid = [*available(adapter), *sorted({_INDEX.sub(r"\1{layer}", point) for point in adapter.points})]
    raise InputError(f"unknown site {name!r} on this {adapter.kind}: {near(name, valid, limit=40)}")


def _first(adapter: Adapter, short: str) -> str | None:
    return next((hook for hook in SHORT_NAMES[short] if _exists(adapter, hook)), None)


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
