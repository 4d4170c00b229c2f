"""How likely a model holds each of several answers behind a prompt; torch, no study.

An answer's probability is the product over its tokens, and all answers to one
question are compared whole, so nothing is divided by their length: a product
over all tokens *is* the probability that the model gives this answer, as long
as no answer is the beginning of another one (then both get the line end that
follows an answer in training). Dividing by length would favour long answers,
whose later tokens are certain once the first is there. Greedy decoding would
mix two questions: whether the fact is known, and whether the model answers in
the wanted form at all, which an untrained one does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ids = tuple[int, ...]
BATCH = 64


def answer_log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = BATCH,
) -> npt.NDArray[np.float64]:
    """Log probability of every answer behind every prompt.

    Prompts of one length run together, so nothing is padded; beginnings that answers share run once.

    Args:
        model: a causal language model of transformers, in eval mode.
        tokenizer: its tokenizer.
        prompts: texts that end where the answer's leading space begins.
        answers: without the leading space; each once.
        batch_size: prompts that run together.

    Returns:
        Natural logarithms, shape (prompts, answers).

    Raises:
        InputError: two answers have the same tokens, or a prompt does not end where the others do.
    """
    import torch

    heads, tails = _split(tokenizer, prompts, answers)
    paths, places = _paths(tails)
    parameter = next(model.parameters())
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    lengths = np.array([len(head) for head in heads])
    out = np.zeros((len(prompts), len(answers)))
    with torch.inference_mode():
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for start in range(0, len(same), batch_size):
                rows = same[start : start + batch_size]
                for path, wanted in zip(paths, places, strict=True):
                    ids = torch.tensor([(*heads[row], *path) for row in rows], device=parameter.device)
                    some: dict[str, Any] = {"logits_to_keep": len(path) + 1} if keeps else {}
                    logits = model(input_ids=ids, use_cache=False, **some).logits[:, -(len(path) + 1) :].float()
                    logs = torch.log_softmax(logits, dim=-1).cpu().numpy()
                    for answer, depth, token in wanted:
                        out[rows, answer] += logs[:, depth, token]
    return out


def _split(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[Ids], list[Ids]]:
    """Ids of the prompts, and of the answers behind them, as a whole text is tokenised."""
    alone = [tuple(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    first = alone[0]
    for end in ("", "\n"):  # as in training, with the line end only where an answer is the beginning of another
        whole = [tuple(ids) for ids in tokenizer([f"{prompts[0]} {answer}{end}" for answer in answers])["input_ids"]]
        shared = min(_common(first, ids) for ids in whole)
        tails = [ids[shared:] for ids in whole]
        ordered = sorted(tails)  # a beginning is sorted right before what goes on from it
        if all(after[: len(before)] != before for before, after in pairwise(ordered)):
            break
    else:
        raise InputError(f"Of the answers {', '.join(answers)} two have the same tokens; give each answer once")
    cut = len(first) - shared  # tokens at the prompt's end that merge with an answer, or close a text
    for prompt, ids in zip(prompts, alone, strict=True):
        if ids[len(ids) - cut :] != first[shared:]:
            raise InputError(f"The prompts {prompts[0]!r} and {prompt!r} end in other tokens; ask them apart")
    return [ids[: len(ids) - cut] for ids in alone], tails


def _paths(tails: list[Ids]) -> tuple[list[Ids], list[list[tuple[int, int, int]]]]:
    """What has to run behind the prompt, and which (answer, depth, token) is read there: every beginning once."""
    inner = sorted({tail[:-1] for tail in tails}, key=len, reverse=True)
    paths: list[Ids] = []
    for beginning in inner:
        if not any(path[: len(beginning)] == beginning for path in paths):
            paths.append(beginning)
    places: list[list[tuple[int, int, int]]] = [[] for _ in paths]
    for answer, tail in enumerate(tails):
        home = next(number for number, path in enumerate(paths) if path[: len(tail) - 1] == tail[:-1])
        places[home] += [(answer, depth, token) for depth, token in enumerate(tail)]
    return paths, places


def _common(one: Ids, other: Ids) -> int:
    """How many ids two rows begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
