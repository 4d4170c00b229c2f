"""Prompt tables from files: equal tables from all formats, and errors that name the line."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError

ROWS = {
    "prompt": ['Who is Ann, the "best"?', "Who is\nBö?", "日本はどこ?"],
    "prompt_id": ["001", "002", "003"],
    "entity": ["Ann", "Bö", "日本"],
    "entity_id": ["07", "7", "007"],
    "answer": [" yes", None, " no"],
    "count": [1, 2, 3],
    "score": [0.5, None, -1e300],
    "flag": [True, False, True],
    "kind": ["NA", "null", "None"],
}


def write(path, rows=ROWS):
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        names = list(rows)
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in zip(*rows.values(), strict=True)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    table = PromptTable.read(write(tmp_path / f"prompts{suffix}"))
    expected = PromptTable.from_dataframe(pd.DataFrame(ROWS)).labels()
    labels = table.labels()
    assert list(labels) == list(expected)
    for name, values in expected.items():
        assert labels[name].dtype == values.dtype, name
        np.testing.assert_array_equal(labels[name], values)
    assert table.spans["entity"].tolist() == [[7, 10], [7, 9], [0, 2]]


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8)
cells = st.fixed_dictionaries({"prompt": text.filter(str.strip), "kind": text, "count": st.integers(-(2**62), 2**62)})


@given(st.lists(cells, min_size=1, max_size=5), st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_any_text_survives(tmp_path_factory, rows, suffix):
    columns = {name: [row[name] for row in rows] for name in ("prompt", "kind", "count")}
    columns["kind"] = ["k" + value for value in columns["kind"]]  # otherwise csv reads a number or a date
    path = write(tmp_path_factory.mktemp("any") / f"p{suffix}", columns)
    labels = PromptTable.read(path).labels()
    for name, values in columns.items():
        assert labels[name].tolist() == values


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,kind\nhello,x\n")
    assert PromptTable.read(path).labels()["kind"].tolist() == ["x"]


def test_nan_written_as_text_in_a_column_of_numbers(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,score,kind\na,1.5,nan\nb,NaN,x\n")
    labels = PromptTable.read(path).labels()
    np.testing.assert_array_equal(labels["score"], [1.5, np.nan])
    assert labels["kind"].tolist() == ["nan", "x"]


def test_keys_may_be_missing_in_some_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "entity_id": 1}\n\n{"prompt": "b", "entity_id": 2, "score": 2.5, "entity": "b"}\n')
    table = PromptTable.read(path)
    np.testing.assert_array_equal(table.labels()["score"], [np.nan, 2.5])
    assert table.spans["entity"].tolist() == [[-1, -1], [0, 1]]


BAD_FILES = {
    "empty.csv": (b"", ["is empty", "header"]),
    "blank.csv": (b" \n\n", ["is empty"]),
    "header.csv": (b"prompt,kind\n", ["no rows"]),
    "other.csv": (b"text,kind\na,b\n", ["no column 'prompt'", "text, kind", "rename"]),
    "case.csv": (b"Prompt\na\n", ["no column 'prompt'", "did you mean 'Prompt'"]),
    "latin.csv": ("prompt\nok\ncaf\u00e9\n".encode("latin-1"), ["line 3", "0xe9", "UTF-8", "encoding="]),
    "wide.csv": (b"prompt,kind\na,b\nc,d,e\n", ["line 3", "fields"]),
    "allwide.csv": (b"prompt,kind\na,b,c\nd,e,f\n", ["as many fields as the header"]),
    "quote.csv": (b'prompt,kind\n"a,b\n', ['written in "..."']),
    "twice.csv": (b"prompt,prompt_id\na,x\nb,x\n", ["'x' in rows 0, 1"]),
    "hole.csv": (b"prompt,kind\na,1\nb,\n", ["'kind'", "no value in row 1"]),
    "empty.jsonl": (b"", ["no column 'prompt'"]),
    "broken.jsonl": (b'{"prompt": "a"}\n{"prompt": \n', ["line 2", "JSON object"]),
    "list.jsonl": (b'{"prompt": "a"}\n["b"]\n', ["line 2", "JSON list"]),
    "nested.jsonl": (b'{"prompt": "a", "kind": {"x": 1}}\n', ["'kind'", "dict", "row 0"]),
    "number.jsonl": (b'{"prompt": 1.5}\n', ["row 0", "1.5 is a float"]),
    "latin.jsonl": (b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', ["line 2", "0xe9", "UTF-8"]),
    "surrogate.jsonl": (b'{"prompt": "a\\ud800"}\n', ["row 0", "surrogate"]),
    "text.parquet": (b"prompt\na\n", ["not a readable parquet file"]),
    "table.xlsx": (b"PK", [".csv", ".parquet", "from_dataframe"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_invalid_files_are_refused(tmp_path, name):
    content, fragments = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        PromptTable.read(path)
    message = str(caught.value)
    assert str(path) in message
    for fragment in fragments:
        assert fragment in message
    assert path.read_bytes() == content


def test_a_missing_file_names_the_near_ones(tmp_path):
    write(tmp_path / "prompts.csv")
    with pytest.raises(InputError, match=r"no such file; did you mean 'prompts.csv'"):
        PromptTable.read(tmp_path / "prompt.csv")
    with pytest.raises(InputError, match="no such file"):
        PromptTable.read(tmp_path / "nowhere" / "p.csv")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        PromptTable.read(tmp_path)
