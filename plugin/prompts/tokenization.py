"""Tokenised prompts: token ids, character offsets, digest, and the tokenizer's fingerprint.

What lives here: everything that is known once a tokenizer has seen a prompt
table. What does not: reading and checking the table (`prompts.py`), and which
tokens are recorded (`positions.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import name_rows
from stratalens.store.errors import InputError

_BATCH = 4096  # prompts handed to the tokenizer at once: bounds its own memory, costs no speed


Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenizedPrompts:
    """A prompt table as one tokenizer sees it; rows are those of the table.

    Attributes:
        ids: token ids of each prompt, int64 arrays of shape (length,), with
            the special tokens that the tokenizer adds by itself.
        offsets: character span [start, end) of each token in its prompt, int64
            arrays of shape (length, 2), (0, 0) for special tokens; None if the
            tokenizer knows no offsets (a pure Python one).
        answer_ids: token ids of each answer, without special tokens, an empty
            array where a row has none; None if the table has no `answer`.
        tokenizer_fingerprint: sha256 of what decides the ids (`fingerprint`).
        pad_id: token id used behind the end; attention never reaches it.
    """

    ids: Sequence[Ids]
    offsets: Sequence[Ids] | None
    answer_ids: Sequence[Ids] | None
    tokenizer_fingerprint: str
    pad_id: int
    lengths: Ids = field(init=False)
    answer_lengths: Ids = field(init=False)

    def __post_init__(self) -> None:
        lengths = np.array([len(row) for row in self.ids], dtype=np.int64)
        answers = [len(row) for row in self.answer_ids] if self.answer_ids is not None else [0] * len(lengths)
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "answer_lengths", np.array(answers, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def total_lengths(self) -> Ids:
        """Tokens of each prompt with its answer behind it, shape (rows,)."""
        return self.lengths + self.answer_lengths

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) over every row's token ids and answer ids, in order.

        Each sequence is hashed as its length and its ids, little-endian int64,
        so that no two different tables share their bytes.
        """
        sha = hashlib.sha256(b"stratalens token ids 1")
        empty = np.empty(0, dtype=np.int64)
        for row, ids in enumerate(self.ids):
            answer = self.answer_ids[row] if self.answer_ids is not None else empty
            for part in (ids, answer):
                sha.update(len(part).to_bytes(8, "little"))
                sha.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return sha.hexdigest()

    def batch(self, rows: Sequence[int] | Ids, pad_to: int, *, answers: bool = False) -> tuple[Ids, Ids]:
        """Right-padded token ids and attention mask of some rows.

        Args:
            rows: n rows of the table.
            pad_to: length of every row of the result, in tokens.
            answers: put each row's answer behind its prompt.

        Returns:
            ids and mask, both int64 of shape (n, pad_to); the mask is 1 on
            tokens and 0 on padding.

        Raises:
            InputError: a row is longer than `pad_to`.
        """
        rows = np.asarray(rows, dtype=np.int64)
        lengths = (self.total_lengths if answers else self.lengths)[rows]
        if len(rows) and int(lengths.max()) > pad_to:
            too_long = rows[lengths > pad_to]
            raise InputError(f"{name_rows(too_long)}: up to {int(lengths.max())} tokens do not fit in pad_to={pad_to}")
        ids = np.full((len(rows), pad_to), self.pad_id, dtype=np.int64)
        for line, row in enumerate(rows.tolist()):
            length = int(self.lengths[row])
            ids[line, :length] = self.ids[row]
            if answers and self.answer_ids is not None:
                ids[line, length : int(lengths[line])] = self.answer_ids[row]
        mask = (np.arange(pad_to) < lengths[:, None]).astype(np.int64)
        return ids, mask


def tokenize(
    prompts: Sequence[str],
    answers: Sequence[str] | None,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    source: str = "prompts",
) -> TokenizedPrompts:
    """Run the tokenizer once over all prompts and answers.

    Args:
        prompts: one text per row; special tokens are added as the tokenizer
            does by default.
        answers: one text per row, '' for none; no special tokens are added.
            The text is taken as it stands: where the model should read a space
            after the prompt, the answer starts with one.
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's context length in tokens, for prompt and answer
            together; None checks nothing.
        source: where the prompts come from, for messages.

    Raises:
        InputError: no usable tokenizer, a prompt without tokens, or one that is
            longer than `max_length`.
    """
    _check(tokenizer)
    fast = bool(getattr(tokenizer, "is_fast", False))
    ids, offsets = _encode(prompts, tokenizer, special=True, offsets=fast)
    answer_ids = None
    if answers is not None:
        answer_ids, _ = _encode(answers, tokenizer, special=False, offsets=False)
    tokenized = TokenizedPrompts(ids, offsets, answer_ids, fingerprint(tokenizer), _pad_id(tokenizer))
    empty = np.flatnonzero(tokenized.lengths == 0)
    if len(empty):
        raise InputError(
            f"{source}: {name_rows(empty)}: the tokenizer makes no token of the prompt {prompts[int(empty[0])]!r}; "
            "fill or drop the prompt"
        )
    if max_length is not None:
        _check_lengths(tokenized, max_length, source)
    return tokenized


def _check(tokenizer: Any) -> None:
    if tokenizer is None:
        raise InputError("the model has no tokenizer; pass one: tokenizer=AutoTokenizer.from_pretrained(...)")
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise InputError(
            f"{type(tokenizer).__name__} is not a Hugging Face tokenizer; wrap a tokenizers.Tokenizer as "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=...)"
        )


def _encode(
    texts: Sequence[str], tokenizer: Any, *, special: bool, offsets: bool
) -> tuple[RaggedArray, RaggedArray | None]:
    ids: list[Ids] = []
    spans: list[Ids] = []
    lengths: list[int] = []
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer(
            list(texts[start : start + _BATCH]),
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long texts: what is too long is an error of ours
        )
        lengths += [len(row) for row in encoded["input_ids"]]
        ids.append(np.array([token for row in encoded["input_ids"] for token in row], dtype=np.int64))
        if offsets:
            flat = [span for row in encoded["offset_mapping"] for span in row]
            spans.append(np.array(flat, dtype=np.int64).reshape(-1, 2))
    return RaggedArray(ids, lengths), RaggedArray(spans, lengths) if offsets else None


def _pad_id(tokenizer: Any) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0


def _check_lengths(tokenized: TokenizedPrompts, max_length: int, source: str) -> None:
    rows = np.flatnonzero(tokenized.total_lengths > max_length)
    if not len(rows):
        return
    shown = ", ".join(f"row {row}: {tokenized.total_lengths[row]}" for row in rows[:8].tolist())
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    with_answers = " with their answers" if tokenized.answer_ids is not None else ""
    raise InputError(
        f"{source}: {name_rows(rows)}: longer{with_answers} than the model's context of {max_length} tokens "
        f"({shown}{more}); shorten or drop them, nothing is truncated silently"
    )


def fingerprint(tokenizer: Any) -> str:
    """Sha256 (hex) of everything that decides which ids a text gets.

    For a fast tokenizer: its serialised form without the padding and truncation
    that the last call happened to leave there. The special tokens around a text
    are not taken from the serialised form, which loaders rewrite to the same
    effect, but from what they do to a text. The padding token is left out,
    since loaders set it when it is missing and it changes no id of a prompt.
    With and without a BOS token in front are different fingerprints, as they
    should be. Stable across processes and across the loaders of TransformerLens.
    """
    _check(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any]
    rest = ""
    if backend is not None:
        state, rest = _settings(backend.to_str())
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    for special in (True, False):
        ids = tokenizer("a", add_special_tokens=special)["input_ids"]
        state[f"a, special tokens {special}"] = [int(token) for token in ids]
    text = json.dumps(state, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(f"{text}\n{rest}".encode()).hexdigest()


_LEFT_OUT = ("padding", "truncation", "post_processor")


def _settings(serialised: str) -> tuple[dict[str, Any], str]:
    """What a serialised fast tokenizer says but for what a fingerprint leaves out, and the text of its vocabulary.

    The vocabulary stands at the end and is taken as it stands: to parse a hundred thousand strings and
    write them again takes ten times as long as all the rest.
    """
    head, key, rest = serialised.partition('"model":')
    try:
        state = json.loads(head + key + "null}")
    except ValueError:
        state = {}
    if not all(name in state for name in _LEFT_OUT):  # they stand somewhere else
        state, rest = json.loads(serialised), ""
    return {name: value for name, value in state.items() if name not in _LEFT_OUT}, rest


class RaggedArray(Sequence[Ids]):
    """Rows one behind the other; each is a view.

    >>> rows = RaggedArray([np.array([5, 6, 7]), np.array([8])], [2, 1, 1])
    >>> len(rows), rows[1].tolist(), [len(row) for row in rows]
    (3, [7], [2, 1, 1])
    """

    def __init__(self, parts: Sequence[Ids], lengths: Sequence[int]) -> None:
        """Args:
        parts: the items of all rows, shape (items, ...), in as many arrays as they came in.
        lengths: items of each row.
        """
        self._values: Ids = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        self._starts: Ids = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> Ids: ...
    @overload
    def __getitem__(self, row: slice) -> list[Ids]: ...
    def __getitem__(self, row: int | slice) -> Ids | list[Ids]:
        if isinstance(row, slice):
            return [self[place] for place in range(len(self))[row]]
        place = range(len(self))[row]
        return self._values[self._starts[place] : self._starts[place + 1]]
