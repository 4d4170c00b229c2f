"""Messages for models that have no hooks, and for token ids that a model has no embedding for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from stratalens.store.errors import InputError


@contextmanager
def embedding_errors(ids: Tensor) -> Iterator[None]:
    """Raise the IndexError of an embedding, which names no value, as an InputError that does."""
    try:
        yield
    except IndexError as error:
        if "index out of range in self" not in str(error):
            raise
        raise InputError(
            f"an embedding of this model has fewer rows than it needs: the token ids go up to {int(ids.max())}, the "
            f"positions to {ids.shape[1] - 1}. Pass the tokenizer of this model as tokenizer=, or shorter prompts."
        ) from error


def _is_hooked(model: Any) -> bool:
    return isinstance(model, TransformerBridge | HookedRootModule)


def not_hooked_message(model: Any) -> str:
    """Explain that a model has no hooks, and how to get one that has: the attribute to pass, or the call that wraps."""
    kind = type(model).__name__
    if path := _find_inside(model, _is_hooked):
        unwrap = ", or accelerator.unwrap_model(model)" if path.startswith("model.module") else ""
        return f"{kind} wraps a hooked model. Pass {path}{unwrap}: hooks do not fire through the wrapper."
    valid = (
        f"{kind} has no TransformerLens hooks. Valid: a TransformerBridge, a HookedTransformer (TransformerLens 3.9) "
        "or a HookedRootModule."
    )
    if path := _find_inside(model, lambda module: hasattr(module, "merge_and_unload")):
        inner = f"{path}.merge_and_unload()"
        note = " The adapters of PEFT have to be merged into the weights, which changes the model; copy it first."
    else:
        inner = _find_inside(model, lambda module: isinstance(module, PreTrainedModel)) or "model"
        note = ""
    wrap = f"TransformerBridge.boot_transformers(name_or_folder, hf_model={inner}, tokenizer=tokenizer)"
    return f"{valid} Wrap a Hugging Face model with {wrap}.{note}"


def _find_inside(model: Any, is_wanted: Callable[[Any], bool]) -> str:
    """Return the path of attributes to a module, `model` itself or at most three levels inside; "" if there is none."""
    paths = {"model": model}
    for _ in range(4):
        for path, module in paths.items():
            if is_wanted(module):
                return path
        paths = {
            f"{path}.{name}": child
            for path, module in paths.items()
            if isinstance(module, nn.Module)
            for name, child in module.named_children()
            if name.isidentifier()
        }
    return ""
