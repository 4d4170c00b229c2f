"""Whether attention, MLP and norms of a block give what the classes of transformers give for the same input.

TransformerBridge computes some parts itself, to have hooks inside. The part of transformers stays inside as
`original_component`, with the same weights, so both can run on one input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from stratalens.plugin.check.report import Finding, compare
from stratalens.plugin.check.traces import first_tensor
from stratalens.plugin.models.adapters import BridgeAdapter

CHECK = "same as transformers"


@dataclass
class PartCalls:
    """Calls of the parts of blocks in one forward pass.

    Attributes:
        parts: name -> (layer, module of TransformerBridge).
        calls: name -> (arguments, keyword arguments, first tensor of the output).
    """

    parts: dict[str, tuple[int, nn.Module]] = field(default_factory=dict)
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = field(default_factory=dict)


def choose_parts(adapter: BridgeAdapter) -> dict[str, tuple[int, nn.Module]]:
    """Return the parts of some blocks: of the first, the middle and the last one, and of the first of each layer type.

    Returns:
        name of the module -> (layer, module).
    """
    types = list(getattr(adapter.text_config, "layer_types", None) or [])
    parts: dict[str, tuple[int, nn.Module]] = {}
    for stack in ("", "encoder_", "decoder_"):
        blocks = getattr(adapter.model, f"{stack}blocks", None)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            continue
        layers = {0, len(blocks) // 2, len(blocks) - 1, *(types.index(kind) for kind in set(types[: len(blocks)]))}
        for layer in sorted(layers):
            for name, module in blocks[layer].named_children():
                if isinstance(getattr(module, "original_component", None), nn.Module):
                    parts[f"{stack}blocks.{layer}.{name}"] = layer, module
    return parts


@contextmanager
def recorded_calls(parts: dict[str, tuple[int, nn.Module]]) -> Iterator[PartCalls]:
    """Keep arguments and output of every part in the pass inside the `with`."""
    result = PartCalls(parts)
    before: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep_input(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A key-value cache is among the arguments of some parts, and grows when the part runs.
            with suppress(TypeError, RuntimeError):  # an argument that cannot be copied: the part is not compared
                before[name] = copy.deepcopy((args, kwargs))

        return keep

    def keep_output(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = first_tensor((output,), {})
            if value is not None and name in before:
                result.calls[name] = (*before[name], value.detach().clone())

        return keep

    with ExitStack() as stack:
        for name, (_, module) in parts.items():
            stack.callback(module.register_forward_pre_hook(keep_input(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(keep_output(name)).remove)
        yield result


def check_components(adapter: BridgeAdapter, calls: PartCalls) -> Iterator[Finding]:
    """Run the parts of transformers on the kept inputs, and compare their outputs."""
    if adapter.spliced or adapter.processing["weights_processed"] or adapter.processing["compatibility_mode"]:
        note = "the weights are processed, or a module is spliced in, so both parts differ on purpose"
        yield Finding(CHECK, "", None, "not checkable", note=note)
        return
    for name, (args, kwargs, value) in calls.calls.items():
        layer, module = calls.parts[name]
        try:
            original = first_tensor((module.original_component(*args, **kwargs),), {})  # type: ignore[operator]
        except Exception as error:  # some parts take other arguments than those that TransformerLens passes
            note = f"the class of transformers refuses the arguments: {type(error).__name__}"
            yield Finding(CHECK, name.rpartition(".")[2], layer, "not checkable", note=note)
            continue
        if original is not None and original.shape == value.shape:
            note = f"not what {type(module.original_component).__name__} of transformers gives"
            finding = compare(CHECK, name.rpartition(".")[2], layer, value, original, adapter.dtype)
            yield replace(finding, note=note) if finding.verdict == "different" else finding
