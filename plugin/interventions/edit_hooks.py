"""Hooks that apply edits at hook points while a context is open, and leave all other hooks in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from stratalens.plugin.compat import add_forward_hook, remove_forward_hook
from stratalens.plugin.interventions.edited_positions import EditedPositions
from stratalens.plugin.interventions.edits import Edit
from stratalens.plugin.models.adapters import Adapter
from stratalens.store.errors import InputError, NonFiniteError


class Intervention:
    """Edits of activations; a context manager, whose hooks are on the model only inside.

    Args:
        adapter: the model.
        edits: the edit of each hook, by TransformerLens name.
        positions: the positions that the edits change.
        width: features of the edited activations, flattened.
        what: what the edits do, for messages, such as "dose 2.0 of 'a v b'".

    Example:
        `with stratalens.steer(model, directions, dose=2.0) as steering: ...`
    """

    def __init__(
        self, adapter: Adapter, edits: Mapping[str, Edit], positions: EditedPositions, width: int, what: str
    ) -> None:
        self._adapter = adapter
        self._edits = dict(edits)
        self._positions = positions
        self._width = width
        self._what = what
        self._hooks: ExitStack | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        """TransformerLens names of the edited hook points."""
        return tuple(self._edits)

    def batch(self, positions: Mapping[str, Any]) -> None:
        """Say where the named positions are in the next forward passes.

        Args:
            positions: {name: int array of shape (batch,)}, token indices in the sequences that the model runs,
                padding counted; -1 where a row does not have the position.

        Raises:
            InputError: a name is missing, or the arrays differ in length.
        """
        self._positions.announce(positions)

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise InputError("this intervention is already in use; call the function again for another `with` block")
        with ExitStack() as stack:
            if self._positions.names is not None:
                for module in _callers(self._adapter):
                    handle = module.register_forward_pre_hook(self._read_call, with_kwargs=True)
                    stack.callback(handle.remove)
            for hook, edit in self._edits.items():
                point = self._adapter.points[hook]
                function: Callable[..., Any] = partial(self._apply, edit, hook)
                stack.callback(remove_forward_hook, point, add_forward_hook(point, function))
            self._hooks = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    def _read_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._positions.read_call(args, kwargs, getattr(self._adapter.tokenizer, "pad_token_id", None))

    def _apply(self, edit: Edit, name: str, value: Any, *, hook: Any) -> Tensor:
        check_activation(value, name, self._width)
        flat = value.flatten(2)
        selected = self._positions.select(value, name)
        if selected is None:
            changed = edit(flat, None, None)
            _refuse_nonfinite(changed, flat, name, self._what)
        else:
            rows, tokens, columns = selected
            before = flat[rows, tokens]
            after = edit(before, rows, columns)
            _refuse_nonfinite(after, before, name, self._what)
            changed = flat.clone()
            changed[rows, tokens] = after
        return changed.view(value.shape)


def check_activation(value: Any, name: str, width: int) -> None:
    """Check that an activation has positions, and the features of the directions.

    Args:
        value: activation of a hook point.
        name: name of the hook point.
        width: features of the directions, flattened.

    Raises:
        InputError: it has another shape.
    """
    if not isinstance(value, Tensor) or value.ndim < 3:
        raise InputError(
            f"{name} has no positions: its activation is no tensor of shape (batch, position, ...); use a site that has"
        )
    own = value[0, 0].numel() if value.shape[0] and value.shape[1] else width
    if own != width:
        raise InputError(f"{name} has {own} features, the directions have {width}; use those of this model")


def _callers(adapter: Adapter) -> list[nn.Module]:
    """Modules whose calls have the attention mask as an argument."""
    inner = getattr(adapter.model, "original_model", None)
    modules = [adapter.model, inner] if isinstance(inner, nn.Module) else [adapter.model]
    if adapter.kind == "HookedTransformer":  # run_with_hooks does not call the model, but its forward method
        modules += list(adapter.model.blocks.children())  # type: ignore[union-attr]
    return modules


def _refuse_nonfinite(after: Tensor, before: Tensor, name: str, what: str) -> None:
    if bool(torch.isfinite(after).all()):
        return
    if not bool(torch.isfinite(before).all()):
        raise NonFiniteError(f"the activations at {name} are not finite before the intervention")
    raise InputError(f"{what} makes the activations at {name} ({after.dtype}) NaN or infinite; use a smaller dose")
