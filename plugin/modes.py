"""A model as it is while we run it: no dropout, no gradients, and everything as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
