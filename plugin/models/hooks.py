"""Hooks that observe a hook point without a change to the model, and evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from stratalens.plugin.compat import add_forward_hook, remove_forward_hook


def attach(point: HookPoint, function: Callable[[Any], object]) -> Any:
    """Call a function with every activation of a hook point; return the handle of the hook.

    The hook goes through `HookPoint.add_hook`, so that it gets the value that
    `run_with_cache` stores (compatibility mode converts it).
    """

    def observe(tensor: Any, *, hook: Any) -> None:
        function(tensor)

    return add_forward_hook(point, observe)


def detach(point: HookPoint, handle: Any) -> None:
    """Remove one hook that `attach` added; has no effect if all hooks were reset before."""
    remove_forward_hook(point, handle)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn off dropout and gradients inside; restore every module and the grad mode.

    This uses `no_grad` and not `inference_mode`: masks and rotary tables that a model
    caches inside must remain usable for training.
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
    if isinstance(inner, nn.Module):  # the bridge does not register all of its modules
        yield inner
