"""The tokenizer of a hooked model as its checkpoint has it, without the BOS token that TransformerLens adds."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

from stratalens.plugin.compat import checkpoint_tokenizer
from stratalens.plugin.models.adapters import Adapter, BridgeAdapter, HookedTransformerAdapter
from stratalens.store.errors import InputError

_originals: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # tokenizer of TransformerLens -> that of the checkpoint


def own_tokenizer(adapter: Adapter) -> Any:
    """Return the tokenizer that the model's checkpoint has, or None.

    TransformerLens (3.9 and 4.x) replaces a tokenizer that has a BOS token by a copy with `add_bos_token=True`. The
    copy adds BOS to every text and no longer adds an EOS token, whatever the checkpoint says. This function loads the
    checkpoint's tokenizer again, once for each model.

    Raises:
        InputError: TransformerLens replaced the tokenizer, and the original cannot be loaded.
    """
    marked = checkpoint_tokenizer(adapter.model)
    if marked is not None:
        return marked
    tokenizer = adapter.tokenizer
    if not isinstance(adapter, BridgeAdapter | HookedTransformerAdapter) or not _is_replaced(tokenizer):
        return tokenizer
    if tokenizer not in _originals:
        _originals[tokenizer] = _load_original(tokenizer)
    original = _originals[tokenizer]
    if original.get_vocab() == tokenizer.get_vocab():
        return original
    if not (original.is_fast and tokenizer.is_fast):
        return tokenizer
    changed = copy.deepcopy(tokenizer)  # tokens were added to it after it was loaded
    changed.backend_tokenizer.post_processor = original.backend_tokenizer.post_processor
    return changed


def _is_replaced(tokenizer: Any) -> bool:
    """Return whether TransformerLens may have loaded this tokenizer again; it needs the checkpoint's name for that."""
    return bool(getattr(tokenizer, "init_kwargs", {}).get("add_bos_token") and _name(tokenizer))


def _name(tokenizer: Any) -> str:
    return str(tokenizer.init_kwargs.get("name_or_path") or getattr(tokenizer, "name_or_path", "") or "")


def _load_original(tokenizer: Any) -> Any:
    from transformers import AutoTokenizer

    name = _name(tokenizer)
    try:
        original: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the model's tokenizer adds a BOS token, and its checkpoint {name!r} cannot be loaded to see whether "
            f"that is its own or TransformerLens's: {reason} Pass the checkpoint's tokenizer as tokenizer=, or "
            "tokenizer=model.tokenizer to keep the BOS token."
        ) from error
    return original
