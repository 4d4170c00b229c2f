"""Hooks that the caller has put on a model, which change or read what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from stratalens.plugin.compat import forward_hooks, hook_function
from stratalens.plugin.models.adapters import Adapter, BridgeAdapter

# Libraries whose hooks belong to the model, and the parts of this package that only observe.
_NOT_OF_THE_CALLER = (
    "accelerate",
    "peft",
    "torch",
    "transformer_lens",
    "transformers",
    "stratalens.plugin.capture",
    "stratalens.plugin.models",
)


def user_hooks(adapter: Adapter) -> list[str]:
    """List the hook points and modules of a model that have forward hooks of the caller.

    Args:
        adapter: the model.

    Returns:
        Sorted names: of TransformerLens for hook points, of PyTorch for other modules.
    """
    return sorted(name for name, module in _modules(adapter) if any(map(_is_of_caller, forward_hooks(module))))


def _modules(adapter: Adapter) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    roots = [adapter.model, adapter.hf] if isinstance(adapter, BridgeAdapter) else [adapter.model]
    named = [*adapter.points.items(), *(entry for root in roots for entry in root.named_modules())]
    for name, module in named:
        if id(module) not in seen:
            seen.add(id(module))
            yield name or type(module).__name__, module


def _is_of_caller(hook: Any) -> bool:
    function = hook_function(hook)
    while isinstance(function, partial):
        function = function.func
    origin = getattr(function, "__module__", None) or type(function).__module__
    return not any(origin == package or origin.startswith(f"{package}.") for package in _NOT_OF_THE_CALLER)
