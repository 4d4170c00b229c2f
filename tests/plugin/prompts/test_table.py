"""Content of a prompt table: labels, ids and spans, and its text and HTML representation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratalens.plugin.prompts.entity_warnings import entity_warning
from stratalens.plugin.prompts.spans import find_entity
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError
from stratalens.store.format.schema import RESERVED_NAMES


def table_of(**columns):
    return PromptTable.from_dataframe(pd.DataFrame(columns))


def test_defaults():
    table = table_of(prompt=["a b", "c d"])
    labels = table.labels()
    assert [name[0] + str(len(name)) for name in labels["entity"]] == ["p13", "p13"]
    assert labels["entity_id"].tolist() == labels["entity"].tolist()
    assert labels["prompt"].tolist() == ["a b", "c d"]
    assert list(labels) == ["entity", "entity_id", "prompt"]
    assert dict(table.spans) == {}
    assert len(table) == 2


def test_entity_id_is_the_entity_else_the_row():
    table = table_of(prompt=["is Ann", "is Ann?"], entity=["Ann", "Ann"], prompt_id=["x", "y"])
    assert table.labels()["entity_id"].tolist() == ["Ann", "Ann"]
    assert table.labels()["entity"].tolist() == ["x", "y"]
    assert table.names_entities
    for columns in ({}, {"entity": [None, ""]}):
        table = table_of(prompt=["is Ann", "is Ann?"], prompt_id=["x", "y"], **columns)
        assert table.labels()["entity_id"].tolist() == ["x", "y"]
        assert not table.names_entities


def test_an_entity_may_be_missing_where_entity_id_groups_the_rows():
    columns = {"prompt": ["is Ann", "is Ann?", "no one"], "entity": ["Ann", "Ann", None]}
    with pytest.raises(InputError, match=r"row 2 has no entity and others do.*both sides of a split.*column entity_id"):
        table_of(**columns)
    table = table_of(**columns, entity_id=["a", "a", "b"])
    assert table.labels()["entity_text"].tolist() == ["Ann", "Ann", ""]
    assert table.spans["entity"].tolist() == [[3, 6], [3, 6], [-1, -1]]


def test_entity_id_takes_precedence_and_numbers_become_text():
    table = table_of(prompt=["is Ann", "is Bo"], entity=["Ann", "Bo"], entity_id=[7, 7], prompt_id=[10, 11])
    assert table.labels()["entity_id"].tolist() == ["7", "7"]
    assert table.labels()["entity"].tolist() == ["10", "11"]


NUMPY_LABELS = {
    "int8": np.array([1, -2], dtype=np.int8),
    "uint16": np.array([1, 2], dtype=np.uint16),
    "int64": np.array([1, 2**62], dtype=np.int64),
    "float16": np.array([0.5, np.nan], dtype=np.float16),
    "float32": np.array([0.5, np.inf], dtype=np.float32),
    "float64": np.array([0.5, np.nan]),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("name", NUMPY_LABELS)
def test_numpy_dtypes_are_kept(name):
    stored = table_of(prompt=["a", "b"], label=NUMPY_LABELS[name]).labels()["label"]
    assert stored.dtype == np.dtype(name)
    np.testing.assert_array_equal(stored, NUMPY_LABELS[name])


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (pd.array([1, 2], dtype="Int16"), "int16", [1, 2]),
        (pd.array([1, 2], dtype="UInt8"), "uint8", [1, 2]),
        (pd.array([0.5, None], dtype="Float32"), "float32", [0.5, np.nan]),
        (pd.array([True, False], dtype="boolean"), "bool", [True, False]),
        (pd.array(["x", "y"], dtype="string"), "object", ["x", "y"]),
        (pd.array([1, 2], dtype="int32[pyarrow]"), "int32", [1, 2]),
        (pd.array([0.5, None], dtype="double[pyarrow]"), "float64", [0.5, np.nan]),
        (pd.array([True, False], dtype="bool[pyarrow]"), "bool", [True, False]),
        (pd.Categorical(["x", "y"], categories=["y", "x"]), "object", ["x", "y"]),
        (pd.Categorical([3, 1]), "int64", [3, 1]),
        (pd.Series([1, 2], dtype=object), "int64", [1, 2]),
        (pd.Series([True, False], dtype=object), "bool", [True, False]),
        (pd.Series([1, 2.5], dtype=object), "float64", [1.0, 2.5]),
        (pd.Series(["x", ""], dtype=object), "object", ["x", ""]),
    ],
    ids=str,
)
def test_pandas_dtypes_become_numpy(values, dtype, expected):
    stored = table_of(prompt=["a", "b"], label=values).labels()["label"]
    assert stored.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(stored, np.array(expected, dtype=stored.dtype))


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (pd.Categorical(["mid", "lo"], categories=["lo", "mid", "hi"], ordered=True), ("lo", "mid", "hi")),
        (pd.Categorical([10, 2], categories=[10, 2, 3], ordered=True), ("10", "2", "3")),
        (pd.Categorical([0.5, 2.0], categories=[2.0, 0.5], ordered=True), ("2.0", "0.5")),
    ],
    ids=str,
)
def test_ordered_categories_keep_their_order(labels, order):
    table = table_of(prompt=["a", "b"], size=labels, plain=pd.Categorical(["x", "y"]))
    assert dict(table.label_orders) == {"size": order}
    assert table.labels()["size"].tolist() == labels.tolist()
    again = PromptTable.from_dataframe(table.frame)
    assert dict(again.label_orders) == {"size": order}
    assert again.labels()["size"].dtype == table.labels()["size"].dtype


def test_ordered_categories_of_a_parquet_file(tmp_path):
    labels = pd.Categorical(["mid", "lo"], categories=["lo", "mid", "hi"], ordered=True)
    pd.DataFrame({"prompt": ["a", "b"], "size": labels}).to_parquet(tmp_path / "p.parquet")
    assert dict(PromptTable.read(tmp_path / "p.parquet").label_orders) == {"size": ("lo", "mid", "hi")}


def test_text_labels_are_plain_str():
    stored = table_of(prompt=["a", "b"], label=pd.array(["x", "ü"], dtype="string")).labels()["label"]
    assert [type(value) for value in stored.tolist()] == [str, str]


def test_labels_are_copies():
    table = table_of(prompt=["a"], label=[1])
    table.labels()["label"][0] = 5
    assert table.labels()["label"].tolist() == [1]


def test_the_frame_is_not_changed_and_its_index_does_not_matter():
    frame = pd.DataFrame({"prompt": ["is Ann", "is Bo"], "entity": ["Ann", "Bo"]}, index=[5, 5])
    before = frame.copy(deep=True)
    table = PromptTable.from_dataframe(frame)
    pd.testing.assert_frame_equal(frame, before)
    again = PromptTable.from_dataframe(frame.reset_index(drop=True))
    assert table.labels()["entity"].tolist() == again.labels()["entity"].tolist()


def test_the_frame_makes_the_same_table_again():
    table = table_of(
        prompt=["Ann saw Bo", "Cy saw Di"],
        entity=["Bo", None],
        entity_id=[1, 2],
        answer=[" yes", None],
        obj_start=[0, 7],
        obj_end=[3, 9],
        score=[0.5, np.nan],
        kind=["x", "y"],
    )
    again = PromptTable.from_dataframe(table.frame)
    for name, values in table.labels().items():
        np.testing.assert_array_equal(again.labels()[name], values)
    assert {name: span.tolist() for name, span in again.spans.items()} == {
        name: span.tolist() for name, span in table.spans.items()
    }


def test_spans_are_not_labels_and_a_lone_edge_is():
    table = table_of(prompt=["Ann saw Bo"], obj_start=[8], obj_end=[10], window_start=[3])
    assert table.label_names == ("window_start",)
    assert table.spans["obj"].tolist() == [[8, 10]]


def test_entity_start_chooses_the_occurrence():
    table = table_of(prompt=["Ann and Ann"], entity=["Ann"], entity_start=[0], entity_end=[3])
    assert table.spans["entity"].tolist() == [[0, 3]]
    assert table_of(prompt=["Ann and Ann"], entity=["Ann"]).spans["entity"].tolist() == [[8, 11]]


def test_spans_may_be_missing_in_some_rows():
    table = table_of(prompt=["Ann saw Bo", "none"], obj_start=[8, np.nan], obj_end=[10, np.nan])
    assert table.spans["obj"].tolist() == [[8, 10], [-1, -1]]


@pytest.mark.parametrize(
    ("prompt", "entity", "start"),
    [
        ("Ann met Anna.", "Ann", 0),
        ("Anna met Ann", "Ann", 9),
        ("Anna", "Ann", 0),
        ("aaa", "aa", 1),
        ("aa aaa", "aa", 0),
        ("<|x|><|x|>", "<|x|>", 5),
        ("日本日本", "日本", 2),
        ("nothing", "Bo", -1),
        ("(Bo), Boa", "Bo", 1),
        ("राम और रामायण", "राम", 0),
        ("राम और सीताराम", "राम", 0),
        ("Jose is not Jose\u0301", "Jose", 0),
        ("Jose\u0301 is not Jose\u0301s", "Jose\u0301", 0),
        ("שלום is not שלום\u05b0", "שלום", 0),
        ("\u0645\u06cc is in \u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc", 0),
        ("👩 and 👩\u200d🚀", "👩", 0),
        ("🚀 and 👩\u200d🚀", "🚀", 0),
    ],
)
def test_find_entity(prompt, entity, start):
    assert find_entity(prompt, entity) == start


def occurrences(prompt, entity):
    """Yield every start, by brute force, and whether the entity is a whole word there."""
    for start in range(len(prompt) - len(entity) + 1):
        end = start + len(entity)
        if prompt[start:end] == entity:
            before, after = prompt[start - 1 : start] if start else "", prompt[end : end + 1]
            whole = not (before.isalnum() and entity[0].isalnum()) and not (after.isalnum() and entity[-1].isalnum())
            yield start, whole


@given(st.text("ab 1-", max_size=14), st.text("ab 1-", min_size=1, max_size=3))
def test_find_entity_against_brute_force(prompt, entity):
    starts = list(occurrences(prompt, entity))
    whole = [start for start, is_whole in starts if is_whole]
    expected = whole[-1] if whole else starts[-1][0] if starts else -1
    assert find_entity(prompt, entity) == expected


def test_html_is_escaped():
    nasty = "<script>alert('x')</script>"
    table = table_of(prompt=[nasty] * 7, **{"<b>": [nasty] * 7})
    page = table._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert "2 more rows" in page


def test_repr_names_labels_and_spans():
    text = repr(table_of(prompt=["is Ann", "is Ann?"], entity=["Ann", "Ann"], group=[1, 2], kind=["x", "y"]))
    assert text == "PromptTable(2 prompts about 1 entities; labels: group (int64), kind (text); spans: entity)"


def test_every_site_with_a_short_name_is_reserved():
    from stratalens.plugin.models.sites import SHORT_NAMES

    assert set(SHORT_NAMES) <= RESERVED_NAMES
    assert {f"{site}_kurtosis" for site in SHORT_NAMES} <= RESERVED_NAMES
    assert "entity" not in RESERVED_NAMES


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": ["a", "b"]}, "has neither a column entity nor entity_id"),
        ({"prompt": ["a", "b", "a"]}, "Rows 0, 2 have the same prompt"),
        ({"prompt": ["is Ann", "is Bo"], "Entity": ["Ann", "Bo"]}, "Does the label column 'Entity' name the entities"),
        (
            {"prompt": ["is Ann", "Ann?"], "entity": ["Ann", "Ann"], "entity_id": ["0", "1"]},
            "rows 0, 1 have the same entity 'Ann' and different values of entity_id ('0', '1')",
        ),
        (
            {"prompt": ["is Ann", "is Ann", "Bo"], "entity_id": ["0", "1", "1"]},
            "rows 0, 1 have the same prompt 'is Ann' and different values of entity_id",
        ),
    ],
)
def test_rows_that_may_share_an_entity_are_warned_about(columns, says):
    assert says in entity_warning(table_of(**columns))


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["is Ann", "Ann?"], "entity": ["Ann", "Ann"]},
        {"prompt": ["is Ann", "is Ann"], "entity_id": ["0", "0"]},
        {"prompt": ["is it", "it?", "so it is"], "entity": ["it"] * 3, "entity_id": ["0", "0", "1"]},
        {"prompt": ["a", "b"], "entity": ["", None], "entity_id": ["0", "1"]},
    ],
)
def test_tables_that_name_their_entities_give_no_warning(columns):
    assert entity_warning(table_of(**columns)) is None
