"""relabel changes labels and no activations; a table that does not fit raises and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, open_store, relabel, verify_store
from stratalens.store.errors import InputError, StoreBusyError
from support.stores import add_stage, make_store
from support.synthetic_writer import content, data_files, unchanged


def labels_of(path: Path) -> dict[str, list[Any]]:
    """Return the label columns; open_store and xr.open_zarr must agree on them."""
    ours, plain = open_store(path), xr.open_zarr(path)
    columns = {}
    for name in map(str, ours.coords):
        if ours[name].dims == ("entity",):
            columns[name] = ours[name].values.tolist()
            assert columns[name] == plain[name].values.tolist(), name
    return columns


def test_labels_are_changed_and_activations_are_not(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 3, entities=10, block_size=4)
    before, labels, key = data_files(path), labels_of(path), open_store(path).attrs["stratalens_key"]
    data = {k: v for k, v in before.items() if k.count(".") > 1}
    ids = labels["entity"][::-1]  # in another row order
    keys = {key}
    for value in ("one", "two", "three"):
        table = {"entity": ids, "trained_stage": [f"{value} {i}" for i in ids], "score": np.arange(10.0)[::-1]}
        changed = relabel(path, table)
        assert changed == {"trained_stage": 10} | ({"score": 10} if value == "one" else {})
        now = labels_of(path)
        assert now["trained_stage"] == [f"{value} {i}" for i in labels["entity"]]
        assert now["score"] == list(range(10))
        assert {k: now[k] for k in labels if k != "trained_stage"} == {
            k: v for k, v in labels.items() if k != "trained_stage"
        }
        unchanged(data, data_files(path))
        assert verify_store(path).ok
        keys.add(open_store(path).attrs["stratalens_key"])
    assert len(keys) == 4
    assert relabel(path, {"entity": ids}) == {}
    assert relabel(path, {"entity": ids}, drop=["score"]) == {"score": 10}
    assert "score" not in labels_of(path)
    assert relabel(path, {"entity": labels["entity"], "trained_stage": labels["trained_stage"]}) == {
        "trained_stage": 10
    }
    assert labels_of(path) == labels
    assert not (path / "score").exists()  # the next change removes the files of a dropped column
    add_stage(path, "s3", 3)
    assert labels_of(path) == labels
    assert verify_store(path).ok


@pytest.mark.parametrize(
    ("table", "drop", "says"),
    [
        ({"trained_stage": ["x"] * 10}, (), "no 'entity'"),
        ({"entity": ["r000000"] * 10}, (), "must be unique"),
        (
            {"entity": [f"r{i:06d}" for i in range(9)]},
            (),
            "number of prompts differs .the table has no 'r000009'.*10.*9",
        ),
        (
            {"entity": [f"r{i:06d}" for i in range(1, 11)]},
            (),
            "prompt ids differs .*has no 'r000000'; 'r000010' is new",
        ),
        ({"entity": [f"r{i:06d}" for i in range(10)], "prompt": ["a"] * 10}, (), "not those that were run"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "answer": ["a"] * 10}, (), "recorded without answers"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "resid_post": ["a"] * 10}, (), "name of an array"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "stage": ["a"] * 10}, (), "name of a dim"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "x": ["a"] * 9}, (), "'x' has 9 values"),
        ({"entity": [f"r{i:06d}" for i in range(10)]}, ("entity_id",), "cannot be dropped"),
        ({"entity": [f"r{i:06d}" for i in range(10)]}, ("templates",), "did you mean 'template'"),
        (
            {"entity": [f"r{i:06d}" for i in range(10)], "template": ["a"] * 10},
            ("template",),
            "in the table and in drop",
        ),
    ],
)
def test_labels_that_are_refused_change_nothing(tmp_path: Path, table: Any, drop: Any, says: str) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=10)
    before = content(path)
    with pytest.raises(InputError, match=says):
        relabel(path, table, drop=drop)
    assert content(path) == before


def test_labels_wait_for_writers(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=10)
    for shared in (False, True):
        with ActivationWriter(path, shared=shared), pytest.raises(StoreBusyError, match="being written"):
            relabel(path, {"entity": [f"r{i:06d}" for i in range(10)], "x": np.arange(10)})
