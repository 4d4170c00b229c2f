"""Token ids, digest, fingerprint and batches, with real tiny tokenizers."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts, _split_settings, fingerprint
from stratalens.store.errors import InputError
from support.tokenizers import all_fast, byte_level, byte_level_with_bos, pure_python, wordpiece

PROMPTS = ["Who is Ann Smith?", "Bo", "日本 is 🙂 where?"]


@pytest.fixture
def table():
    return PromptTable.from_dataframe(pd.DataFrame({"prompt": PROMPTS, "answer": [" A painter", None, " Asia"]}))


@pytest.mark.parametrize("name", all_fast())
def test_ids_are_the_tokenizers_own(table, name):
    tokenizer = all_fast()[name]
    tokenized = table.tokenize(tokenizer)
    for row, prompt in enumerate(PROMPTS):
        assert tokenized.ids[row].tolist() == tokenizer(prompt)["input_ids"]
        assert tokenized.ids[row].dtype == np.int64
        assert tokenized.offsets[row].shape == (len(tokenized.ids[row]), 2)
    assert tokenized.lengths.tolist() == [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    assert tokenized.answer_ids[0].tolist() == tokenizer(" A painter", add_special_tokens=False)["input_ids"]
    assert tokenized.answer_ids[1].tolist() == []


def test_the_prompt_has_a_bos_token_and_the_answer_has_none(table):
    tokenized = table.tokenize(byte_level_with_bos())
    bos = byte_level_with_bos().bos_token_id
    assert [int(ids[0]) for ids in tokenized.ids] == [bos] * 3
    assert bos not in tokenized.answer_ids[0]


def test_many_prompts_are_tokenised_in_several_calls(monkeypatch):
    monkeypatch.setattr("stratalens.plugin.prompts.tokenization._BATCH", 2)
    texts = [f"Who is number {n}?" for n in range(7)]
    tokenized = PromptTable.from_dataframe(pd.DataFrame({"prompt": texts})).tokenize(byte_level())
    assert [ids.tolist() for ids in tokenized.ids] == [byte_level()(text)["input_ids"] for text in texts]


def test_a_table_without_answers_has_none():
    tokenized = PromptTable.from_dataframe(pd.DataFrame({"prompt": ["a"]})).tokenize(byte_level())
    assert tokenized.answer_ids is None
    assert tokenized.total_lengths.tolist() == tokenized.lengths.tolist()


def test_batch_pads_on_the_right(table):
    tokenizer = byte_level()
    tokenized = table.tokenize(tokenizer)
    ids, mask = tokenized.batch([2, 0], 30)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.shape == mask.shape == (2, 30)
    for line, row in enumerate([2, 0]):
        assert ids[line][mask[line] == 1].tolist() == tokenized.ids[row].tolist()
        assert (ids[line][mask[line] == 0] == tokenizer.eos_token_id).all()
        assert mask[line].tolist() == sorted(mask[line].tolist(), reverse=True)


def test_batch_with_answers(table):
    tokenized = table.tokenize(byte_level())
    ids, mask = tokenized.batch([0, 1], int(tokenized.total_lengths.max()), answers=True)
    assert ids[0][mask[0] == 1].tolist() == [*tokenized.ids[0].tolist(), *tokenized.answer_ids[0].tolist()]
    assert ids[1][mask[1] == 1].tolist() == tokenized.ids[1].tolist()


def test_a_batch_that_is_too_short_is_refused(table):
    tokenized = table.tokenize(byte_level())
    with pytest.raises(InputError, match=r"row 2: up to \d+ tokens do not fit in pad_to=6"):
        tokenized.batch([1, 2], 6)


arrays = st.lists(st.lists(st.integers(0, 300), max_size=4), min_size=1, max_size=4)


def digest_of(rows, answers):
    return TokenizedPrompts(
        [np.array(row, dtype=np.int64) for row in rows],
        None,
        [np.array(row, dtype=np.int64) for row in answers],
        "",
        0,
    ).digest


@given(arrays, arrays)
def test_different_tables_have_different_digests(first, second):
    one, other = digest_of(first, first), digest_of(second, second)
    assert (one == other) == (first == second)


def test_the_digest_depends_on_answers_and_row_boundaries():
    assert digest_of([[1, 2]], [[3]]) != digest_of([[1]], [[2, 3]])
    assert digest_of([[1], []], [[], []]) != digest_of([[], [1]], [[], []])


def test_the_digest_is_the_documented_one():
    sha = hashlib.sha256(b"stratalens token ids 1")
    for ids in ([5, 6], [], [7], [8]):
        sha.update(len(ids).to_bytes(8, "little") + b"".join(i.to_bytes(8, "little") for i in ids))
    assert digest_of([[5, 6], [7]], [[], [8]]) == sha.hexdigest()


def test_the_fingerprint_ignores_settings_of_the_last_call():
    tokenizer = byte_level()
    before = fingerprint(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=3)
    assert tokenizer.backend_tokenizer.padding is not None
    tokenizer.padding_side = "left"
    assert fingerprint(tokenizer) == before


def test_different_tokenizers_have_different_fingerprints():
    fingerprints = {name: fingerprint(tokenizer) for name, tokenizer in all_fast().items()}
    fingerprints["smaller"] = fingerprint(byte_level(size=380))
    fingerprints["python"] = fingerprint(pure_python())
    added = byte_level()
    added.add_tokens(["<|new|>"])
    fingerprints["added"] = fingerprint(added)
    assert len(set(fingerprints.values())) == len(fingerprints)


@pytest.mark.parametrize("after_model", [False, True])
def test_settings_are_read_before_and_after_the_vocabulary(after_model):
    left_out = '"padding":{"length":3},"truncation":null,"post_processor":null'
    model = '"model":{"vocab":{"a":0}}'
    first, second = (model, left_out) if after_model else (left_out, model)
    state, rest = _split_settings('{"version":"1.0",' + first + "," + second + "}")
    assert state["version"] == "1.0"
    assert not {"padding", "truncation", "post_processor"} & set(state)
    assert '"a"' in json.dumps(state) + rest


def test_the_fingerprint_sees_special_tokens_by_their_effect():
    """TransformerLens rewrites the post-processor of a tokenizer that prepends BOS, to the same effect."""
    plain, rewritten = byte_level_with_bos(), byte_level_with_bos()
    backend = rewritten.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[("<|bos|>", rewritten.bos_token_id)]
    )
    assert backend.to_str() != plain.backend_tokenizer.to_str()
    assert fingerprint(rewritten) == fingerprint(plain)
    backend.post_processor = processors.TemplateProcessing(
        single="$A <|bos|>", special_tokens=[("<|bos|>", rewritten.bos_token_id)]
    )
    assert fingerprint(rewritten) != fingerprint(plain)


def test_a_bridge_keeps_the_fingerprint(tmp_path):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_level_with_bos()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path))
    assert fingerprint(bridge.tokenizer) == fingerprint(tokenizer)


def test_saving_and_loading_keeps_the_fingerprint(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = byte_level_with_bos()
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == fingerprint(tokenizer)
    assert fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == fingerprint(tokenizer)


def test_digest_and_fingerprint_are_the_same_in_another_process(table, tmp_path):
    byte_level_with_bos().save_pretrained(tmp_path / "tokenizer")
    table.frame.to_parquet(tmp_path / "p.parquet")
    code = """
import json, sys
from transformers import PreTrainedTokenizerFast
from stratalens.plugin.prompts.table import PromptTable
tokenized = PromptTable.read(sys.argv[1]).tokenize(PreTrainedTokenizerFast.from_pretrained(sys.argv[2]))
print(json.dumps([tokenized.digest, tokenized.tokenizer_fingerprint]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.parquet"), str(tmp_path / "tokenizer")],
        capture_output=True,
        text=True,
        check=True,
        env={**_environment(), "PYTHONHASHSEED": "77"},
    )
    tokenized = table.tokenize(byte_level_with_bos())
    assert json.loads(done.stdout.splitlines()[-1]) == [tokenized.digest, tokenized.tokenizer_fingerprint]


def _environment():
    import os

    import stratalens

    return {**os.environ, "PYTHONPATH": str(Path(stratalens.__file__).absolute().parents[1])}


def test_a_prompt_longer_than_the_context(table):
    tokenized = table.tokenize(byte_level())
    limit = int(tokenized.total_lengths.max())
    table.tokenize(byte_level(), max_length=limit)
    rows = np.flatnonzero(tokenized.total_lengths == limit)
    with pytest.raises(InputError) as caught:
        table.tokenize(byte_level(), max_length=limit - 1)
    assert f"row {rows[0]}: {limit}" in str(caught.value)
    assert f"context of {limit - 1} tokens" in str(caught.value)
    assert "with their answers" in str(caught.value)


def test_a_prompt_without_tokens_is_refused():
    # BERT's normaliser drops control characters, so only the special tokens would remain
    table = PromptTable.from_dataframe(pd.DataFrame({"prompt": ["Ann", "\x01"]}))
    assert table.tokenize(wordpiece()).lengths[1] == 2
    with pytest.raises(InputError, match=r"row 1: the tokenizer makes no token of the prompt '\\x01'"):
        table.tokenize(wordpiece(special=False))


@pytest.mark.parametrize(
    ("tokenizer", "fragment"),
    [(None, "no tokenizer"), (Tokenizer(models.BPE()), "tokenizer_object"), ("gpt2", "str is not a Hugging Face")],
    ids=["none", "backend", "name"],
)
def test_other_objects_are_refused_as_tokenizers(table, tokenizer, fragment):
    with pytest.raises(InputError, match=fragment):
        table.tokenize(tokenizer)


def test_a_python_tokenizer_works_without_offsets(table):
    tokenized = table.tokenize(pure_python())
    assert tokenized.offsets is None
    assert tokenized.lengths.tolist() == [len(prompt) for prompt in PROMPTS]
