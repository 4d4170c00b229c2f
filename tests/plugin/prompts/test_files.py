"""Prompt tables from files: equal tables from all formats, and errors that name the line."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stratalens.plugin.prompts.columns import typed_values
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError, LabelWarning

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
    numbers = suffix == ".csv" and typed_values(pd.Series(columns["kind"], dtype="string")).dtype != "string"
    assume(not numbers)
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


LABELS_OF_CSV = {
    "leading zeros": (["007", "7", "07"], "text"),
    "one leading zero": (["10", "07", "12"], "text"),
    "integers": (["7", "10", "-3", "0"], np.int64),
    "the largest integers": (["9223372036854775807", "-9223372036854775807"], np.int64),
    "integers beyond 64 bits": (["9223372036854775808", "1"], "text"),
    "minus zero": (["-0", "1"], "text"),
    "exponents": (["1e3", "2e3"], "text"),
    "signs": (["+5", "6"], "text"),
    "underscores": (["1_000", "2_000"], "text"),
    "blanks": ([" 7", "8"], "text"),
    "other digits": (["\uff17", "\uff18"], "text"),
    "whole numbers with a point": (["1.0", "2.0"], "text"),
    "versions": (["1.1", "1.10"], "text"),
    "floats": (["0.5", "1.0", "-2.25", "1e-07"], np.float64),
    "integers among floats": (["0.5", "1"], "text"),
    "too many digits": (["0.10000000000000000001", "0.2"], "text"),
    "infinity": (["inf", "0.5"], "text"),
    "booleans": (["True", "False"], np.bool_),
    "other booleans": (["true", "false"], "text"),
    "dates": (["2024-01-01", "2024-01-02"], "text"),
    "not a number": (["nan", "7"], "text"),
}


@pytest.mark.parametrize("case", LABELS_OF_CSV)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_column_becomes_numbers_only_where_that_loses_nothing(tmp_path, case, suffix):
    texts, dtype = LABELS_OF_CSV[case]
    path = tmp_path / f"p{suffix}"
    separator = "," if suffix == ".csv" else "\t"
    lines = [f"{row}{separator}{text}" for row, text in enumerate(texts)]
    path.write_text("\n".join([f"prompt{separator}label", *lines]), encoding="utf-8")
    values = PromptTable.read(path).labels()["label"]
    assert values.dtype == (object if dtype == "text" else np.dtype(dtype))
    assert [str(value) for value in values.tolist()] == texts


@given(st.lists(st.text("0179.+-e_ naNTrue", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_text_is_lost_in_a_number(texts):
    column = pd.Series(texts, dtype="string")
    values = typed_values(column)
    pairs = zip(texts, values, strict=True)
    again = [text if text.lower() == "nan" and value is pd.NA else str(value) for text, value in pairs]
    assert again == texts


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_text_of_other_formats_stays_text(tmp_path, suffix):
    path = write(tmp_path / f"p{suffix}", {"prompt": ["a", "b"], "label": ["007", "7"], "count": [7, 8]})
    labels = PromptTable.read(path).labels()
    assert labels["label"].tolist() == ["007", "7"]
    assert labels["count"].dtype == np.int64


def test_an_empty_label_of_a_store_comes_in_again(tmp_path):
    columns = {"prompt": ["a", "b"], "kind": ["x", ""], "score": [0.5, np.nan]}
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = write(tmp_path / f"p{suffix}", columns)
        if suffix == ".csv":
            with pytest.warns(LabelWarning, match="label column 'kind' is empty in row 1"):
                labels = PromptTable.read(path).labels()
        else:
            labels = PromptTable.read(path).labels()
        assert labels["kind"].tolist() == ["x", ""]
        np.testing.assert_array_equal(labels["score"], [0.5, np.nan])


def test_spans_of_a_csv_file_may_be_missing(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,obj_start,obj_end\nAnn saw Bo,8.0,10.0\nnone,,\n")  # as pandas writes them
    assert PromptTable.read(path).spans["obj"].tolist() == [[8, 10], [-1, -1]]
    path.write_text("prompt,obj_start,obj_end\nAnn saw Bo,8,10\nnone,,\n")
    assert PromptTable.read(path).spans["obj"].tolist() == [[8, 10], [-1, -1]]


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    table = arrow.table([arrow.array(["a"]), arrow.array([1]), arrow.array([2])], names=["prompt", "kind", "kind"])
    parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="column 'kind' is listed twice"):
        PromptTable.read(tmp_path / "p.parquet")


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
    "quoted.wide.csv": (b'prompt,kind\n"a\nb",x\n\n"c, d",x,"y\nz"\n', ["line 5: 3 fields, but the header has 2"]),
    "wide.tsv": (b"prompt\tkind\na, b\tx\nc\td\te\tf\n", ["line 3: 4 fields, but the header has 2"]),
    "semicolons.csv": (b"prompt;kind\na, b;c\n", ["separated by semicolons, not by commas", "sep=';'"]),
    "quoted.semicolons.csv": (b'"id";"prompt"\n"1";"a"\n', ["separated by semicolons", "save the file with commas"]),
    "tabs.csv": (b"kind\tprompt\na\tb\n", ["separated by tabs, not by commas", r"sep='\t'"]),
    "commas.tsv": (b"prompt,kind\na,b\n", ["separated by commas, not by tabs", "sep=','"]),
    "utf16.csv": ("prompt,kind\na,b\n".encode("utf-16"), ["is UTF-16", "encoding='utf-16'"]),
    "utf16be.jsonl": ('{"prompt": "\u00e9t\u00e9"}\n'.encode("utf-16-be"), ["is UTF-16", "save it as UTF-8"]),
    "chat.jsonl": (
        b'{"prompt": [{"role": "user", "content": "Who is Ann?"}]}\n',
        ["row 0, column 'prompt'", "is a chat", "PromptTable.from_chats(df['prompt'], tokenizer"],
    ),
    "message.jsonl": (b'{"prompt": {"role": "user", "content": "a"}}\n', ["is a chat", "from_chats"]),
    "allwide.csv": (b"prompt,kind\na,b,c\nd,e,f\n", ["as many fields as the header"]),
    "quote.csv": (b'prompt,kind\n"a,b\n', ['written in "..."']),
    "twice.csv": (b"prompt,prompt_id\na,x\nb,x\n", ["'x' is listed twice (rows 0, 1)"]),
    "header.twice.csv": (b"prompt,kind,kind\na,1,2\n", ["column 'kind' is listed twice"]),
    "header.twice.tsv": (b"\nprompt\tkind\tprompt\na\t1\tb\n", ["column 'prompt' is listed twice"]),
    "header.blanks.csv": (b"prompt, entity ,lab\nis Ann,Ann,x\n", ["column ' entity ' has blanks", "write 'entity'"]),
    "prompt.blanks.csv": (b"prompt ,lab\nis Ann,x\n", ["column 'prompt ' has blanks", "write 'prompt'"]),
    "twice.jsonl": (
        b'{"prompt": "a", "kind": "x"}\n{"prompt": "b", "kind": "x", "kind": "y"}\n',
        ["line 2: key 'kind' is listed twice"],
    ),
    "inner.jsonl": (b'{"prompt": "a", "kind": {"x": 1, "x": 2}}\n', ["line 1: key 'x' is listed twice"]),
    "blanks.jsonl": (b'{"prompt": "a", "kind ": 1}\n', ["key 'kind ' has blanks", "write 'kind'"]),
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
