"""Token ids, character offsets and digest of prompts, and fingerprint of a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.plugin.prompts.columns import name_rows
from stratalens.plugin.prompts.ragged_array import RaggedArray
from stratalens.plugin.prompts.special_tokens import SpecialTokens, sample_ids, token_texts
from stratalens.store.errors import InputError

_BATCH = 4096  # prompts in one call of the tokenizer, and their characters: the limits bound its memory (about 100 MB)
_BATCH_CHARACTERS = 1 << 20


Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenizedPrompts:
    """The token ids of a prompt table under one tokenizer; rows are those of the table.

    Attributes:
        ids: for each prompt an int64 array of shape (length,): `tokenizer(prompt).input_ids`,
            unless `prepend_bos` says otherwise.
        offsets: for each prompt an int64 array of shape (length, 2), the characters
            [start, end) of each token, (0, 0) for special tokens that the tokenizer adds. None if the
            tokenizer has no offsets (a pure Python one), or if they were left out.
        answer_ids: for each answer an int64 array of shape (length,), without special
            tokens, empty for a row without an answer. None if the table has no `answer`.
        tokenizer_fingerprint: sha256 of everything that decides the ids (`fingerprint`).
        pad_id: token id of the padding after the end; attention never reaches it.
        special: the special tokens around every prompt.
        prepend_bos: whether a BOS token in front was asked for; None takes what the tokenizer adds.
        add_special_tokens: whether the tokenizer adds its special tokens; False where a chat template has written them.
        lengths: int64 array of shape (rows,), tokens of each prompt.
        answer_lengths: int64 array of shape (rows,), tokens of each answer.
    """

    ids: Sequence[Ids]
    offsets: Sequence[Ids] | None
    answer_ids: Sequence[Ids] | None
    tokenizer_fingerprint: str
    pad_id: int
    special: SpecialTokens = field(default_factory=SpecialTokens)
    prepend_bos: bool | None = None
    add_special_tokens: bool = True
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
        """Tokens of each prompt and its answer, int64 array of shape (rows,)."""
        return self.lengths + self.answer_lengths

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) over the token ids and answer ids of every row, in order.

        Each sequence is hashed as its length and its ids in little-endian int64.
        So two different tables never hash the same bytes.
        """
        sha = hashlib.sha256(b"stratalens token ids 1")
        empty = np.empty(0, dtype=np.int64)
        for row, ids in enumerate(self.ids):
            answer = self.answer_ids[row] if self.answer_ids is not None else empty
            for sequence in (ids, answer):
                sha.update(len(sequence).to_bytes(8, "little"))
                sha.update(np.ascontiguousarray(sequence, dtype="<i8").tobytes())
        return sha.hexdigest()

    @cached_property
    def repeated_special(self) -> Ids:
        """Rows whose text repeats the special tokens that are added around it, int64 array of shape (n,)."""
        rows = self.ids if isinstance(self.ids, RaggedArray) else RaggedArray(list(self.ids), self.lengths.tolist())
        before, after, none = self.special.before, self.special.after, np.empty(0, dtype=np.int64)
        first = rows.rows_with(before, len(before)) if before else none
        last = rows.rows_with(after, -2 * len(after)) if after else none
        return np.union1d(first, last)

    @property
    def rule(self) -> str:
        """The rule of the ids in words."""
        call = "tokenizer(prompt)" if self.add_special_tokens else "tokenizer(prompt, add_special_tokens=False)"
        bos = {None: "", True: ", with one BOS token in front", False: ", without a BOS token in front"}
        return f"{call}{bos[self.prepend_bos]}"

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """Describe the rule of the tokens and the first row, as JSON.

        Args:
            tokenizer: the tokenizer of these ids.

        Returns:
            rule (text), prepend_bos, first_row (at most 64 token ids), first_row_tokens (their texts) and
            first_row_length; add_special_tokens where it is False.
        """
        first = self.ids[0][:64].tolist()
        return {
            "rule": self.rule,
            "prepend_bos": self.prepend_bos,
            **({} if self.add_special_tokens else {"add_special_tokens": False}),
            "first_row": first,
            "first_row_tokens": token_texts(tokenizer, first),
            "first_row_length": int(self.lengths[0]),
        }

    def batch(self, rows: Sequence[int] | Ids, pad_to: int, *, answers: bool = False) -> tuple[Ids, Ids]:
        """Return right-padded token ids and the attention mask of some rows.

        Args:
            rows: n rows of the table.
            pad_to: length of every row of the result, in tokens.
            answers: append each row's answer to its prompt.

        Returns:
            ids: int64 array of shape (n, pad_to).
            mask: int64 array of shape (n, pad_to), 1 on tokens and 0 on padding.

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
    prepend_bos: bool | None = None,
    add_special_tokens: bool = True,
    offsets: bool = True,
) -> TokenizedPrompts:
    """Tokenise all prompts and answers.

    Args:
        prompts: one text per row.
        answers: one text per row, '' for none, tokenised without special tokens and
            without changes. An answer that the model should read after a space
            starts with this space.
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's context length in tokens, for prompt and answer
            together; None checks nothing.
        source: name of the prompts, for messages.
        prepend_bos: True for one BOS token in front of every prompt, False for none, None for what the tokenizer adds.
        add_special_tokens: whether the tokenizer adds its default special tokens. False for prompts that have all of
            their special tokens as text, as a chat template writes them.
        offsets: whether the characters of each token are needed; they take twice the memory of the ids.

    Raises:
        InputError: an object that is not a tokenizer, a prompt without tokens, or one
            longer than `max_length`.
    """
    check_tokenizer(tokenizer)
    is_fast = bool(getattr(tokenizer, "is_fast", False))
    ids, spans = encode(prompts, tokenizer, special=add_special_tokens, offsets=is_fast and offsets)
    own = SpecialTokens.from_tokenizer(tokenizer)
    if not add_special_tokens:
        own = SpecialTokens(_bos_in_text(ids, own.bos, source, prepend_bos), (), own.bos)
    special = own.changed_by(prepend_bos)
    if len(special.before) > len(own.before):
        ids, spans = ids.with_first(special.bos), None if spans is None else spans.with_first(0)
    elif len(special.before) < len(own.before) and own.bos_index is not None:
        ids, spans = ids.without(own.bos_index), None if spans is None else spans.without(own.bos_index)
    if not add_special_tokens and prepend_bos is not True:
        special = SpecialTokens((), (), own.bos)  # a BOS token of the text is not added
    answer_ids = None
    if answers is not None:
        answer_ids, _ = encode(answers, tokenizer, special=False, offsets=False)
    tokenized = TokenizedPrompts(
        ids, spans, answer_ids, fingerprint(tokenizer), _pad_id(tokenizer), special, prepend_bos, add_special_tokens
    )
    empty = np.flatnonzero(tokenized.lengths == 0)
    if len(empty):
        raise InputError(
            f"{source}: {name_rows(empty)}: the tokenizer makes no token of the prompt {prompts[int(empty[0])]!r}; "
            "fill or drop the prompt"
        )
    if max_length is not None:
        _check_lengths(tokenized, max_length, source)
    return tokenized


def _bos_in_text(ids: RaggedArray, bos: int | None, source: str, prepend_bos: bool | None) -> tuple[int, ...]:
    """Return the BOS token in front of prompts that have their special tokens as text; () if they have none.

    Raises:
        InputError: `prepend_bos` is to change the prompts, and some start with BOS and others do not.
    """
    if bos is None or prepend_bos is None:
        return ()
    starting = ids.rows_with([bos], 0)
    if 0 < len(starting) < len(ids):
        raise InputError(
            f"{source}: {name_rows(starting)} of {len(ids)} start with a BOS token and the others do not, so "
            f"prepend_bos={prepend_bos} has no one meaning. Leave prepend_bos out, or use one chat template for all "
            "rows."
        )
    return (bos,) if len(starting) else ()


def check_tokenizer(tokenizer: Any) -> None:
    """Raise InputError unless an object is a Hugging Face tokenizer."""
    if tokenizer is None:
        raise InputError("the model has no tokenizer; pass one: tokenizer=AutoTokenizer.from_pretrained(...)")
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise InputError(
            f"{type(tokenizer).__name__} is not a Hugging Face tokenizer; wrap a tokenizers.Tokenizer as "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=...)"
        )


def encode(
    texts: Sequence[str], tokenizer: Any, *, special: bool, offsets: bool
) -> tuple[RaggedArray, RaggedArray | None]:
    """Tokenise texts in batches of bounded size.

    Args:
        texts: one text per row.
        tokenizer: a Hugging Face tokenizer.
        special: whether the tokenizer adds its special tokens.
        offsets: whether to return the characters of each token; needs a fast tokenizer.

    Returns:
        ids: for each text an array of shape (tokens,).
        offsets: for each text an array of shape (tokens, 2), the characters [start, end) of each token; None without
            `offsets`. Both are stored as int32.
    """
    ids: list[NDArray[np.int32]] = []
    spans: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for start, stop in _batches(texts):
        encoded = tokenizer(
            list(texts[start:stop]),
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long texts: they raise an InputError later
        )
        counts = [len(row) for row in encoded["input_ids"]]
        lengths += counts
        ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), dtype=np.int32, count=sum(counts)))
        if offsets:
            flat = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
            spans.append(np.fromiter(flat, dtype=np.int32, count=2 * sum(counts)).reshape(-1, 2))
    return RaggedArray(ids, lengths), RaggedArray(spans, lengths) if offsets else None


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield slices [start, stop) of texts with few characters together; a longer text is a batch of its own."""
    start = characters = 0
    for stop, text in enumerate(texts):
        if stop > start and (characters + len(text) > _BATCH_CHARACTERS or stop - start == _BATCH):
            yield start, stop
            start, characters = stop, 0
        characters += len(text)
    if start < len(texts):
        yield start, len(texts)


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
        f"({shown}{more}); shorten or drop them, nothing is truncated silently. PromptTable.from_documents(texts, "
        f"tokenizer, window={max_length}) cuts long texts into windows"
    )


def fingerprint(tokenizer: Any) -> str:
    """Return the sha256 (hex) of everything that decides which ids a text gets.

    For a fast tokenizer this is its serialised form, without the padding and truncation
    that the last call has left there. Special tokens around a text count by their effect
    on a text, because loaders rewrite the serialised form to the same effect. So a
    tokenizer with a BOS token and the same tokenizer without it differ. The padding token
    does not count: loaders set it where it is missing, and it changes no id of a prompt.
    The fingerprint is stable across processes and across the loaders of TransformerLens.
    """
    check_tokenizer(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any]
    rest = ""
    if backend is not None:
        state, rest = _split_settings(backend.to_str())
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    for special in (True, False):
        state[f"a, special tokens {special}"] = sample_ids(tokenizer, "a", special=special)
    text = json.dumps(state, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(f"{text}\n{rest}".encode()).hexdigest()


_LEFT_OUT = ("padding", "truncation", "post_processor")


def _split_settings(serialised: str) -> tuple[dict[str, Any], str]:
    """Split a serialised tokenizer into settings that count and vocabulary text.

    The vocabulary is at the end and stays text: parsing and writing a hundred thousand
    strings takes ten times as long as everything else.
    """
    head, key, rest = serialised.partition('"model":')
    try:
        state = json.loads(head + key + "null}")
    except ValueError:
        state = {}
    if not all(name in state for name in _LEFT_OUT):  # they come after the vocabulary
        state, rest = json.loads(serialised), ""
    return {name: value for name, value in state.items() if name not in _LEFT_OUT}, rest


def fit_vocabulary(tokenized: TokenizedPrompts, vocabulary: int | None) -> TokenizedPrompts:
    """Check that a model can embed every token id; a GPU would end the process at a higher one.

    Args:
        tokenized: the prompts.
        vocabulary: number of token ids of the model, None if unknown.

    Returns:
        The prompts, padded with id 0 where the model has no row for the padding token of the tokenizer.

    Raises:
        InputError: a prompt or an answer has an id that the model does not have.
    """
    if vocabulary is None:
        return tokenized
    for rows, subject in ((tokenized.ids, ""), (tokenized.answer_ids, "the answer of ")):
        if rows is not None:
            check_token_ids(rows, vocabulary, subject)
    return tokenized if tokenized.pad_id < vocabulary else replace(tokenized, pad_id=0)


def check_token_ids(rows: Sequence[Ids], vocabulary: int, subject: str = "") -> None:
    """Check that every id is below the number of token ids of a model.

    Raises:
        InputError: an id is higher. `subject` goes in front of the number of its row.
    """
    if isinstance(rows, RaggedArray):
        place = rows.first_row_above(vocabulary - 1)
    else:
        above = ((row, int(ids.max())) for row, ids in enumerate(rows) if ids.max(initial=0) >= vocabulary)
        place = next(above, None)
    if place is not None:
        row, token = place
        raise InputError(
            f"{subject}row {row}: token id {token}, but the model has {vocabulary} (ids 0 to {vocabulary - 1}). "
            "Pass the tokenizer of this model as tokenizer=, or enlarge the model with resize_token_embeddings."
        )
