"""Hooks that observe a hook point without a change to the model, and evaluation mode for passes of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from stratalens.plugin.compat import add_forward_hook, remove_forward_hook

_own_passes: ContextVar[int] = ContextVar("own_passes", default=0)
_observers: dict[int, Any] = {}  # handles of the hooks that `observed` has put on


@contextmanager
def observed(functions: Iterable[tuple[HookPoint, Callable[[Any], object]]]) -> Iterator[None]:
    """Call functions with every activation of their hook points inside; remove exactly these hooks at the end.

    The hooks go through `HookPoint.add_hook`, so that they get the value that
    `run_with_cache` stores (compatibility mode converts it).
    """
    with ExitStack() as stack:
        for point, function in functions:
            handle = add_forward_hook(point, partial(_observe, function))
            _observers[id(handle)] = handle
            stack.callback(_remove, point, handle)
        yield


def _remove(point: HookPoint, handle: Any) -> None:
    del _observers[id(handle)]
    remove_forward_hook(point, handle)


def has_later_hooks(point: HookPoint) -> bool:
    """Return whether a hook that is not of `observed` was added to a point after one that is."""
    ours = [id(handle) in _observers for handle in point.fwd_hooks]
    return True in ours and not all(ours[ours.index(True) :])


def is_own_pass() -> bool:
    """Return whether this package runs the model, inside `evaluation_mode`, and not the caller."""
    return _own_passes.get() > 0


def _observe(function: Callable[[Any], object], tensor: Any, *, hook: Any) -> None:
    function(tensor)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn off dropout and gradients inside; restore every module and the grad mode.

    All passes that this package runs by itself are inside. A `Recorder` on the same model ignores them.

    This uses `no_grad` and not `inference_mode`: masks and rotary tables that a model
    caches inside must remain usable for training.
    """
    training = [module for root in _roots(model) for module in root.modules() if module.training]
    outer = _own_passes.get()
    _own_passes.set(outer + 1)
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        _own_passes.set(outer)
        for module in training:
            module.training = True


def _roots(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    inner = getattr(model, "original_model", None)
    if isinstance(inner, nn.Module):  # the bridge does not register all of its modules
        yield inner
