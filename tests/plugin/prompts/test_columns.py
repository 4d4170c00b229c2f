"""Every invalid prompt table raises a separate error, which names the fault, the rows, valid values and the remedy."""

import datetime

import numpy as np
import pandas as pd
import pytest

from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError

P2 = ["is Ann", "is Bo"]
HALF = pd.Series(["x", "y\udc00"], dtype=object)  # the first half of a surrogate pair is missing

# case -> (columns, fragments of the message)
HUGE = 10**5000  # Python refuses to write more than 4,300 digits
BAD = {
    "no rows": ({"prompt": []}, ["no rows"]),
    "no columns": ({}, ["no column 'prompt'", "no columns"]),
    "no prompt column": ({"prompts": P2}, ["no column 'prompt'", "did you mean 'prompts'", "rename"]),
    "empty prompt": ({"prompt": ["a", "", "b", "  \n"]}, ["rows 1, 3", "empty", "drop"]),
    "missing prompt": ({"prompt": ["a", None]}, ["'prompt'", "no value in row 1"]),
    "prompt is a float": ({"prompt": [0.5, 1.5]}, ["row 0", "0.5 is a float", "astype(str)"]),
    "prompt is a bool": ({"prompt": [True, False]}, ["row 0", "True is a bool"]),
    "half a surrogate pair": ({"prompt": HALF}, ["row 1", "surrogate", "at 1"]),
    "duplicate prompt_id": (
        {"prompt": ["a", "b", "c", "d"], "prompt_id": ["x", "y", "x", "y"]},
        ["unique", "'x' is listed twice (rows 0, 2)", "'y' is listed twice (rows 1, 3)", "entity_id"],
    ),
    "blanks around a prompt_id": ({"prompt": P2, "prompt_id": ["x", "y "]}, ["prompt_id 'y '", "row 1", "write 'y'"]),
    "blanks around a column name": ({"prompt": P2, " entity ": ["Ann", "Bo"]}, ["' entity '", "write 'entity'"]),
    "empty prompt_id": ({"prompt": P2, "prompt_id": ["x", ""]}, ["prompt_id is empty in row 1"]),
    "missing prompt_id": ({"prompt": P2, "prompt_id": ["x", None]}, ["'prompt_id' has no value in row 1"]),
    "float prompt_id": ({"prompt": P2, "prompt_id": [1.0, 2.0]}, ["prompt_id", "1.0 is a float", "astype(str)"]),
    "missing entity_id": ({"prompt": P2, "entity_id": ["x", None]}, ["'entity_id' has no value in row 1"]),
    "empty entity_id": ({"prompt": P2, "entity_id": ["x", ""]}, ["entity_id is empty in row 1"]),
    "entity not in prompt": (
        {"prompt": P2, "entity": ["Ann", "Cy"]},
        ["row 1", "'Cy' does not occur", "'is Bo'", "entity_id"],
    ),
    "entity in another case": ({"prompt": P2, "entity": ["ann", "Bo"]}, ["row 0", "capital letters"]),
    "entity with space": ({"prompt": P2, "entity": [" Ann ", "Bo"]}, ["row 0", "surrounding space", "'Ann'"]),
    "entity in another normal form": (
        {"prompt": ["\u00e9t\u00e9"], "entity": ["e\u0301te\u0301"]},
        ["row 0", "Unicode normalisation", "NFC"],
    ),
    "span beyond the prompt": (
        {"prompt": P2, "obj_start": [0, 3], "obj_end": [2, 6]},
        ["row 1", "obj = [3, 6)", "outside the prompt", "5 characters", "obj_end <= 5"],
    ),
    "span before the prompt": ({"prompt": P2, "obj_start": [-2, 0], "obj_end": [2, 2]}, ["row 0", "[-2, 2)"]),
    "empty span": ({"prompt": P2, "obj_start": [2, 0], "obj_end": [2, 2]}, ["row 0", "is empty"]),
    "reversed span": ({"prompt": P2, "obj_start": [3, 0], "obj_end": [2, 2]}, ["row 0", "[3, 2)"]),
    "half a span": ({"prompt": P2, "obj_start": [0, 1], "obj_end": [2, np.nan]}, ["row 1", "[1, -1)"]),
    "span of text": ({"prompt": P2, "obj_start": ["0", "1"], "obj_end": [2, 2]}, ["row 0", "'0'", "whole number"]),
    "span of fractions": ({"prompt": P2, "obj_start": [0, 1.5], "obj_end": [2, 2]}, ["row 1", "1.5"]),
    "span that is not the entity": (
        {"prompt": P2, "entity": ["Ann", "Bo"], "entity_start": [0, 3], "entity_end": [2, 5]},
        ["row 0", "point at 'is'", "entity is 'Ann'"],
    ),
    "missing text label": ({"prompt": P2, "kind": ["x", None]}, ["'kind'", "no value in row 1", "fillna", "dropna"]),
    "missing integer label": (
        {"prompt": P2, "kind": pd.array([1, None], dtype="Int64")},
        ["'kind'", "no value in row 1"],
    ),
    "missing bool label": ({"prompt": P2, "kind": pd.array([None, True], dtype="boolean")}, ["no value in row 0"]),
    "missing category": ({"prompt": P2, "kind": pd.Categorical(["x", None])}, ["no value in row 1"]),
    "label without values": ({"prompt": P2, "kind": [None, None]}, ["'kind'", "no value in any row", "drop"]),
    "mixed label": ({"prompt": P2, "kind": [1, "x"]}, ["'kind'", "int in row 0", "str in row 1", "astype(str)"]),
    "list label": ({"prompt": P2, "kind": [[1], [2]]}, ["'kind'", "list", "row 0"]),
    "date label": (
        {"prompt": P2, "kind": pd.to_datetime(["2020-01-01", "2021-01-01"])},
        ["'kind'", "datetime64", "astype(str)"],
    ),
    "date objects": ({"prompt": P2, "kind": [datetime.date(2020, 1, 1)] * 2}, ["'kind'", "date", "astype(str)"]),
    "complex label": ({"prompt": P2, "kind": [1j, 2j]}, ["'kind'", "complex128"]),
    "huge integer label": ({"prompt": P2, "kind": [2**70, 1]}, ["'kind'", "64 bits"]),
    "integer label that Python cannot write": ({"prompt": P2, "kind": [HUGE, 1]}, ["'kind'", "64 bits"]),
    "text that is a huge integer": ({"prompt": P2, "entity_id": [1, HUGE]}, ["row 1", "'entity_id'", "digits"]),
    "span that is a huge integer": ({"prompt": P2, "x_start": [0, HUGE], "x_end": 2}, ["row 1", "'x_start'"]),
    "span beyond 64 bits": ({"prompt": P2, "x_start": [0, 2**64], "x_end": 2}, ["row 1", "'x_start'"]),
    "span that is a huge float": ({"prompt": P2, "x_start": 0, "x_end": [2, 1e300]}, ["row 1", "'x_end'", "1e+300"]),
    "surrogate in a label": ({"prompt": P2, "kind": HALF}, ["row 1", "'kind'", "surrogate"]),
    "label named as a dim": ({"prompt": P2, "layer": [1, 2]}, ["'layer'", "rename"]),
    "label named as a coordinate": ({"prompt": P2, "stage_order": [1, 2]}, ["'stage_order'", "rename"]),
    "label named as an output": ({"prompt": P2, "loss": [1, 2]}, ["'loss'", "rename"]),
    "label named as a site": ({"prompt": P2, "resid_post": [1, 2]}, ["'resid_post'", "rename"]),
    "label named as a statistic": ({"prompt": P2, "resid_post_l2": [1, 2]}, ["'resid_post_l2'", "rename"]),
    "label with a slash": ({"prompt": P2, "a/b": [1, 2]}, ["'a/b'", "slashes", "rename"]),
    "label with a line break": ({"prompt": P2, "a\nb": [1, 2]}, ["control", "rename"]),
    "label with a leading dot": ({"prompt": P2, ".a": [1, 2]}, ["leading '.'", "rename"]),
    "column that is a number": ({"prompt": P2, 3: [1, 2]}, ["column name 3", "not a text"]),
    "column without a name": ({"prompt": P2, " ": [1, 2]}, ["column name ' '", "not a text"]),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_tables_are_refused(case):
    columns, fragments = BAD[case]
    with pytest.raises(InputError) as caught:
        PromptTable.from_dataframe(pd.DataFrame(columns))
    message = str(caught.value)
    assert message.startswith("prompt table")
    for fragment in fragments:
        assert fragment in message


def test_two_columns_with_one_name_are_refused():
    frame = pd.DataFrame([["a", 1, 2]], columns=["prompt", "kind", "kind"])
    with pytest.raises(InputError, match="prompt table: column 'kind' is listed twice"):
        PromptTable.from_dataframe(frame)


def test_a_list_is_not_a_frame():
    with pytest.raises(InputError, match="DataFrame, not list"):
        PromptTable.from_dataframe([{"prompt": "a"}])


def test_many_rows_are_counted_not_listed():
    with pytest.raises(InputError, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7 and 92 more"):
        PromptTable.from_dataframe(pd.DataFrame({"prompt": [""] * 100}))
