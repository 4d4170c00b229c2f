"""Special tokens that a tokenizer adds around a prompt, and the BOS token that `prepend_bos=` adds or removes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import InputError

ADD_SPECIAL_TOKENS = "add_special_tokens"  # label column of tables whose prompts have their special tokens as text


@dataclass(frozen=True)
class SpecialTokens:
    """The token ids that a tokenizer adds to a text.

    Attributes:
        before: ids in front of the text.
        after: ids behind the text.
        bos: id of the BOS token; None if the tokenizer has none.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    bos: int | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Self:
        """Measure on a short text what the tokenizer adds.

        Example:
            >>> from stratalens.plugin.prompts.special_tokens import SpecialTokens
            >>> class Words:
            ...     bos_token_id = 1
            ...     def __call__(self, text, add_special_tokens):
            ...         return {"input_ids": [1, 7, 2] if add_special_tokens else [7]}
            >>> SpecialTokens.from_tokenizer(Words())
            SpecialTokens(before=(1,), after=(2,), bos=1)
        """
        whole: list[int] = []
        text: list[int] = []
        for sample in _samples(tokenizer):
            text = sample_ids(tokenizer, sample, special=False)
            if text:
                whole = sample_ids(tokenizer, sample, special=True)
                break
        starts = range(len(whole) - len(text) + 1)
        start = next((start for start in starts if whole[start : start + len(text)] == text), None)
        bos = bos_token_id(tokenizer)
        if start is None:  # the tokenizer splits the text differently inside special tokens
            return cls(bos=bos)
        return cls(tuple(whole[:start]), tuple(whole[start + len(text) :]), bos)

    @property
    def bos_index(self) -> int | None:
        """Index of the BOS token that the tokenizer adds in front; None if it adds none."""
        return self.before.index(self.bos) if self.bos is not None and self.bos in self.before else None

    def changed_by(self, prepend_bos: bool | None) -> SpecialTokens:
        """Return the special tokens around a prompt under `prepend_bos`.

        Args:
            prepend_bos: True for one BOS token in front, False for none, None for what the tokenizer adds.

        Raises:
            InputError: `prepend_bos` is True and the tokenizer has no BOS token, or it is not a bool or None.
        """
        if prepend_bos not in (None, True, False):
            raise InputError(f"prepend_bos={prepend_bos!r}: valid are None, True and False.")
        if prepend_bos and self.bos is None:
            raise InputError("prepend_bos=True, but the tokenizer has no BOS token. Leave prepend_bos out.")
        before = self.before
        if prepend_bos and self.bos_index is None:
            before = (int(self.bos or 0), *before)
        elif prepend_bos is False and self.bos_index is not None:
            before = before[: self.bos_index] + before[self.bos_index + 1 :]
        return SpecialTokens(before, self.after, self.bos)


def _samples(tokenizer: Any) -> Iterator[str]:
    """Yield short texts; a small vocabulary may have no token for the first ones."""
    yield from ("a", "0")
    special = set(tokenizer.all_special_tokens)
    yield from islice((token for token in sorted(tokenizer.get_vocab()) if token not in special), 50)


def sample_ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """Return the token ids of a short text, [] if the vocabulary has no token for it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: the text.
        special: whether the tokenizer adds its special tokens.
    """
    try:
        return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]
    except Exception:  # the library `tokenizers` raises this class where a character is not in the vocabulary
        return []


def bos_token_id(tokenizer: Any) -> int | None:
    """Return the id of a tokenizer's own BOS token, or None.

    TransformerLens names the EOS token as BOS token of a tokenizer that has none; this name does not count.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if not isinstance(bos, int):
        return None
    settings = getattr(tokenizer, "init_kwargs", {})
    borrowed = settings.get("bos_token") is None and bos == getattr(tokenizer, "eos_token_id", None)
    return None if borrowed else bos


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the tokens of some ids as the vocabulary writes them."""
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def adds_special_tokens(column: NDArray[Any] | None, source: str) -> bool:
    """Return the value of the column `add_special_tokens`; True without the column.

    Raises:
        InputError: the column has other values than True and False, or both.
    """
    if column is None:
        return True
    if column.dtype != np.bool_ or len(set(column.tolist())) > 1:
        raise InputError(
            f"{source}: column {ADD_SPECIAL_TOKENS!r} says whether the tokenizer adds special tokens, so it is True in "
            "every row or False in every row. Record chats and plain prompts into two stores, or write the special "
            "tokens of the plain prompts into their text"
        )
    return bool(column[0])
