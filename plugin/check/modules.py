"""Sites against plain PyTorch hooks on the modules of the Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import cast

import torch
from torch import Tensor

from stratalens.plugin.check.hf_modules import HFModules, plain_module
from stratalens.plugin.check.report import Finding, compare, relative_difference, verdict_of
from stratalens.plugin.check.traces import Side, Trace
from stratalens.plugin.models.adapters import BridgeAdapter

CHECK = "Hugging Face module"
PARTS = ("q", "k", "v")

#: (site, layer) -> hook
Hooks = Mapping[tuple[str, int | None], str]
Layout = Callable[[Tensor, Sequence[int], int, int], Tensor | None]


def check_modules(adapter: BridgeAdapter, single: Trace, hooks: Hooks, hf_modules: HFModules) -> Iterator[Finding]:
    """Compare every site with its module.

    Args:
        adapter: the model.
        single: pass of one row without padding, with the modules of `hf_modules`.
        hooks: (site, layer) -> hook.
        hf_modules: modules by site.
    """
    joint = _check_joint(adapter, single, hooks, hf_modules)
    for (site, layer), hook in hooks.items():
        if hook not in single.values:
            continue
        value = single.values[hook]
        place = hf_modules.sides.get((site, layer))
        reference = single.modules.get((place.name, place.side)) if place is not None else None
        name = f"{place.side} of {place.name}" if place is not None else ""
        if reference is None and site == "mlp_pre" and layer in hf_modules.halves:
            name = f"first half of the output of {hf_modules.halves[layer]}"
            output = single.modules.get((hf_modules.halves[layer], "output"))
            reference = output.chunk(2, dim=-1)[0] if output is not None else None
        if reference is None:
            unknown = Finding(CHECK, site, layer, "not checkable", note="no module with a name that this check knows")
            yield joint.get((site, layer), unknown)
        elif value.numel() != reference.numel():
            note = f"{name} has another shape: {list(reference.shape)}"
            yield Finding(CHECK, site, layer, "not checkable", note=note)
        else:
            finding = compare(CHECK, site, layer, value.reshape(-1), reference.reshape(-1), adapter.dtype, name)
            if finding.verdict == "different":
                explained = _explain(adapter, single, site, layer, value, reference, name)
                finding = explained or replace(finding, note=f"not the {name}{_describe_content(single, value)}")
            yield finding


def _explain(
    adapter: BridgeAdapter,
    single: Trace,
    site: str,
    layer: int | None,
    value: Tensor,
    reference: Tensor,
    name: str,
) -> Finding | None:
    """Compare again with what some architectures do to a module's output; None if nothing explains the difference.

    Some modules return their output plus the residual stream. Some models scale embeddings and residual outputs by a
    factor, or normalise embeddings before the first block. Some heads transform the output of the final norm.
    """

    def closest(candidates: Sequence[tuple[Tensor | None, str]]) -> Finding | None:
        for candidate, note in candidates:
            if candidate is not None and candidate.numel() == value.numel():
                difference = relative_difference(value.reshape(-1), candidate.reshape(-1))
                if (verdict := verdict_of(difference, adapter.dtype)) != "different":
                    return Finding(CHECK, site, layer, verdict, difference, note)
        return None

    def module(module_name: str, side: Side) -> Tensor | None:
        return single.modules.get((module_name, side))

    if site in ("attn_out", "mlp_out"):
        stream = module(f"block {layer}" if site == "attn_out" else f"block {layer} norm before mlp", "input")
        without = reference - stream if stream is not None and stream.shape == reference.shape else None
        scaled, factor = _scaled(value, reference)
        return closest([(without, f"{name} minus the residual stream"), (scaled, f"{factor:.4g} times the {name}")])
    if site == "resid_mid":  # GPT-1 has a norm behind the MLP whose name says that it is in front
        norm, mlp = module(f"block {layer} norm before mlp", "output"), module(f"block {layer} mlp", "input")
        if norm is not None and mlp is not None and norm.shape == mlp.shape and not torch.equal(norm, mlp):
            return closest([(mlp, f"input of block {layer} mlp, which has no norm in front")])
    if site == "embed":
        scaled, factor = _scaled(value, reference)
        after = module("block 0", "input")
        return closest([(scaled, f"{factor:.4g} times the {name}"), (after, "input of block 0")])
    if site == "ln_final":
        norm = module("final norm", "output")
        if norm is not None and norm.shape == reference.shape and not torch.equal(norm, reference):
            return closest([(norm, "output of final norm, which the head transforms")])
    return None


def _describe_content(single: Trace, value: Tensor) -> str:
    """Say which module's input or output a value is, for the note of a wrong site."""
    for (name, side), other in single.modules.items():
        if other.numel() == value.numel() and torch.equal(other.reshape(-1), value.reshape(-1)):
            return f" but the {side} of {name}"
    return ""


def _scaled(value: Tensor, reference: Tensor) -> tuple[Tensor, float]:
    """Return the multiple of the reference that is closest to the value, and the factor."""
    a, b = value.reshape(-1).double(), reference.reshape(-1).double()
    factor = float((a @ b) / (b @ b).clamp_min(1e-300))
    return reference.reshape(-1) * factor, factor


def _check_joint(
    adapter: BridgeAdapter, single: Trace, hooks: Hooks, hf_modules: HFModules
) -> dict[tuple[str, int | None], Finding]:
    """Compare q, k and v with their parts of a joint projection.

    Models order the output of a joint projection in different ways. The layout that fits most parts of most layers is
    the model's; if none fits anywhere, the sites cannot be checked.
    """
    heads = adapter.size("n_heads") or 1
    fits: list[tuple[float, dict[tuple[str, int | None], float]]] = []
    values = {
        (part, layer): single.values[hooks[part, layer]]
        for layer in hf_modules.joint
        for part in PARTS
        if hooks.get((part, layer)) in single.values
    }
    outputs = {layer: _joint_output(single, hf_modules, layer) for layer in hf_modules.joint}
    for layout in _LAYOUTS:
        differences: dict[tuple[str, int | None], float] = {}
        for (part, layer), value in values.items():
            output = outputs[layer]
            sizes = [values[p, layer][0, 0].numel() if (p, layer) in values else 0 for p in PARTS]
            reading = None
            if output is not None and 0 not in sizes and output.shape[-1] == sum(sizes):
                reading = layout(output[0], sizes, PARTS.index(part), heads)
            if reading is not None and reading.numel() == value.numel():
                differences[part, layer] = relative_difference(value.reshape(-1), reading.reshape(-1))
        if differences:
            fits.append((median(differences.values()), differences))
    if not fits:
        return {}
    middle, differences = min(fits, key=lambda fit: fit[0])
    if verdict_of(middle, adapter.dtype) == "different":
        note = "q, k and v are in one projection, in an order that this check does not know"
        return {place: Finding(CHECK, *place, "not checkable", note=note) for place in differences}
    return {
        place: Finding(CHECK, *place, verdict_of(size, adapter.dtype), size, f"part of {hf_modules.joint[place[1]][0]}")  # type: ignore[index]
        for place, size in differences.items()
    }


def _joint_output(single: Trace, hf_modules: HFModules, layer: int) -> Tensor | None:
    """Return the output of a joint projection, computed from the attention's input where it did not run."""
    projection, attention = hf_modules.joint[layer]
    output = single.modules.get((projection, "output"))
    source = single.modules.get((attention, "input"))
    if output is None and source is not None:
        output = cast(Tensor, plain_module(hf_modules.modules[projection])(source))
    return output


def _behind_each_other(joint: Tensor, sizes: Sequence[int], part: int, heads: int) -> Tensor | None:
    start = sum(sizes[:part])
    return joint[:, start : start + sizes[part]]


def _by_head(joint: Tensor, sizes: Sequence[int], part: int, heads: int) -> Tensor | None:
    """Read q, k and v of one head behind each other, then the next head (GPT-NeoX, BLOOM)."""
    if len(set(sizes)) > 1 or sizes[0] % heads:
        return None
    return joint.view(len(joint), heads, 3, -1)[:, :, part]


def _by_group(joint: Tensor, sizes: Sequence[int], part: int, heads: int) -> Tensor | None:
    """Read the queries of one group of heads, then its key and its value (Falcon)."""
    width = sizes[0] // heads
    if width == 0 or sizes[1] % width or sizes[1] != sizes[2]:
        return None
    groups = joint.view(len(joint), sizes[1] // width, -1, width)
    return groups[:, :, :-2] if part == 0 else groups[:, :, -2 if part == 1 else -1]


def _in_four_slices(joint: Tensor, sizes: Sequence[int], part: int, heads: int) -> Tensor | None:
    """Read four slices that each hold query, value and key (CodeGen and GPT-J on TPU cores)."""
    if len(set(sizes)) > 1 or sizes[0] % 4:
        return None
    return joint.view(len(joint), 4, 3, -1)[:, :, (0, 2, 1)[part]]


_LAYOUTS: tuple[Layout, ...] = (_behind_each_other, _by_head, _by_group, _in_four_slices)
