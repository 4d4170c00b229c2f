"""Private interfaces of PyTorch, Transformers, Accelerate and TransformerLens.

Each function names the interface, the versions that have it, and the reason for its use.
Libraries are imported when a function is called, so that this module costs nothing to import.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import getclosurevars
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage, nn
    from transformer_lens.hook_points import HookPoint

_WRAPPED = "_original_component"


def add_forward_hook(point: HookPoint, function: Callable[..., None]) -> Any:
    """Add a hook `function(tensor, hook=...)` to a hook point and return its handle.

    `HookPoint.add_hook` returns the handle on TransformerLens 4.x. On the 3.9 line it
    returns None, and the last entry of the list `fwd_hooks` is the handle of the new hook.
    """
    handle: Any = point.add_hook(function)
    return point.fwd_hooks[-1] if handle is None else handle


def remove_forward_hook(point: HookPoint, handle: Any) -> None:
    """Remove one hook of a hook point and leave all others in place.

    `HookPoint.remove_hooks` (TransformerLens 3.9 and 4.x) removes every hook of a direction or a
    context level. So this function uses the fields of the handle and of the list `fwd_hooks`.
    """
    handle.hook.remove()
    point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


def hook_function(hook: Any) -> Any:
    """Return the function that a caller gave to `HookPoint.add_hook`, or the hook itself if it is another one.

    TransformerLens (3.9 and 4.x) wraps it in a local function `full_hook`, which has it in its closure. Only 4.x also
    keeps it in its handle.
    """
    if getattr(hook, "__qualname__", "") == "HookPoint.add_hook.<locals>.full_hook":
        return getclosurevars(hook).nonlocals.get("hook", hook)
    return hook


def forward_hooks(module: nn.Module) -> list[Any]:
    """Return the forward hooks and forward pre-hooks of a module.

    PyTorch (2.4 and later) has no public list of them.
    """
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def in_backward_pass() -> bool:
    """Return whether autograd runs now, as it does where gradient checkpointing computes activations again.

    PyTorch (2.4 and later) shows this only in `torch._C._current_graph_task_id`.
    """
    import torch

    return bool(torch._C._current_graph_task_id() != -1)


def has_processed_weights(bridge: Any) -> bool:
    """Return whether a TransformerBridge has folded or centred its weights.

    The bridge records this only in `_weights_processed` (TransformerLens 3.9 and 4.x).
    """
    return bool(getattr(bridge, "_weights_processed", False))


def is_wrapped_name(name: str) -> bool:
    """Return whether a name in a state dict belongs to a module in a TransformerBridge."""
    return _WRAPPED in name


def unwrapped_name(name: str) -> str:
    """Remove from a name in a state dict what a TransformerBridge has added to it.

    The bridge wraps modules in place, and its public `original_component` returns modules, not names.
    Their names in a state dict contain `_original_component` (TransformerLens 3.9 and 4.x).

    >>> unwrapped_name("model.layers.0.mlp._original_component.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    return name.replace(f".{_WRAPPED}", "")


def mark_headless(hf_model: Any) -> None:
    """Note on a Hugging Face model that its output layer was not in the checkpoint and is random."""
    hf_model._stratalens_headless = True


def is_headless(hf_model: Any) -> bool:
    """Return whether `mark_headless` was called for a model."""
    return bool(getattr(hf_model, "_stratalens_headless", False))


def offloaded_weights(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return functions that read the weights which Accelerate keeps on disk or in host memory, by name.

    Their parameters are on the meta device between two forward passes. Accelerate (1.x) keeps a hook in `_hf_hook` of
    the module, and the values in `weights_map` of this hook. The public `get_state_dict_offloaded_model` knows neither
    the names of a TransformerBridge nor memory limits.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        hook = module.__dict__.get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):  # a SequentialHook has several
            weights = getattr(one, "weights_map", None)
            if weights is None:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    readers[unwrapped_name(f"{prefix}.{name}")] = partial(weights.__getitem__, name)
    return readers


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is one shard of several processes: `torch.distributed.tensor.DTensor` (PyTorch 2.4)."""
    return type(tensor).__name__ == "DTensor"


def mark_tokenizer(bridge: Any, tokenizer: Any) -> None:
    """Note on a hooked model the tokenizer that its checkpoint has; valid until the model gets another tokenizer."""
    bridge._stratalens_tokenizer = (tokenizer, bridge.tokenizer)


def checkpoint_tokenizer(model: Any) -> Any:
    """Return the tokenizer of `mark_tokenizer`, or None."""
    own, of_transformer_lens = getattr(model, "_stratalens_tokenizer", (None, None))
    return own if of_transformer_lens is getattr(model, "tokenizer", None) else None


def for_transformer_lens(tokenizer: Any) -> Any:
    """Copy a tokenizer so that TransformerLens takes it as it is.

    `get_tokenizer_with_bos` (TransformerLens 3.9 and 4.x) loads a tokenizer that has a BOS token again from
    `init_kwargs["name_or_path"]`, unless `init_kwargs["add_bos_token"]` is set. A tokenizer that was made in memory has
    no such path. TransformerLens also sets missing special tokens in place, so it gets a copy.
    """
    twin = copy.deepcopy(tokenizer)
    twin.init_kwargs = {"name_or_path": "", **twin.init_kwargs, "add_bos_token": True}
    return twin


def remove_forward_wrapper(model: nn.Module) -> None:
    """Give a model the forward method of its class again, after Accelerate has wrapped it.

    `Accelerator.prepare` (Accelerate 1.x) sets `forward` and `_original_forward` on the model itself.
    The public `unwrap_model` leaves a bound `forward` on the model. This is a reference cycle,
    which keeps the weights in memory until the garbage collector runs.
    """
    for name in ("forward", "_original_forward"):
        model.__dict__.pop(name, None)


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Compute attention as plain matrix products inside; restore it afterwards.

    `PreTrainedModel.set_attn_implementation` is public (Transformers 4.56 and later). The current
    implementation is only in `config._attn_implementation`.
    """
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


def shared_storage(nbytes: int) -> UntypedStorage:
    """Allocate memory that worker processes share with the process that trains.

    torch's `default_collate` allocates its batches with `UntypedStorage._new_shared` too (PyTorch 2.4
    and later). The public `share_memory_` copies into new memory: a 12 MiB batch took 41 ms instead of
    27 ms to allocate and fill.
    """
    import torch

    storage: Any = torch.UntypedStorage
    shared: UntypedStorage = storage._new_shared(nbytes)
    return shared


def cpu_has_avx512_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices in hardware.

    False if PyTorch does not know. The public `torch.cpu.get_capabilities` is newer than the
    oldest supported PyTorch (2.4).
    """
    import torch

    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())


@contextmanager
def hide_gguf_progress() -> Iterator[None]:
    """Hide the progress bar of dequantising a GGUF file; restore it afterwards.

    The switches of `transformers.utils.logging` do not reach this bar. The module that draws it
    takes tqdm from its own namespace (Transformers 4.56 and later).
    """
    from transformers import modeling_gguf_pytorch_utils

    module: Any = modeling_gguf_pytorch_utils
    progress_bar = module.tqdm
    module.tqdm = partial(progress_bar, disable=True)
    try:
        yield
    finally:
        module.tqdm = progress_bar
