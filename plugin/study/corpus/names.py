"""Aliases: random names that a model cannot know, all with the same number of tokens.

A model learns an entity by its alias alone. Token counts that differed between stages would reveal the stage.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from stratalens.plugin.study.config.templates import ADJECTIVES, NOUNS
from stratalens.store.errors import InputError, suggest

AliasKind = Literal["letters", "natural"]


def draw_aliases(
    tokenizer: PreTrainedTokenizerBase,
    kind: AliasKind,
    number: int,
    tokens: int | None,
    random: np.random.Generator,
) -> tuple[list[str], int]:
    """Draw different aliases with the same token count.

    Args:
        tokenizer: counts the tokens, leading space included.
        kind: "letters" (five random letters in <|...|>) or "natural" (adjective, adjective, noun).
        number: how many aliases.
        tokens: their token count; None takes the most frequent one.
        random: generator of the draw.

    Returns:
        The aliases, and their token count.

    Raises:
        InputError: the kind is unknown, or too few aliases have the token count.
    """
    if kind not in get_args(AliasKind):
        raise InputError(f"aliases={kind!r}: {suggest(kind, get_args(AliasKind))}")
    aliases: dict[str, None] = {}
    frequencies: Counter[int] = Counter()
    for _ in range(200):
        candidates = _draw_candidates(kind, max(1000, number), random)
        encoded = tokenizer([" " + alias for alias in candidates], add_special_tokens=False)["input_ids"]
        counts = [len(ids) for ids in encoded]
        frequencies.update(counts)
        if tokens is None:
            tokens = max(frequencies, key=lambda count: (frequencies[count], -count))
        aliases |= {alias: None for alias, count in zip(candidates, counts, strict=True) if count == tokens}
        if len(aliases) >= number:
            return list(aliases)[:number], tokens
        if tokens not in frequencies:
            break
    shares = ", ".join(f"{count} tokens: {share}" for count, share in sorted(frequencies.items()))
    raise InputError(
        f"Only {len(aliases)} of {number} {kind} aliases have exactly {tokens} tokens with this tokenizer, leading "
        f"space included ({frequencies.total()} tried: {shares}). Set alias_tokens to a frequent count or to None, "
        "which takes the most frequent one; or reduce the number of entities."
    )


def _draw_candidates(kind: AliasKind, number: int, random: np.random.Generator) -> list[str]:
    """Draw `number` aliases of any token count, less those with a repeated adjective."""
    if kind == "letters":
        letters = random.integers(ord("a"), ord("z") + 1, (number, 5))
        return ["<|" + "".join(map(chr, row)) + "|>" for row in letters]
    first = random.integers(len(ADJECTIVES), size=number)
    second = random.integers(len(ADJECTIVES), size=number)
    nouns = random.integers(len(NOUNS), size=number)
    triples = zip(first, second, nouns, strict=True)
    return [f"{ADJECTIVES[a]} {ADJECTIVES[b]} {NOUNS[n]}" for a, b, n in triples if a != b]
