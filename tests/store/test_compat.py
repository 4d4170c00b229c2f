"""Interfaces of xarray, dask and zarr that the store depends on; a failing test names the one that changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.callbacks import Callback
from zarr.buffer import default_buffer_prototype

from stratalens.store import compat, open_store
from stratalens.store.reading import dask_arrays
from stratalens.store.reading.lazy_arrays import VariableArray
from stratalens.store.reading.selection import stored_selection
from support.stores import make_store


@pytest.fixture(scope="module")
def path(module_path: Path) -> Path:
    return make_store(module_path / "run.zarr", 3, 2, 11, ("a", "b"), 8, block_size=4, dtype="bfloat16")


def test_lazy_selection(path: Path) -> None:
    site = open_store(path, chunks=None).resid_post
    narrowed = site.isel(stage=1).isel(entity=[9, 2])
    selection = compat.lazy_selection(narrowed.variable)
    assert selection is not None, "xarray changed Variable._data or its wrapper classes"
    array, key = selection
    assert isinstance(array, VariableArray)
    np.testing.assert_array_equal(site.values[1][:, [9, 2]], array.select(array.normalize_key(key)[0])[0])
    assert compat.lazy_selection(site.load().variable) is None
    assert compat.lazy_selection(xr.Variable("x", [1, 2])) is None
    assert compat.lazy_selection(xr.Variable("x", dask.array.zeros(2))) is None


def test_is_in_memory(path: Path) -> None:
    site = open_store(path, chunks=None).resid_post
    assert not compat.is_in_memory(site.variable), "xarray changed Variable._in_memory"
    assert not compat.is_in_memory(site.isel(stage=0).variable)
    assert compat.is_in_memory(site.isel(stage=0).load().variable)
    assert compat.is_in_memory(xr.Variable("x", [1, 2]))


def test_has_dask_callbacks() -> None:
    assert not compat.has_dask_callbacks()
    with Callback():
        assert compat.has_dask_callbacks(), "dask changed Callback.active"
    assert not compat.has_dask_callbacks()


def test_subclass_of_dask_array_works() -> None:
    dask_arrays.subclass_works.cache_clear()
    assert dask_arrays.subclass_works(), "dask.array.Array can no longer be subclassed: reads of few rows are slow"


@pytest.mark.parametrize("broken", ["__init__", "__dask_postcompute__"])
def test_plain_dask_arrays_replace_a_subclass_that_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """With a version of dask in which the subclass raises, a store opens with plain dask arrays and the same values."""
    expected = open_store(path).resid_post
    assert isinstance(expected.data, dask_arrays.StoredArray)

    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("another version of dask")

    monkeypatch.setattr(dask_arrays.StoredArray, broken, fail, raising=False)
    dask_arrays.subclass_works.cache_clear()
    try:
        plain = open_store(path).resid_post
        assert type(plain.data) is dask.array.Array
        assert stored_selection(plain.variable) is None
        np.testing.assert_array_equal(plain.isel(entity=[9, 2]).values, expected.values[:, :, [9, 2]])
    finally:
        monkeypatch.undo()
        dask_arrays.subclass_works.cache_clear()


def test_public_dask_interface_of_one_task() -> None:
    """The protocol of dask collections, by which slabs are computed without a copy."""
    array = dask.array.ones((2, 3), chunks=-1) + 1
    keys = [(array.name, 0, 0)]
    assert list(dask.core.flatten(array.__dask_keys__())) == keys
    (values,) = dask.get(array.__dask_optimize__(array.__dask_graph__(), keys), keys)
    np.testing.assert_array_equal(values, np.full((2, 3), 2.0))


def test_public_zarr_interface_of_raw_files() -> None:
    """`zarr.buffer` and the store methods by which icechunk repositories get files unchanged."""
    store, prototype = zarr.storage.MemoryStore(), default_buffer_prototype()

    async def copy() -> bytes:
        await store.set("a/c/0", prototype.buffer.from_bytes(b"raw"))
        value = await store.get("a/c/0", prototype)
        assert value is not None
        return value.to_bytes()

    assert asyncio.run(copy()) == b"raw"
