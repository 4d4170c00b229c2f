"""Hooks that only look on, put on a hook point and taken off again without touching anybody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint


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


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, no gradients; every module's own training flag and the grad mode restored after.

    `no_grad` and not `inference_mode`: masks and rotary tables that a model caches while
    we run must stay usable for training afterwards.
    """
    training = [module for root in _roots(model) for module in root.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _roots(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    inner = getattr(model, "original_model", None)
    if isinstance(inner, nn.Module):  # not all of its modules are registered in the bridge
        yield inner
