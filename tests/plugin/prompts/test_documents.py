"""Tables of documents: windows, offsets back into the document, memory, and refusals."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

import stratalens as sl
from stratalens.plugin.prompts.positions import resolve
from stratalens.store.errors import InputError, TokenWarning
from support.thorough import THOROUGH, thorough
from support.tokenizers import all_fast, byte_level, byte_level_with_bos, metaspace, pure_python

TEXT = "who is the name of river Ann Smith painter from Norway village 2,850 km it's long. What? The brother;\n\n"
TOKENIZERS = all_fast()


def document(words, seed):
    picked = np.random.default_rng(seed).choice(TEXT.split(" "), words)
    return " ".join(picked.tolist())


def table_of(texts, tokenizer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenWarning)
        return sl.PromptTable.from_documents(texts, tokenizer, **options)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("stride", [None, 10, 1])
def test_windows_cover_the_document_and_fit(kind, stride):
    tokenizer = TOKENIZERS[kind]
    texts = [document(200 if stride != 1 else 30, 0), "Who is Ann?", document(37, 1)]
    table = table_of(texts, tokenizer, window=24, stride=stride, labels={"topic": ["a", "b", "c"]})
    labels, tokens = table.labels(), table.tokenize(tokenizer)
    assert tokens.lengths.max() <= 24
    covered = [np.zeros(len(text), dtype=int) for text in texts]
    for row, prompt in enumerate(table.prompts):
        text, offset = texts[labels["document"][row]], labels["document_offset"][row]
        assert text[offset : offset + len(prompt)] == prompt
        start, end = table.spans["new"][row]
        assert end == len(prompt)
        covered[labels["document"][row]][offset + start : offset + end] += 1
    for text, counts in zip(texts, covered, strict=True):
        assert counts.max() == 1  # the new parts do not overlap
        assert not text.replace(" ", "x").isspace()
        assert {text[i] for i in np.flatnonzero(counts == 0)} <= {" ", "\n"}
    assert labels["topic"].tolist() == [texts and "abc"[d] for d in labels["document"]]
    assert labels["entity_id"].tolist() == [f"document{d}" for d in labels["document"]]
    assert labels["window"][labels["document"] == 2].tolist() == list(range((labels["document"] == 2).sum()))
    assert table.prompts[labels["document"].tolist().index(1)] == texts[1]


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_with_bos", "metaspace"])
def test_windows_between_words_have_the_tokens_of_the_document(kind):
    tokenizer = TOKENIZERS[kind]
    text = document(300, 2).replace("\n\n", "")
    table = sl.PromptTable.from_documents([text], tokenizer, window=32)  # without a warning
    ids = tokenizer(text, add_special_tokens=False).input_ids
    tokens, first = table.tokenize(tokenizer), table.labels()["document_token"]
    special = len(tokens.special.before)
    for row in range(len(table)):
        own = tokens.ids[row][special:].tolist()
        assert own == ids[first[row] : first[row] + len(own)]
    assert sum(tokens.lengths - special) == len(ids)
    positions = resolve(("new_first", "new_last"), table, tokens).index
    assert positions[:, 0].tolist() == [special] * len(table)
    assert positions[:, 1].tolist() == (tokens.lengths - 1).tolist()


@pytest.mark.parametrize("text", ["日本の首都は東京です。" * 30, "🙂" * 80, "a" * 300, "   \n" * 40 + "Ann " * 40])
@pytest.mark.parametrize("kind", ["byte_level_with_bos", "metaspace"])
def test_texts_without_words_are_cut_between_characters(kind, text):
    tokenizer = TOKENIZERS[kind]
    table = table_of([text], tokenizer, window=17, stride=9)
    assert table.tokenize(tokenizer).lengths.max() <= 17
    offsets = table.labels()["document_offset"].tolist()
    ends = [offset + len(prompt) for offset, prompt in zip(offsets, table.prompts, strict=True)]
    assert ends[-1] == len(text)
    assert all(start <= end for start, end in zip(offsets[1:], ends, strict=False))
    assert sorted(set(ends)) == ends


def test_documents_without_a_window_are_whole_and_read_once():
    texts = (document(50, seed) for seed in range(3))
    table = sl.PromptTable.from_documents(texts, byte_level())
    assert table.prompts == [document(50, seed) for seed in range(3)]
    assert table.labels()["document_offset"].tolist() == [0, 0, 0]


def test_other_tokens_at_an_edge_are_said():
    with pytest.warns(TokenWarning, match="other tokens than their document"):
        sl.PromptTable.from_documents(["Norway" * 50], metaspace(), window=8)


def limited(tokens):
    tokenizer = byte_level_with_bos()
    tokenizer.model_max_length = tokens
    return tokenizer


REFUSALS = {
    "longer than the context": (lambda: table_of(["Ann " * 50], limited(20)), "more than the context of 20"),
    "no documents": (lambda: table_of([], byte_level()), "no documents"),
    "an empty document": (lambda: table_of(["a", " \n"], byte_level()), "document 1 is empty"),
    "a number": (lambda: table_of(["a", 3], byte_level()), "document 1 is int"),
    "one text": (lambda: table_of("Ann", byte_level()), "pass [text]"),
    "a slow tokenizer": (lambda: table_of(["a"], pure_python(), window=4), "fast version"),
    "no tokenizer": (lambda: table_of(["a"], None), "no tokenizer"),
    "a window without room": (lambda: table_of(["a"], metaspace(), window=1), "no room"),
    "a window of another type": (lambda: table_of(["a"], byte_level(), window=2.5), "window=2.5"),
    "a stride of 0": (lambda: table_of(["a"], byte_level(), window=4, stride=0), "stride=0"),
    "a gap": (lambda: table_of(["a"], byte_level_with_bos(), window=4, stride=4), "stride=4 is longer than the 3"),
    "a stride alone": (lambda: table_of(["a"], byte_level(), stride=4), "without window="),
    "labels of windows": (lambda: table_of(["a"], byte_level(), labels={"x": [1, 2]}), "2 values, but there are 1"),
    "a label that is written": (lambda: table_of(["a"], byte_level(), labels={"window": [1]}), "'window' has the name"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_with_the_remedy(case):
    call, message = REFUSALS[case]
    with pytest.raises(InputError, match=re.escape(message)):
        call()


def test_a_capture_of_long_prompts_names_the_windows():
    table = table_of(["Ann " * 50], byte_level())
    with pytest.raises(
        InputError, match=r"longer than the model's context.*from_documents\(texts, tokenizer, window=32\)"
    ):
        table.tokenize(byte_level(), max_length=32)


MEMORY = """
import json, sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from stratalens import PromptTable
import numpy as np

documents, words = int(sys.argv[1]), int(sys.argv[2])
vocabulary = {word: i for i, word in enumerate(["<unk>", *(f"w{i:04d}" for i in range(5000))])}
backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

def texts():
    for seed in range(documents):
        yield " ".join(f"w{i:04d}" for i in np.random.default_rng(seed).integers(0, 5000, words))

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

PromptTable.from_documents([next(texts())], tokenizer, window=512).tokenize(tokenizer)
before = peak()
table = PromptTable.from_documents(texts(), tokenizer, window=512)
built = peak()
tokens = table.tokenize(tokenizer, offsets=bool(len(sys.argv) > 3))
print(json.dumps({"rows": len(table), "tokens": int(tokens.lengths.sum()), "text": sum(map(len, table.prompts)),
                  "built": built - before, "tokenised": peak() - before}))
"""


def measure_memory(documents, words):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(documents), str(words)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_memory_is_that_of_the_windows():
    """The documents come from a generator. Beyond the text of the windows, 120 MB are enough, and 8 bytes a token."""
    small = measure_memory(300, 2000)
    assert small["tokens"] == 300 * 2000
    assert small["built"] < 1.5 * small["text"] + 120e6
    assert small["tokenised"] < 1.5 * small["text"] + 8 * small["tokens"] + 120e6


@thorough
@pytest.mark.skipif(not THOROUGH or not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_memory_of_ten_thousand_documents_of_eight_thousand_tokens():
    large = measure_memory(10_000, 8_000)
    assert large["tokens"] == 80_000_000
    assert large["built"] < 1.5 * large["text"] + 300e6
    assert large["tokenised"] < 1.5 * large["text"] + 8 * large["tokens"] + 300e6
