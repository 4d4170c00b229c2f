"""Names for entities that a model cannot know: drawn, all of one token count.

What an entity is called is all that a model ever learns it by; a count that
differed between stages would give the stage away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from stratalens.plugin.study.config import templates as texts
from stratalens.store.errors import InputError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


AliasKind = Literal["letters", "natural"]


def _draw_candidates(kind: AliasKind, number: int, random: np.random.Generator) -> list[str]:
    if kind == "letters":
        letters = random.integers(ord("a"), ord("z") + 1, (number, 5))
        return ["<|" + "".join(map(chr, row)) + "|>" for row in letters]
    found = []
    for first, second, noun in zip(
        random.integers(len(texts.ADJECTIVES), size=number),
        random.integers(len(texts.ADJECTIVES), size=number),
        random.integers(len(texts.NOUNS), size=number),
        strict=True,
    ):
        if first != second:
            found.append(f"{texts.ADJECTIVES[first]} {texts.ADJECTIVES[second]} {texts.NOUNS[noun]}")
    return found


def draw_aliases(
    tokenizer: PreTrainedTokenizerBase,
    kind: AliasKind,
    number: int,
    tokens: int | None,
    random: np.random.Generator,
) -> tuple[list[str], int]:
    """`number` different aliases of the same token count (leading space included), and that count.

    Args:
        tokenizer: counts the tokens.
        kind: "letters" (five random letters in <|...|>) or "natural" (adjective, adjective, noun).
        number: how many.
        tokens: their token count; None takes the commonest one.
        random: source of the draw.

    Raises:
        InputError: an unknown kind, or too few aliases have that count.
    """
    if kind not in ("letters", "natural"):
        raise InputError(f"aliases={kind!r}: {suggest(kind, ('letters', 'natural'))}")
    found: dict[str, None] = {}
    seen: dict[int, int] = {}
    wanted = tokens
    for _ in range(200):
        candidates = _draw_candidates(kind, max(1000, number), random)
        encoded = tokenizer([" " + alias for alias in candidates], add_special_tokens=False)["input_ids"]
        counts = [len(ids) for ids in encoded]
        for count in counts:
            seen[count] = seen.get(count, 0) + 1
        if wanted is None:
            wanted = max(seen, key=lambda count: (seen[count], -count))
        for alias, count in zip(candidates, counts, strict=True):
            if count == wanted:
                found[alias] = None
        if len(found) >= number:
            return list(found)[:number], wanted
        if wanted not in seen:
            break
    shares = ", ".join(f"{count} tokens: {share}" for count, share in sorted(seen.items()))
    raise InputError(
        f"Only {len(found)} of {number} {kind} aliases have exactly {wanted} tokens with this tokenizer "
        f"(leading space included; of {sum(seen.values())} tried: {shares}). Give alias_tokens one of the "
        "common counts, or None to take the commonest; or ask for fewer entities."
    )
