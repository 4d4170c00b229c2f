"""Values of hook points and of plain modules in forward passes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from stratalens.plugin.check.sample import Batch
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.hooks import observed

Side = Literal["input", "output"]


@dataclass
class Trace:
    """One forward pass.

    Attributes:
        values: hook -> its value, tensor of shape (batch, position, ...). Hooks that do not fire or
            have no position axis are absent.
        modules: (name of a module, "input" or "output") -> tensor.
        logits: tensor of shape (batch, position, vocab), or None.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[tuple[str, Side], Tensor] = field(default_factory=dict)
    logits: Tensor | None = None

    def at_tokens(self, batch: Batch, rows: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return the values at the tokens of some rows, without the padding.

        Args:
            batch: the sequences of the pass.
            rows: None for all rows.

        Returns:
            hook -> tensor of shape (tokens, ...), row by row.
        """
        rows = range(len(batch.ids)) if rows is None else rows
        mask = batch.mask.bool()
        columns = {row: mask[row].nonzero()[:, 0] for row in rows}
        spans = {row: slice(int(own[0]), int(own[-1]) + 1) for row, own in columns.items()}  # tokens are in a row
        # A value that all rows share, such as position embeddings, has one row.
        return {
            hook: torch.cat([value[row if value.shape[0] > 1 else 0, span] for row, span in spans.items()])
            for hook, value in self.values.items()
        }


class Tracer(AbstractContextManager["Tracer"]):
    """Copies the values of hooks in every pass inside the `with`.

    Values are copied when the hook fires, as a recording does, because later code may change a tensor in place. The
    hooks are added once for all passes, because adding them takes as long as a short pass.

    Args:
        adapter: the model.
        hooks: TransformerLens names.
    """

    def __init__(self, adapter: Adapter, hooks: Iterable[str]) -> None:
        self.adapter = adapter
        self._observed = observed((adapter.points[hook], partial(self._copy, hook)) for hook in hooks)
        self._trace, self._batch = Trace(), Batch(torch.empty(0, 0), torch.empty(0, 0))
        self._wanted: Container[str] = ()

    def __enter__(self) -> Self:
        self._observed.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._observed.__exit__(*exception)

    def _copy(self, hook: str, value: Any) -> None:
        if hook not in self._wanted:
            return
        rows, length = self._batch.ids.shape
        aligned = isinstance(value, Tensor) and value.ndim >= 3 and value.shape[1] == length
        if aligned and value.is_floating_point() and value.shape[0] in (1, rows):
            self._trace.values[hook] = value.detach().clone()

    def trace(
        self,
        batch: Batch,
        hooks: Iterable[str],
        *,
        run: Callable[[Tensor, Tensor], Any],
        modules: Mapping[str, nn.Module] | None = None,
    ) -> Trace:
        """Run one forward pass and copy the values of hooks and modules.

        Args:
            batch: the sequences.
            hooks: TransformerLens names among those of the tracer.
            run: the pass, (ids, mask) -> output, with tensors on the model's device.
            modules: name -> module whose input and output are copied by plain PyTorch hooks.
        """
        self._trace = result = Trace()
        self._batch, self._wanted = batch, set(hooks)

        def watch(name: str) -> Callable[..., None]:
            def copy(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                for side, value in (("input", first_tensor(args, kwargs)), ("output", first_tensor((output,), {}))):
                    if value is not None:
                        result.modules[name, side] = value.detach().clone()  # type: ignore[index]

            return copy

        with ExitStack() as stack:
            for name, module in (modules or {}).items():
                stack.callback(module.register_forward_hook(watch(name), with_kwargs=True).remove)
            device = self.adapter.device
            output = run(batch.ids.to(device), batch.mask.to(device))
        self._trace, self._wanted = Trace(), ()
        if isinstance(output, Tensor) and output.ndim == 3 and output.is_floating_point():
            result.logits = output.detach()
        return result


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first floating-point tensor among arguments or in an output, which is the hidden state."""
    for value in (*args, *(kwargs[name] for name in ("hidden_states", "input", "x") if name in kwargs)):
        if isinstance(value, tuple | list):
            value = value[0] if value else None
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None
