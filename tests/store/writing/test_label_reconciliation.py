"""Orders of categories live in the store; numbers of an old store and the same numbers as text are one label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import create, open_store, relabel, verify_store
from stratalens.store.errors import InputError, LabelWarning, MismatchError
from stratalens.store.format.schema import Variable
from support.stores import add_stage, make_store

SITE = Variable("x", ("stage", "entity", "d"), (2,), attrs={"kind": "site"})
IDS = ["a", "b", "c", "d"]
SIZES = ["mid", "lo", "hi", ""]
ORDER = ("lo", "mid", "hi", "huge")


def make(path: Path, label_orders: Any = None, **labels: Any) -> Path:
    create(
        path,
        entities={"entity": IDS, "entity_id": IDS, **labels},
        layers=[],
        tokens=["last"],
        variables=[SITE],
        label_orders=label_orders,
    )
    return path


def order_of(path: Path, name: str = "size") -> Any:
    ours, plain = open_store(path)[name].attrs, xr.open_zarr(path)[name].attrs
    assert ours.get("ordered_categories") == plain.get("ordered_categories")
    return ours.get("ordered_categories")


def test_a_store_keeps_the_order_of_categories(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zarr", {"size": ORDER}, size=SIZES)
    assert order_of(path) == list(ORDER)
    assert verify_store(path).ok
    ds = open_store(path)
    for part in (ds.isel(entity=[0, 2]), ds.sel(entity="a"), ds[["x"]], ds.transpose(..., "entity"), ds.copy()):
        assert part["size"].attrs["ordered_categories"] == list(ORDER)
    add_stage(make_store(tmp_path / "b.zarr", 2, entities=4), "s2", 2)
    assert "label_orders" not in (tmp_path / "b.zarr" / "zarr.json").read_text()


def test_relabelling_keeps_replaces_adds_and_drops_orders(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zarr", {"size": ORDER}, size=SIZES)
    assert relabel(path, {"entity": IDS, "size": SIZES}) == {}
    assert relabel(path, {"entity": IDS, "size": ["lo"] * 4}) == {"size": 3}  # a table without an order
    assert order_of(path) == list(ORDER)
    assert relabel(path, {"entity": IDS, "size": ["lo"] * 4}, label_orders={"size": ("hi", "lo")}) == {"size": 0}
    assert order_of(path) == ["hi", "lo"]
    assert relabel(path, {"entity": IDS, "size": ["other"] * 4}) == {"size": 4}  # which the order does not have
    assert order_of(path) is None
    colours = {"entity": IDS, "colour": [3, 1, 2, 3]}
    assert relabel(path, colours, label_orders={"colour": ("3", "1", "2")}) == {"colour": 4}
    assert order_of(path, "colour") == ["3", "1", "2"]
    assert relabel(path, {"entity": IDS}, drop=["colour"]) == {"colour": 4}
    assert "label_orders" not in json.loads((path / "zarr.json").read_text())["attributes"]["stratalens"]
    assert verify_store(path).ok


@pytest.mark.parametrize(
    ("orders", "says"),
    [
        ({"width": ORDER}, "'width' refers to no label column"),
        ({"size": ("lo", "mid")}, "label 'hi' of 'size' is not among"),
        ({"size": ("lo", "lo", "mid", "hi")}, "lists a category twice"),
    ],
)
def test_wrong_orders_are_refused(tmp_path: Path, orders: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make(tmp_path / "a.zarr", orders, size=SIZES)
    assert not (tmp_path / "a.zarr").exists()


def test_a_capture_keeps_the_order_of_the_store(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zarr", {"size": ORDER}, size=SIZES)
    make(path, size=SIZES)  # a table from a csv file
    make(path, {"size": ORDER}, size=SIZES)
    with pytest.warns(LabelWarning, match=r"'size': the table orders .* in another way .*relabel"):
        make(path, {"size": ORDER[::-1]}, size=SIZES)
    assert order_of(path) == list(ORDER)


def test_joined_stores_have_the_order_that_they_agree_on(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a.zarr", 2, entities=4)
    ids = [f"n{i}" for i in range(8)]
    second = make_store(tmp_path / "b.zarr", 2, entities=8, labels={"entity": ids})
    relabel(first, {"entity": open_store(first).entity.values, "size": ["lo"] * 4}, label_orders={"size": ORDER})
    relabel(second, {"entity": ids, "size": ["hi"] * 8}, label_orders={"size": ORDER})
    assert open_store([first, second])["size"].attrs["ordered_categories"] == list(ORDER)
    relabel(second, {"entity": ids, "size": ["hi"] * 8}, label_orders={"size": ORDER[::-1]})
    with pytest.warns(LabelWarning, match="order the categories of 'size' in different ways"):
        joined = open_store([first, second])
    assert "ordered_categories" not in joined["size"].attrs


@pytest.mark.parametrize(
    ("stored", "texts"),
    [
        (np.array([7, 10, 7, -1]), ["007", "10", "+7", "-1"]),
        (np.array([1.0, 1000.0, np.nan, 0.1]), ["1.0", "1e3", "", "0.10"]),
        (np.array([True, False, True, True]), ["true", "False", "TRUE", "True"]),
    ],
)
def test_text_that_an_older_version_read_as_numbers(tmp_path: Path, stored: np.ndarray, texts: list[str]) -> None:
    path = make(tmp_path / "a.zarr", size=stored)
    before = (path / "zarr.json").read_bytes()
    with pytest.warns(LabelWarning, match=r"label column 'size': .* as numbers, as an older version read it"):
        make(path, size=texts)
    assert (path / "zarr.json").read_bytes() == before
    with pytest.raises(MismatchError, match="'size'"):
        make(path, size=[*texts[:3], "other"])
    relabel(path, {"entity": IDS, "size": texts})
    assert open_store(path)["size"].values.tolist() == texts
    make(path, size=texts)
