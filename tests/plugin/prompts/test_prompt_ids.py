"""Default prompt ids: unique within a table, different between tables, the same for the same rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.plugin.prompts.prompt_ids import hashed_ids, numbered_ids
from stratalens.plugin.prompts.stored_ids import with_ids_of_store
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import LabelWarning
from stratalens.store.writing.create import create
from support.stores import HOOK, site_variable

TEXTS = st.lists(st.sampled_from(["a b", "c d", "is Ann", "1:a", "a", ":1"]), min_size=1, max_size=12)


def ids_of(frame: pd.DataFrame) -> list[str]:
    return PromptTable.from_dataframe(frame).labels()["entity"].tolist()


@settings(deadline=None)
@given(TEXTS)
def test_ids_are_unique_and_depend_on_the_rows_alone(prompts: list[str]) -> None:
    frame = pd.DataFrame({"prompt": prompts, "colour": np.arange(len(prompts))})
    ids = ids_of(frame)
    assert len(set(ids)) == len(prompts)
    assert ids_of(frame.assign(colour="red", other=1.5)) == ids
    assert ids_of(frame.iloc[: max(1, len(prompts) // 2)]) == ids[: max(1, len(prompts) // 2)]
    assert set(ids_of(frame.iloc[::-1])) == set(ids)


@pytest.mark.parametrize("column", ["prompt", "entity", "entity_id"])
def test_another_text_gives_another_id(column: str) -> None:
    frame = pd.DataFrame({"prompt": ["Ann and Bo"], "entity": ["Ann"], "entity_id": ["1"]})
    other = {"prompt": "Bo and Ann", "entity": "Bo", "entity_id": "2"}[column]
    assert not set(ids_of(frame)) & set(ids_of(frame.assign(**{column: other})))


def test_lengths_keep_texts_separate() -> None:
    tables = [{"prompt": "a1:b"}, {"prompt": "a", "entity_id": "b"}, {"prompt": "a", "entity_id": "b1:"}]
    assert len({name for table in tables for name in ids_of(pd.DataFrame([table]))}) == 3


def test_rows_with_equal_hashes_get_different_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratalens.plugin.prompts.prompt_ids._HASH_BYTES", 1)
    prompts = np.array([f"prompt {i}" for i in range(200)], dtype=object)
    assert len(set(hashed_ids({"prompt": prompts}).tolist())) == 200


def test_a_store_of_an_older_version_keeps_its_numbers(tmp_path) -> None:
    frame = pd.DataFrame({"prompt": ["is Ann", "is Bo", "is Cy"]})
    ids = numbered_ids(3)
    entities = {"entity": ids, "entity_id": ids, "prompt": frame["prompt"].to_numpy()}
    site = site_variable("resid_post", ["d_model"], [4], "float32", HOOK)
    store = create(tmp_path / "old.zarr", entities=entities, layers=[0], tokens=["last"], variables=[site])
    table = PromptTable.from_dataframe(frame)
    with pytest.warns(LabelWarning, match=r"names its rows r000000, r000001.*prompt_id") as seen:
        first, second = (with_ids_of_store(table, store) for _ in range(2))
    assert len(seen) == 1
    for one in (first, second):
        assert one.labels()["entity"].tolist() == one.labels()["entity_id"].tolist() == ids.tolist()
    assert table.labels()["entity"].tolist() != ids.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = PromptTable.from_dataframe(frame.assign(prompt_id=["x", "y", "z"]))
        assert with_ids_of_store(chosen, store) is chosen
        assert with_ids_of_store(table, None) is table


def test_entities_of_the_table_stay(tmp_path) -> None:
    table = PromptTable.from_dataframe(pd.DataFrame({"prompt": ["is Ann", "is Bo"], "entity": ["Ann", "Bo"]}))
    assert table.with_numbered_ids().labels()["entity_id"].tolist() == ["Ann", "Bo"]
