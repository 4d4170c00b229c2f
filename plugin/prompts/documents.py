"""Prompt tables of long documents: windows of tokens with exact offsets back into the document."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import Labels, name_rows, with_labels
from stratalens.plugin.prompts.special_tokens import SpecialTokens, sample_ids
from stratalens.plugin.prompts.tokenization import check_tokenizer, encode
from stratalens.store.errors import InputError, TokenWarning, quote

Index = NDArray[np.int64]

_CHARACTERS = 1 << 20  # characters of documents that are cut together
_NO_LIMIT = 10**6  # a tokenizer without a context length has a much larger number there


@dataclass(frozen=True)
class _Window:
    """One window of a document: tokens [first, stop), characters [start, end)."""

    first: int
    stop: int
    start: int
    end: int


def document_frame(
    texts: Iterable[str],
    tokenizer: Any,
    *,
    window: int | None = None,
    stride: int | None = None,
    labels: Labels | None = None,
) -> pd.DataFrame:
    """Return the columns of a prompt table of documents; arguments are those of `PromptTable.from_documents`.

    The documents are read once, about a million characters at a time. Only the windows stay in memory.

    Returns:
        prompt, entity_id (the document), document, window, document_offset, document_token, new_start and new_end, then
        the labels. One row for each window.

    Raises:
        InputError: a document is empty or longer than the context, or window and stride do not fit.
    """
    check_tokenizer(tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "from_documents needs the characters that each token covers, and this tokenizer (a pure Python one) does "
            "not report them; load its fast version (AutoTokenizer.from_pretrained(..., use_fast=True))"
        )
    cutter = _Cutter(tokenizer, window, stride)
    prompts: list[str] = []
    columns: dict[str, list[int]] = {"document": [], "window": [], "document_offset": [], "document_token": []}
    new: list[tuple[int, int]] = []
    number = 0
    for batch in _batches(_listed(texts)):
        for text, windows in zip(batch, cutter.cut(batch, number), strict=True):
            seen = 0
            for place, piece in enumerate(windows):
                prompts.append(text[piece.start : piece.end])
                row = (number, place, piece.start, piece.first)
                for values, value in zip(columns.values(), row, strict=True):
                    values.append(value)
                new.append((max(seen, piece.start) - piece.start, piece.end - piece.start))
                seen = piece.end
            number += 1
    if not prompts:
        raise InputError("from_documents: there are no documents; pass a list or an iterator of texts")
    cutter.warn_about_other_tokens(len(prompts))
    frame: dict[str, Any] = {"prompt": pd.Series(prompts, dtype=object)}
    frame |= {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    frame["new_start"], frame["new_end"] = np.array(new, dtype=np.int64).T
    document = frame["document"]
    frame = with_labels(frame, labels, number, "from_documents", "documents", repeat=document)
    if "entity_id" not in frame:
        names = np.array([f"document{i}" for i in range(number)], dtype=object)
        frame["entity_id"] = pd.Series(names[document], dtype=object)
    return pd.DataFrame(frame)


def _listed(texts: Any) -> Iterable[Any]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(
            f"from_documents takes a list or an iterator of texts, not {type(texts).__name__}; pass [text]"
        )
    return texts


def _batches(texts: Iterable[Any]) -> Iterator[list[str]]:
    """Yield documents in batches of about a million characters.

    Raises:
        InputError: a document is no text, or empty.
    """
    batch: list[str] = []
    characters = 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"from_documents: document {number} is {type(text).__name__}, not a text: {quote(text, 60)}"
            )
        if not text.strip():
            raise InputError(f"from_documents: document {number} is empty; drop it")
        batch.append(text)
        characters += len(text)
        if characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Cutter:
    """Windows of documents under one tokenizer.

    Attributes:
        capacity: tokens of a window without the special tokens that the tokenizer adds; None does not cut.
        stride: tokens from the start of a window to that of the next; None starts where the last one ended.
        other: number of windows whose tokens differ from those of their document.
    """

    def __init__(self, tokenizer: Any, window: int | None, stride: int | None) -> None:
        self.tokenizer = tokenizer
        special = SpecialTokens.from_tokenizer(tokenizer)
        self.added = len(special.before) + len(special.after)
        self.before = len(special.before)
        self.capacity = None if window is None else _whole("window", window) - self.added
        self.stride = None if stride is None else _whole("stride", stride)
        self.other = 0
        self.context = getattr(tokenizer, "model_max_length", None)
        if self.capacity is None:
            if stride is not None:
                raise InputError(f"from_documents: stride={stride} without window=; pass the tokens of a window too")
        elif self.capacity < 1:
            raise InputError(
                f"from_documents: window={window} has no room for a token of the document, because the tokenizer adds "
                f"{self.added} special tokens; pass a window of more than {self.added}"
            )
        elif self.stride is not None and self.stride > self.capacity:
            raise InputError(
                f"from_documents: stride={stride} is longer than the {self.capacity} tokens of the document that a "
                f"window of {window} has, so tokens between the windows would be lost; pass a stride up to "
                f"{self.capacity}"
            )
        self.skips_space = _skips_space(tokenizer)

    def cut(self, texts: Sequence[str], number: int) -> list[list[_Window]]:
        """Cut documents into windows.

        Args:
            texts: documents.
            number: number of the first one, for messages.

        Raises:
            InputError: a document has no token, or is longer than the context and there is no window.
        """
        ids, offsets = encode(texts, self.tokenizer, special=False, offsets=True)
        documents = [_Document(*parts) for parts in zip(texts, ids, offsets or (), strict=True)]
        empty = [number + i for i, document in enumerate(documents) if not len(document.ids)]
        if empty:
            raise InputError(
                f"from_documents: the tokenizer makes no token of {name_rows(empty)}; drop these documents"
            )
        if self.capacity is None:
            return [[self._whole_document(document, number + i)] for i, document in enumerate(documents)]
        shorter: list[dict[int, int]] = [{} for _ in documents]
        windows = [self._windows(document, self.capacity, {}) for document in documents]
        pending = list(range(len(documents)))
        counts: dict[int, int] = {}
        while pending:  # mostly once: a window between words has the tokens of its document
            pieces = [(i, window) for i in pending for window in windows[i]]
            prompts = [documents[i].text[window.start : window.end] for i, window in pieces]
            tokens, _ = encode(prompts, self.tokenizer, special=True, offsets=False)
            counts |= dict.fromkeys(pending, 0)
            again = set()
            for (i, window), row in zip(pieces, tokens, strict=True):
                counts[i] += not np.array_equal(self._own(row), documents[i].ids[window.first : window.stop])
                surplus = len(row) - self.added - self.capacity
                if surplus > 0 and window.stop - window.first > 1:
                    shorter[i][window.first] = max(window.first + 1, window.stop - surplus)
                    again.add(i)
            for i in again:
                windows[i] = self._windows(documents[i], self.capacity, shorter[i])
            pending = sorted(again)
        self.other += sum(counts.values())
        return windows

    def _own(self, row: Index) -> Index:
        """Return the ids of a window without the special tokens."""
        return row[self.before : len(row) - (self.added - self.before)]

    def _whole_document(self, document: _Document, number: int) -> _Window:
        tokens = len(document.ids) + self.added
        if isinstance(self.context, int) and self.context < _NO_LIMIT and tokens > self.context:
            raise InputError(
                f"from_documents: document {number} has {tokens} tokens, more than the context of {self.context} that "
                f"the tokenizer names; pass window={self.context}, or shorten the document"
            )
        return _Window(0, len(document.ids), 0, len(document.text))

    def _windows(self, document: _Document, capacity: int, shorter: dict[int, int]) -> list[_Window]:
        """Cut one document; `shorter` has the end of windows, by first token, that had too many tokens."""
        windows: list[_Window] = []
        count, first, number = len(document.ids), 0, 0
        while True:
            limit = shorter.get(first, first + capacity)
            stop = count if limit >= count else document.boundary(limit, max(first + 1, limit - capacity // 8))
            start, end = document.characters(first, stop)
            if self.skips_space and first and document.text.startswith(" ", start):
                start += 1
            is_new = not windows or end > windows[-1].end
            if is_new and document.text[start:end].strip():
                windows.append(_Window(first, stop, start, end))
            if stop == count:
                return windows
            number += 1
            if self.stride is None:
                first = stop
            else:
                wanted = number * self.stride
                first = max(first + 1, min(stop, document.boundary(wanted, wanted - self.stride // 8)))

    def warn_about_other_tokens(self, rows: int) -> None:
        """Warn that windows have other tokens than their documents."""
        if self.other:
            warnings.warn(
                f"from_documents: {self.other} of {rows} windows have other tokens than their document at an edge, "
                "because the tokenizer splits the text of the window in another way. Offsets in characters are exact; "
                "document_token counts the tokens of the document.",
                TokenWarning,
                stacklevel=4,
            )


class _Document:
    """A document with its tokens, and the places between tokens where it may be cut."""

    def __init__(self, text: str, ids: Index, offsets: Index) -> None:
        self.text = text
        self.ids = ids
        self.offsets = offsets

    def characters(self, first: int, stop: int) -> tuple[int, int]:
        """Return the characters from token `first` to token `stop`; the whole text at its ends."""
        start = 0 if first == 0 else self._start_of(first)
        return start, len(self.text) if stop == len(self.ids) else self._start_of(stop)

    def _start_of(self, token: int) -> int:
        """Return the character at which the text is cut in front of a token: behind the token before it."""
        return int(self.offsets[token - 1, 1])

    def boundary(self, token: int, least: int) -> int:
        """Return the last token up to `token`, and from `least` on, in front of which a new word starts.

        Without one it is the last that does not share a character with the token before it.
        """
        token = min(token, len(self.ids))
        for place in range(token, least - 1, -1):
            cut = self._start_of(place) if place else 0
            if 0 < cut < len(self.text) and self.text[cut].isspace() and not self.text[cut - 1].isspace():
                return place
        for place in range(token, least - 1, -1):
            if place == len(self.ids) or not place or self.offsets[place, 0] >= self._start_of(place):
                return place
        return token


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"from_documents: {name}={value!r}: pass a whole number of tokens from 1")
    return int(value)


def _skips_space(tokenizer: Any) -> bool:
    """Return whether a window starts behind the space in front of its first word.

    Some tokenizers put a space in front of every text. With the space of the document, a window would start with two.
    """
    whole = sample_ids(tokenizer, "a a a", special=False)
    with_space, without = (sample_ids(tokenizer, text, special=False) for text in (" a a", "a a"))
    return whole[len(whole) - len(with_space) :] != with_space and whole[len(whole) - len(without) :] == without
