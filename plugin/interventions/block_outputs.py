"""Forward passes that start at a block: the blocks below it return what they returned in a clean pass.

An intervention at a block changes nothing below it. So its passes over one batch share the outputs of the blocks there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from stratalens.plugin.models.adapters import Adapter


class BlockOutputs:
    """Outputs of blocks in a clean pass over one batch.

    Args:
        adapter: the model.
        hooks: TransformerLens name of the edited hook point at each layer.
    """

    def __init__(self, adapter: Adapter, hooks: Mapping[int | None, str]) -> None:
        self._blocks = _block_list(adapter, hooks)
        self._points = adapter.points
        # The block whose output an intervention changes, or the last one below the block of the intervention.
        self._last: dict[int | None, int] = {}
        self._edits_output: set[int | None] = set()
        for layer, hook in hooks.items() if self._blocks else ():
            if layer is None or layer >= len(self._blocks):
                continue
            if _is_output(self._blocks[layer], self._points[hook]):
                self._edits_output.add(layer)
                self._last[layer] = layer
            elif layer:
                self._last[layer] = layer - 1
        self._hooks = dict(hooks)
        self._outputs: dict[int, Any] = {}
        self._calls: dict[int, int] = {}

    def can_skip(self, layer: int | None) -> bool:
        """Whether an intervention at a layer leaves out any block."""
        return layer in self._last

    def ready(self, layer: int | None) -> bool:
        """Whether the clean pass ran the blocks below an intervention at a layer, each once."""
        return layer in self._last and self._calls.get(self._last[layer]) == 1

    @contextmanager
    def recorded(self, layers: Sequence[int | None], keep: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
        """Keep the outputs that interventions at these layers start from.

        Args:
            layers: layers of the interventions.
            keep: what to keep of an output of shape (batch, position, features); None keeps all of it.
        """
        self.clear()
        with ExitStack() as stack:
            for number in {self._last[layer] for layer in layers if layer in self._last}:
                handle = self._blocks[number].register_forward_hook(partial(self._record, number, keep))
                stack.callback(handle.remove)
            yield

    def _record(
        self, number: int, keep: Callable[[Tensor], Tensor] | None, module: Any, args: Any, output: Any
    ) -> None:
        self._calls[number] = self._calls.get(number, 0) + 1
        self._outputs[number] = output if keep is None else _with_first(output, keep)

    @contextmanager
    def replayed(self, layer: int | None, copies: int = 1) -> Iterator[None]:
        """Let the blocks below an intervention return their kept output instead of computing it.

        Args:
            layer: layer of the intervention.
            copies: how often the batch has every row.
        """
        last = self._last[layer]
        output = self._outputs[last]
        if copies > 1:
            output = _with_first(output, lambda value: value.repeat(copies, *[1] * (value.ndim - 1)))

        def ready_output(*args: Any, **kwargs: Any) -> Any:
            return output

        def edited_output(*args: Any, **kwargs: Any) -> Any:
            return _with_first(output, self._points[self._hooks[layer]])

        modules = self._blocks[: last + 1]
        functions = [ready_output] * len(modules)
        if layer in self._edits_output:
            functions[-1] = edited_output  # the edit is a hook at the end of this block
        earlier = [module.__dict__.get("forward") for module in modules]
        try:
            for module, function in zip(modules, functions, strict=True):
                # Not by assignment: a bridge hands that on to the module that it wraps.
                module.__dict__["forward"] = function
            yield
        finally:
            for module, own in zip(modules, earlier, strict=True):
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

    def clear(self) -> None:
        """Drop the kept outputs."""
        self._outputs, self._calls = {}, {}


def _with_first(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the hidden states in the output of a block."""
    return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)


def _is_output(block: nn.Module, point: nn.Module) -> bool:
    """Whether a hook point is the last thing that a block computes."""
    return any(getattr(block, name, None) is point for name in ("hook_out", "hook_resid_post"))


def _block_list(adapter: Adapter, hooks: Mapping[int | None, str]) -> list[nn.Module]:
    """The blocks of a model, in order; empty where the edited hook points are in no list of modules."""
    if adapter.kind in ("TransformerBridge", "HookedTransformer"):
        blocks = getattr(adapter.model, "blocks", None) if adapter.can_stop else None
        return list(blocks) if isinstance(blocks, nn.ModuleList) else []
    for layer, hook in hooks.items():
        before, number, _ = hook.partition(f".{layer}.")
        blocks = dict(adapter.model.named_modules()).get(before) if number and layer is not None else None
        return list(blocks) if isinstance(blocks, nn.ModuleList) else []
    return []
