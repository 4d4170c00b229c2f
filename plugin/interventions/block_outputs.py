"""Forward passes that start at a block: the blocks below it return what they returned in an earlier pass.

An intervention at a block changes nothing below it. So its passes over one batch share the output of the block before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from stratalens.plugin.models.adapters import Adapter


class BlockOutputs:
    """The output of the blocks below one block, of the batch that has run last.

    Args:
        adapter: the model.
        layer: the block at which later passes start; None or 0 leaves nothing out.
    """

    def __init__(self, adapter: Adapter, layer: int | None) -> None:
        blocks = getattr(adapter.model, "blocks", None)
        usable = adapter.can_stop and isinstance(blocks, nn.ModuleList) and layer
        self._below: list[nn.Module] = list(blocks[:layer]) if usable and blocks is not None else []
        self._output: Any = None

    @property
    def can_skip(self) -> bool:
        """Whether there are blocks to leave out."""
        return bool(self._below)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the output of the last block below."""
        if not self._below:
            yield
            return
        handle = self._below[-1].register_forward_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._output = output

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Let the blocks below return the kept output instead of computing it."""
        earlier = [module.__dict__.get("forward") for module in self._below]
        output = self._output
        try:
            for module in self._below:
                # Not by assignment: a bridge hands that on to the module that it wraps.
                module.__dict__["forward"] = lambda *args, **kwargs: output
            yield
        finally:
            for module, own in zip(self._below, earlier, strict=True):
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

    def clear(self) -> None:
        """Drop the kept output."""
        self._output = None
