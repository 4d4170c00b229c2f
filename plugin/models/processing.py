"""How TransformerLens or the user changed a model: processed weights, and modules in the places of hook points.

Stages of one store must agree on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint


def measured_processing(model: Any) -> dict[str, bool]:
    """Return how the weights were processed, measured on the weights.

    TransformerLens does not record the flags of loading a model. Folding a norm leaves no weight (HookedTransformer) or
    a weight of ones (bridge) in it. Centring leaves columns with a mean of zero. Folding the value biases leaves zeros
    there and a bias in the output. Refactoring the attention matrices leaves orthonormal rows in W_O.

    Returns:
        The flags that this model can answer. `value_biases_folded` is absent where no bias of the first block differs
        from zero: folding changes nothing there, and training may still change the biases.
    """
    flags: dict[str, bool] = {}
    blocks = getattr(model, "blocks", None)
    first = blocks[0] if blocks is not None and len(blocks) else None
    attention = getattr(first, "attn", None)
    norm = getattr(first, "ln1", None)
    if norm is not None:
        weight = getattr(norm, "w", None) if hasattr(norm, "w") else getattr(norm, "weight", None)
        if weight is None or not weight.is_meta:
            flags["norms_folded"] = weight is None or bool((weight == weight.new_ones(())).all())
    with torch.no_grad():
        for flag, module, name in (
            ("writing_centred", getattr(first, "mlp", None), "W_out"),
            ("unembed_centred", model, "W_U"),
        ):
            matrix = _weight(module, name)
            if matrix is not None and matrix.ndim == 2:
                rows = matrix[:64].float()  # all rows are centred or none is, so a few are enough
                mean, spread = rows.mean(-1).abs().max(), rows.std()
                flags[flag] = bool(mean <= 1e-4 * spread)
        value_bias, output_bias = _weight(attention, "b_V"), _weight(attention, "b_O")
        if value_bias is not None and bool(value_bias.any()):
            flags["value_biases_folded"] = False
        elif value_bias is not None and output_bias is not None and bool(output_bias.any()):
            flags["value_biases_folded"] = True
        output = _weight(attention, "W_O")
        if output is not None and output.ndim == 3 and output.shape[1] <= output.shape[2]:
            head = output[0].float()
            gap = (head @ head.T - torch.eye(len(head), device=head.device)).abs().max()
            flags["attention_refactored"] = bool(gap <= _ORTHONORMAL.get(output.dtype, 1e-3))
    return flags


# Largest entry of W_O @ W_O.T - 1 that rounding explains.
_ORTHONORMAL = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _weight(module: Any, name: str) -> Tensor | None:
    """Return a weight under its TransformerLens name; None where there is none, or none to compute with."""
    try:
        weight = getattr(module, name)
    except (AttributeError, NotImplementedError, RuntimeError):  # mixtures of experts, no head, no bias
        return None
    is_dense = isinstance(weight, Tensor) and not (weight.is_meta or hasattr(weight, "__tensor_flatten__"))
    return weight if is_dense else None


def differing_flags(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the processing flags in which two models differ; a flag that one of them cannot answer does not count.

    Models without the flag `spliced` have nothing spliced in.

    >>> differing_flags({"norms_folded": True, "compatibility_mode": True}, {"norms_folded": False})
    ['norms_folded']
    """
    first, second = ({"spliced": [], **flags} for flags in (first, second))
    return [flag for flag in first if flag in second and first[flag] != second[flag]]


def spliced_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules in the place of a hook point that compute: sparse autoencoders that SAELens splices in.

    SAELens keeps the autoencoder in the `__dict__` of its wrapper, where PyTorch does not list it.
    """
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not name.rpartition(".")[2].startswith("hook_") or isinstance(module, HookPoint):
            continue
        inside = {f"{name}.{type(m).__name__}": m for m in vars(module).values() if isinstance(m, nn.Module)}
        if inside or any(True for _ in (*module.parameters(), *module.buffers())):  # else a container of hook points
            modules |= {name: module, **inside}
    return modules


def splicing_flags(spliced: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return the processing flag `spliced`: the modules with their settings; empty where there are none."""
    if not spliced:
        return {}
    flags = []
    for name, module in spliced.items():
        settings = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        settings = {key: value for key, value in settings.items() if key != "training" and not key.startswith("_")}
        flags.append(f"{name}: {type(module).__name__} {settings}")
    return {"spliced": sorted(flags)}
