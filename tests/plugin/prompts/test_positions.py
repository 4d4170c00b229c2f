"""Named positions, compared with token boundaries that are computed without offsets."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stratalens.plugin.prompts.positions import resolve, tokens_of_spans
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError
from support.tokenizers import all_fast, byte_level, byte_level_with_bos, pure_python


def tokenized_table(tokenizer=None, **columns):
    table = PromptTable.from_dataframe(pd.DataFrame(columns))
    return table, table.tokenize(tokenizer or byte_level())


def test_last_and_from_the_end():
    table, tokenized = tokenized_table(prompt=["Who is Ann Smith?", "Who is Bo? Bo is"])
    resolved = resolve(("last", "-1", "-3"), table, tokenized)
    assert resolved.labels == ("last", "-1", "-3")
    assert resolved.index.dtype == np.int64
    np.testing.assert_array_equal(
        resolved.index.T, [tokenized.lengths - 1, tokenized.lengths - 1, tokenized.lengths - 3]
    )
    assert not resolved.is_all


def test_numbers_and_single_names_are_accepted():
    table, tokenized = tokenized_table(prompt=["Who is Ann Smith?"])
    assert resolve((-1, -2), table, tokenized).labels == ("-1", "-2")
    assert resolve("last", table, tokenized).labels == ("last",)


def test_all_is_right_aligned():
    table, tokenized = tokenized_table(prompt=["Who is Ann Smith?", "Bo", "Ann is"])
    resolved = resolve("all", table, tokenized)
    longest = int(tokenized.lengths.max())
    assert resolved.is_all
    assert resolved.labels == tuple(range(-longest, 0))
    for row, length in enumerate(tokenized.lengths.tolist()):
        assert resolved.index[row].tolist() == [-1] * (longest - length) + list(range(length))
    assert resolve(("all",), table, tokenized).labels == resolved.labels


def test_a_short_prompt():
    table, tokenized = tokenized_table(prompt=["Who is Ann Smith, the painter?", "Bo"])
    k = int(tokenized.lengths[1]) + 1
    with pytest.raises(InputError) as caught:
        resolve(("last", f"-{k}"), table, tokenized)
    for fragment in ("row 1", f"'-{k}'", "too short", f"has {k - 1} tokens", "missing='nan'"):
        assert fragment in str(caught.value)
    resolved = resolve(("last", f"-{k}"), table, tokenized, missing="nan")
    assert resolved.index[1].tolist() == [tokenized.lengths[1] - 1, -1]
    assert resolved.index[0, 1] == tokenized.lengths[0] - k


UNKNOWN = {
    "lst": ["did you mean 'last'"],
    "0": ["count from the end", "<name>_start"],
    "5": ["count from the end"],
    "-0": ["unknown position '-0'"],
    "entity_first": ["needs a column 'entity'", "entity_start"],
    "entity_last": ["needs a column 'entity'"],
    "obj_first": ["obj_start", "obj_end"],
    "": ["unknown position ''"],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_positions(name):
    table, tokenized = tokenized_table(prompt=["Who is Ann?"])
    with pytest.raises(InputError) as caught:
        resolve((name,), table, tokenized)
    for fragment in UNKNOWN[name]:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("positions", "fragment"),
    [((), "empty"), (("last", "last"), "more than once"), (("last", "all"), "must be the only position")],
)
def test_wrong_lists(positions, fragment):
    table, tokenized = tokenized_table(prompt=["Who is Ann?"])
    with pytest.raises(InputError, match=fragment):
        resolve(positions, table, tokenized)


def test_missing_is_raise_or_nan():
    table, tokenized = tokenized_table(prompt=["Who is Ann?"])
    with pytest.raises(InputError, match="missing='drop'"):
        resolve(("last",), table, tokenized, missing="drop")


def test_rows_without_an_entity():
    table, tokenized = tokenized_table(
        prompt=["Who is Ann?", "no one", "Bo"], entity=["Ann", None, "Bo"], entity_id=[1, 2, 3]
    )
    with pytest.raises(InputError, match=r"row 1: no entity for position 'entity_last'"):
        resolve(("entity_last",), table, tokenized)
    assert resolve(("entity_last",), table, tokenized, missing="nan").index[1].tolist() == [-1]


def test_span_columns():
    prompt = "Ann saw Bob"
    table, tokenized = tokenized_table(prompt=[prompt, prompt], obj_start=[8, 0], obj_end=[11, 3])
    index = resolve(("obj_first", "obj_last"), table, tokenized).index
    for row, word in enumerate(("Bob", "Ann")):
        first, last = index[row]
        assert byte_level().decode(tokenized.ids[row][first : last + 1]).strip() == word


def test_a_tokenizer_without_offsets():
    table, tokenized = tokenized_table(pure_python(), prompt=["Who is Ann?"], entity=["Ann"])
    assert resolve(("last", "-2"), table, tokenized).index.tolist() == [[10, 9]]
    with pytest.raises(InputError, match=r"pure Python one.*last, -1"):
        resolve(("entity_first",), table, tokenized)


def test_text_that_the_tokenizer_drops():
    table, tokenized = tokenized_table(all_fast()["wordpiece"], prompt=["Ann \x01 Bo"], it_start=[4], it_end=[5])
    with pytest.raises(InputError, match=r"row 0: no token covers the it '\\x01'"):
        resolve(("it_first",), table, tokenized)
    assert resolve(("it_first",), table, tokenized, missing="nan").index.tolist() == [[-1]]


# Fragments that tokenizers often merge or split: spaces, letters, several bytes, combining marks, special tokens
FRAGMENTS = ["a", "Ann", " ", "  ", "\n", "é", "日本", "🙂", "e\u0301", "<|", "|>", "<|bos|>", "Who is", "'s", "."]
texts = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=5).map("".join)
with_spans = st.tuples(texts, texts.filter(lambda text: text.strip() == text), texts)


def byte_spans(tokenizer, ids):
    """Return the bytes that each token covers, computed from the spelling of the tokens without offsets."""
    back = {character: byte for byte, character in bytes_to_unicode().items()}
    spans, place = [], 0
    for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        added_in_front = token == "<|bos|>" and position == 0 and tokenizer.bos_token is not None
        special = token in ("<|bos|>", "<|end|>")
        size = 0 if added_in_front else len(token) if special else len(bytes(back[c] for c in token))
        spans.append((place, place + size))
        place += size
    return spans


@cache
def cached_tokenizer(make):
    return make()


@pytest.mark.parametrize("make", [byte_level, byte_level_with_bos])
@given(with_spans)
def test_span_tokens_against_bytes(make, texts):
    before, span, after = texts
    tokenizer = cached_tokenizer(make)
    text = before + span + after
    encoded = tokenizer(text, return_offsets_mapping=True)
    start, end = len(before), len(before) + len(span)
    first, last = tokens_of_spans([np.array(encoded["offset_mapping"])], np.array([[start, end]]))[0]
    low, high = len(before.encode()), len((before + span).encode())
    touching = [
        token
        for token, (a, b) in enumerate(byte_spans(tokenizer, encoded["input_ids"]))
        if a < high and b > low and a < b
    ]
    assert (first, last) == (touching[0], touching[-1])


@pytest.mark.parametrize("name", all_fast())
@pytest.mark.parametrize("entity", ["Ann", "Ann Smith", "São Paulo", "日本"])
@pytest.mark.parametrize("before", ["", "Who is ", "日本 ", "é🙂 "])
@pytest.mark.parametrize("after", ["", "?", " is", "'s 🙂"])
def test_the_tokens_spell_the_entity(name, before, entity, after):
    tokenizer = all_fast()[name]
    table, tokenized = tokenized_table(tokenizer, prompt=[before + entity + after], entity=[entity])
    ((first, last),) = resolve(("entity_first", "entity_last"), table, tokenized).index.tolist()
    text = tokenizer.decode(tokenized.ids[0][first : last + 1], skip_special_tokens=False)
    wanted = entity.lower().replace("ã", "a") if name == "wordpiece" else entity
    squeeze = str.maketrans("", "", " #")
    if tokenizer.unk_token_id not in tokenized.ids[0]:
        assert wanted.translate(squeeze) in text.translate(squeeze)
    if first > 0:
        rest = tokenizer.decode(tokenized.ids[0][first + 1 : last + 1])
        assert wanted.translate(squeeze) not in rest.translate(squeeze)
