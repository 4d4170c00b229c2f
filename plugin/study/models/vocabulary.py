"""Vocabularies cut to the tokens in use, for a model and its tokenizer.

A small model spends most of its time in a head over tens of thousands of
tokens that a synthetic corpus never uses. The cut keeps every token of the
texts, the tokens that their merges need, all single bytes and the special
tokens. The cut tokenizer still encodes any text, and encodes the texts into the
same tokens, offsets included.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stratalens.store.errors import InputError, join_names

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def cut_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Copy a model and its tokenizer with only the tokens in use.

    Hidden states on the texts are unchanged bit for bit. Logits are columns of
    the full ones, so probabilities are renormalised over the remaining tokens.

    Args:
        model: any causal language model of transformers; not changed.
        tokenizer: its fast byte-level BPE tokenizer; not changed.
        texts: all texts that must tokenise as before.

    Raises:
        InputError: the tokenizer is not a fast BPE tokenizer, cannot be cut,
            or does not belong to the model.
    """
    ids = ids_to_keep(tokenizer, texts)
    small_tokenizer = cut_tokenizer(tokenizer, ids)
    old_of_new = np.asarray(ids)
    sample = list(texts)
    before = tokenizer(sample, add_special_tokens=False)["input_ids"]
    after = small_tokenizer(sample, add_special_tokens=False)["input_ids"]
    for text, old, new in zip(sample, before, after, strict=True):
        if list(old_of_new[new]) != list(old):
            raise InputError(
                f"The cut tokenizer splits {text!r} differently from the full one: the merges of this tokenizer "
                "cannot be cut. Train with the full vocabulary instead (vocabulary='full')."
            )
    rows = int(model.config.vocab_size)
    if ids[-1] >= rows:
        raise InputError(
            f"The tokenizer has the id {ids[-1]}, the model has {rows} tokens: they do not belong together, or a token "
            "was added to the tokenizer later. If the corpus does not use that token, train with the full vocabulary "
            "(vocabulary='full')."
        )
    return cut_model(model, ids), small_tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Refuse texts with tokens that the model does not have.

    Raises:
        InputError: a text has such a token; the message names the first.
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
    """Refuse a tokenizer that encodes two answers to one kind of question equally.

    Args:
        tokenizer: the tokenizer of the base model.
        model: the name of the model, for the message.
        answers: {kind of question: all answers to it}.

    Raises:
        InputError: two answers have the same tokens; the message names them.
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
                f"The tokenizer of {model} cannot distinguish answers to the question of {kind}: {words} are equal "
                f"({other!r} and {value!r} both become {tokens!r}), so a model cannot learn them. Use a model whose "
                "tokenizer has these words, such as any byte-level one, or set record.answers: none"
            )


def ids_to_keep(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[int]:
    """List the ids of texts, their merges, bytes and special tokens, ascending."""
    description = _tokenizer_description(tokenizer)
    vocabulary: dict[str, int] = description["model"]["vocab"]
    token_of = {number: token for token, number in vocabulary.items()}
    sources: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(description):
        sources.setdefault(left + right, []).append((left, right))
    added = {int(token["id"]) for token in description["added_tokens"]}
    keep = set(added) | set(tokenizer.all_special_ids)
    keep |= {number for token, number in vocabulary.items() if len(token) == 1}
    encoded = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
    pending = sorted({number for ids in encoded for number in ids} - keep)
    while pending:
        number = pending.pop()
        keep.add(number)
        for pair in sources.get(token_of.get(number, ""), ()):
            pending.extend(vocabulary[token] for token in pair if vocabulary[token] not in keep)
    return sorted(keep)


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> PreTrainedTokenizerFast:
    """Copy a tokenizer with only `ids`, renumbered 0 .. len(ids) - 1 in their order."""
    description = copy.deepcopy(_tokenizer_description(tokenizer))
    new_of_old = {old: new for new, old in enumerate(ids)}
    model = description["model"]
    vocabulary = {token: new_of_old[old] for token, old in model["vocab"].items() if old in new_of_old}
    model["merges"] = [
        [left, right]
        for left, right in _merges(description)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    model["vocab"] = vocabulary
    description["added_tokens"] = [{**token, "id": new_of_old[token["id"]]} for token in description["added_tokens"]]
    for special in ((description.get("post_processor") or {}).get("special_tokens") or {}).values():
        special["ids"] = [new_of_old[old] for old in special["ids"]]
    specials = {name: getattr(tokenizer, name) for name in _SPECIAL if getattr(tokenizer, name) is not None}
    small: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **specials,
    )
    small.name_or_path = tokenizer.name_or_path
    return small


def cut_model(model: PreTrainedModel, ids: Sequence[int]) -> PreTrainedModel:
    """Copy a model with only the rows `ids` of its embedding and head."""
    rows = torch.as_tensor(list(ids), device=next(model.parameters()).device)
    new_of_old = {old: new for new, old in enumerate(ids)}
    config = copy.deepcopy(model.config)
    config.vocab_size = len(ids)
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
    """Name the parameters of embedding and head, which have one row for every token."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    names = set()
    for owner, module in model.named_modules():
        if any(module is wanted for wanted in modules):
            names |= {f"{owner}.{name}" for name, _ in module.named_parameters()}
    return names


def _tokenizer_description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the JSON document of a fast BPE tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    kind = description.get("model", {}).get("type")
    if kind != "BPE":
        raise InputError(
            f"The vocabulary of a {kind or type(tokenizer).__name__} tokenizer cannot be cut: only fast BPE "
            "tokenizers can. Train with the full vocabulary instead (vocabulary='full')."
        )
    return description


def _merges(description: dict[str, Any]) -> list[tuple[str, str]]:
    """List the merges of a tokenizer, which some versions write as text."""
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in description["model"]["merges"])
    return [(left, right) for left, right in merges]
