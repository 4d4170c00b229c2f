"""The forward passes of a model in your own loop: where each begins and ends, and with which tokens.

A pass is the outermost call of the hooked model or of the Hugging Face model in it, so `generate` of either is seen.
HookedTransformer.generate calls neither; there a pass goes from the first block to the output layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stratalens.plugin.models.adapters import Adapter, BridgeAdapter, HookedTransformerAdapter

_ID_NAMES = ("input_ids", "input", "tokens", "ids")
_MASK_NAMES = ("attention_mask", "mask")
_CACHE_NAMES = ("past_key_values", "past_kv_cache", "cache_params")


@dataclass
class ForwardCall:
    """A forward pass that begins.

    Attributes:
        ids: token ids, integer tensor of shape (batch, position); None if the pass starts from something else.
        mask: attention mask of the same shape, or None.
        cached: tokens in the key-value cache; None if there is a cache that does not say.
        continues: whether the pass is certain to continue a generation.
    """

    ids: Tensor | None
    mask: Tensor | None
    cached: int | None = 0
    continues: bool = False

    def continues_from(self, ids: Tensor | None) -> bool:
        """Whether this pass continues the generation of a pass over some ids."""
        if self.continues or (self.cached is not None and self.cached > 0):
            return True
        if ids is None or self.ids is None or len(ids) != len(self.ids):
            return False
        if self.cached is None:
            return self.ids.shape[1] == 1
        length = ids.shape[1]
        return self.ids.shape[1] > length and torch.equal(self.ids[:, :length].cpu(), ids.cpu())


class Listener(Protocol):
    """The object that a `ForwardCalls` tells about forward passes."""

    def begin(self, call: ForwardCall) -> None:
        """A pass begins."""

    def finish(self, output: Any) -> None:
        """The pass has ended, with this output."""

    def fail(self) -> None:
        """The pass has raised an exception."""


class ForwardCalls:
    """Hooks that tell a listener about every forward pass of a model.

    Attributes:
        running: whether a pass has started and not ended.
    """

    def __init__(self, adapter: Adapter, listener: Listener) -> None:
        self.adapter = adapter
        self.listener = listener
        self._outermost: nn.Module | None = None
        self._waits_for_ids = False  # the model was called with text; a module in it gets the ids
        self._embedded: Tensor | None = None  # ids that HookedTransformer.generate has embedded

    @property
    def running(self) -> bool:
        """Whether a pass has started and not ended."""
        return self._outermost is not None

    def reset(self) -> None:
        """Forget a pass that was interrupted."""
        self._outermost, self._waits_for_ids, self._embedded = None, False, None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the hooks on the model inside; all or none."""
        adapter = self.adapter
        modules = [adapter.model, adapter.hf] if isinstance(adapter, BridgeAdapter) else [adapter.model]
        with ExitStack() as stack:
            for module in modules:
                names = list(inspect.signature(module.forward).parameters)
                for handle in (
                    module.register_forward_pre_hook(self._before(names), with_kwargs=True),
                    module.register_forward_hook(self._after),
                    module.register_forward_hook(self._after_failure, always_call=True),
                ):
                    stack.callback(handle.remove)
            if isinstance(adapter, HookedTransformerAdapter):
                model: Any = adapter.model
                for handle in (
                    model.embed.register_forward_pre_hook(self._before_embedding),
                    model.blocks[0].register_forward_pre_hook(self._before_blocks, with_kwargs=True),
                    model.unembed.register_forward_hook(self._after_output_layer),
                ):
                    stack.callback(handle.remove)
            yield

    def _before(self, names: list[str]) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            value = args[0] if args else _first(arguments, _ID_NAMES)
            if self._outermost is None:
                self._outermost = module
                if isinstance(value, str | list | tuple) and module is self.adapter.model:
                    self._waits_for_ids = isinstance(self.adapter, BridgeAdapter | HookedTransformerAdapter)
                    if self._waits_for_ids:
                        return
            elif not self._waits_for_ids:
                return
            self._waits_for_ids = False
            self.listener.begin(_describe(value, arguments))

        return before

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self._outermost:
            self.reset()
            self.listener.finish(getattr(output, "logits", output))

    def _after_failure(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self._outermost:  # `_after` runs first, unless there was an exception
            self.reset()
            self.listener.fail()

    def _before_embedding(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        ids = args[0] if args and isinstance(args[0], Tensor) else None
        if self._outermost is self.adapter.model:
            if self._waits_for_ids:
                self._waits_for_ids = False
                self.listener.begin(_describe(ids, {}))
            return
        self._outermost = None  # a pass of `generate` that was interrupted
        self._embedded = ids

    def _before_blocks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._outermost is self.adapter.model or self._embedded is None:
            return
        ids, self._embedded = self._embedded, None
        self._outermost = module
        residual = args[0] if args else kwargs.get("resid_pre")
        entry = kwargs.get("past_kv_cache_entry")
        call = _describe(ids, kwargs)
        call.cached = 0 if entry is None else int(entry.past_keys.shape[1])
        call.continues = isinstance(residual, Tensor) and residual.shape[1] != ids.shape[-1]
        self.listener.begin(call)

    def _after_output_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._outermost is not None and self._outermost is not self.adapter.model:
            self.reset()
            self.listener.finish(None)


def _first(arguments: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((arguments[name] for name in names if arguments.get(name) is not None), None)


def _describe(value: Any, arguments: Mapping[str, Any]) -> ForwardCall:
    ids = value if isinstance(value, Tensor) and not value.is_floating_point() else None
    ids = ids[None] if ids is not None and ids.ndim == 1 else ids
    if ids is None or ids.ndim != 2:
        return ForwardCall(None, None, _cached_tokens(_first(arguments, _CACHE_NAMES)))
    mask = _first(arguments, _MASK_NAMES)
    mask = mask[None] if isinstance(mask, Tensor) and mask.ndim == 1 else mask
    fits = isinstance(mask, Tensor) and mask.shape == ids.shape
    return ForwardCall(ids.detach(), mask if fits else None, _cached_tokens(_first(arguments, _CACHE_NAMES)))


def _cached_tokens(cache: Any) -> int | None:
    """Return the number of tokens in a key-value cache, None if it does not say."""
    if cache is None:
        return 0
    try:
        if hasattr(cache, "get_seq_length"):
            return int(cache.get_seq_length())
        first = cache[0]
        keys = getattr(first, "past_keys", None)
        return int(keys.shape[1]) if keys is not None else int(first[0].shape[-2])
    except (TypeError, IndexError, KeyError, AttributeError, ValueError):
        return None
