"""Cutting a model's vocabulary to the tokens in use, with a real tokenizer that matches.

A small model spends most of its time in a head over tens of thousands of
tokens that a synthetic corpus never meets. The cut keeps every token the given
texts use, the tokens their merges pass through, all single bytes and the
special tokens, so the cut tokenizer still encodes any text, and encodes the
given ones into exactly the same pieces, offsets included.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratalens.store.errors import InputError, join_names

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def cut_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A copy of `model` whose embedding and head keep only the tokens in use, and its tokenizer.

    Hidden states on the given texts are unchanged bit for bit; logits are the
    kept columns of the full ones (probabilities are renormalised over them).

    Args:
        model: any causal language model of transformers; not changed.
        tokenizer: its fast byte-level BPE tokenizer; not changed.
        texts: everything that has to tokenise as before.

    Raises:
        InputError: the tokenizer is not a fast BPE tokenizer.
    """
    kept = ids_to_keep(tokenizer, texts)
    small_tokenizer = cut_tokenizer(tokenizer, kept)
    old_of_new = np.asarray(kept)
    sample = list(texts)
    before = tokenizer(sample, add_special_tokens=False)["input_ids"]
    after = small_tokenizer(sample, add_special_tokens=False)["input_ids"]
    for text, old, new in zip(sample, before, after, strict=True):
        if list(old_of_new[new]) != list(old):
            raise InputError(
                f"The cut tokenizer splits {text!r} differently from the whole one; this tokenizer's merges "
                "cannot be cut. Train with the whole vocabulary instead (vocabulary='full')."
            )
    rows = int(model.config.vocab_size)
    if kept[-1] >= rows:
        raise InputError(
            f"The tokenizer has the id {kept[-1]}, the model has {rows} tokens: they do not belong together, "
            "or the tokenizer has a token that was added later. Train with the whole vocabulary (vocabulary='full') if "
            "the corpus does not use it."
        )
    return cut_model(model, kept), small_tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Refuse texts with tokens that the model does not have.

    Raises:
        InputError: such a token, and the first text with it.
    """
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    rows = len(weight)
    if len(tokenizer) <= rows:
        return
    for text, ids in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
        if max(ids) >= rows:
            raise InputError(
                f"The tokenizer gives {text!r} the id {max(ids)}, the model has {rows} tokens: they do not belong "
                "together. Give the folder of one model with its own tokenizer, or enlarge the model's embedding."
            )


def check_answers(tokenizer: PreTrainedTokenizerBase, model: str, answers: Mapping[str, Sequence[str]]) -> None:
    """Refuse a tokenizer to which two answers to one kind of question are the same.

    Args:
        tokenizer: of the base model.
        model: its name, for the message.
        answers: {kind of question: all answers to it}.

    Raises:
        InputError: the answers, and the tokens that they become.
    """
    for kind, values in answers.items():
        seen: dict[tuple[int, ...], str] = {}
        twins: dict[str, str] = {}
        for value, ids in zip(values, tokenizer([f"A: {value}\n" for value in values])["input_ids"], strict=True):
            other = seen.setdefault(tuple(ids), value)
            if other != value:
                twins[value] = other
        if twins:
            value, other = next(iter(twins.items()))
            tokens = " ".join(tokenizer.tokenize(f" {value}"))
            words = join_names(repr(v) for v in dict.fromkeys([*twins.values(), *twins]))
            raise InputError(
                f"The tokenizer of {model} cannot tell answers to the question of {kind} apart: {words} are the same "
                f"to it ({other!r} and {value!r} both become {tokens!r}), so nothing could be learned about them. Take "
                "a model whose tokenizer has these words, as every byte-level one does, or write record.answers: none"
            )


def ids_to_keep(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[int]:
    """Ids to keep, ascending: used by `texts`, passed through by their merges, bytes, special tokens."""
    described = _tokenizer_description(tokenizer)
    vocabulary: dict[str, int] = described["model"]["vocab"]
    token_of = {number: token for token, number in vocabulary.items()}
    parts: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(described):
        parts.setdefault(left + right, []).append((left, right))
    added = {int(token["id"]) for token in described["added_tokens"]}
    keep = set(added) | set(tokenizer.all_special_ids)
    keep |= {number for token, number in vocabulary.items() if len(token) == 1}
    encoded = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
    waiting = sorted({number for ids in encoded for number in ids} - keep)
    while waiting:
        number = waiting.pop()
        keep.add(number)
        for pair in parts.get(token_of.get(number, ""), ()):
            waiting.extend(vocabulary[part] for part in pair if vocabulary[part] not in keep)
    return sorted(keep)


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """The tokenizer over the `kept` ids alone, renumbered 0 .. len(kept) - 1 in their order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    described = copy.deepcopy(_tokenizer_description(tokenizer))
    new_of_old = {old: new for new, old in enumerate(kept)}
    model = described["model"]
    merges = _merges(described)
    model["vocab"] = {token: new_of_old[old] for token, old in model["vocab"].items() if old in new_of_old}
    known = model["vocab"]
    model["merges"] = [
        [left, right] for left, right in merges if left in known and right in known and left + right in known
    ]
    described["added_tokens"] = [{**token, "id": new_of_old[token["id"]]} for token in described["added_tokens"]]
    for special in ((described.get("post_processor") or {}).get("special_tokens") or {}).values():
        special["ids"] = [new_of_old[old] for old in special["ids"]]
    specials = {name: getattr(tokenizer, name) for name in _SPECIAL if getattr(tokenizer, name) is not None}
    small: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **specials,
    )
    small.name_or_path = tokenizer.name_or_path
    return small


def cut_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of the model with only the `kept` rows of its embedding and head."""
    import torch

    rows = torch.as_tensor(list(kept), device=next(model.parameters()).device)
    new_of_old = {old: new for new, old in enumerate(kept)}
    config = copy.deepcopy(model.config)
    config.vocab_size = len(kept)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        old = getattr(config, name, None)
        if isinstance(old, int):
            setattr(config, name, new_of_old.get(old))
    small = type(model)(config)
    for parameter in small.parameters():
        parameter.data = parameter.data.to(next(model.parameters()).dtype)
    cut = _vocabulary_parameters(model)
    state = {name: value[rows] if name in cut else value for name, value in model.state_dict().items()}
    small.load_state_dict(state)
    small.train(model.training)
    return small


def _vocabulary_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the state that has one row for every token: embedding and head, weights and biases."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    found = set()
    for owner, module in model.named_modules():
        if any(module is wanted for wanted in modules):
            found |= {f"{owner}.{name}" for name, _ in module.named_parameters()}
    return found


def _tokenizer_description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    kind = described.get("model", {}).get("type")
    if kind != "BPE":
        raise InputError(
            f"The vocabulary of a {kind or type(tokenizer).__name__} tokenizer cannot be cut: only fast BPE "
            "tokenizers can. Train with the whole vocabulary instead (vocabulary='full')."
        )
    return described


def _merges(described: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (pair[0], pair[1])
        for pair in (m.split(" ", 1) if isinstance(m, str) else m for m in described["model"]["merges"])
    ]
