"""Dask arrays of a store: any selection equals NumPy's; few rows are one task, one chunk is not copied."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
from dask.callbacks import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.store import open_store
from stratalens.store.reading import dask_arrays
from stratalens.store.reading.dask_arrays import StoredArray
from support.stores import make_store

SHAPE = (3, 2, 23, 2, 8)


@pytest.fixture(scope="module")
def path(module_path: Path) -> Path:
    return make_store(
        module_path / "run.zarr", SHAPE[0], SHAPE[1], SHAPE[2], ("a", "b"), SHAPE[4], block_size=4, dtype="bfloat16"
    )


@pytest.fixture(scope="module")
def values(path: Path) -> np.ndarray:
    return open_store(path, chunks=None).resid_post.values


def indices(size: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(-size, size - 1), st.slices(size)) if size else st.slices(size)


@pytest.mark.parametrize("few", [1, 1 << 20])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_selections_of_selections(path: Path, values: np.ndarray, few: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dask_arrays, "FEW_BYTES", few)
        patch.setattr(dask_arrays, "CHUNK_BYTES", 2000)
        array, expected = open_store(path).resid_post.data, values
        for _ in range(3):
            key = [data.draw(indices(size)) for size in array.shape]
            rows = data.draw(st.integers(-1, len(key) - 1))
            if rows >= 0 and expected.shape[rows]:
                key[rows] = data.draw(st.lists(st.integers(0, expected.shape[rows] - 1), min_size=1, max_size=9))
            lists = [axis for axis, part in enumerate(key) if isinstance(part, list)]
            orthogonal = expected
            for axis in reversed(range(len(key))):
                orthogonal = orthogonal[(slice(None),) * axis + (key[axis],)]
            array, expected = array[tuple(key)], orthogonal
            assert array.shape == expected.shape
            np.testing.assert_array_equal(array.compute(scheduler="synchronous"), expected)
            if lists or expected.size == 0:
                break


def test_few_rows_are_one_task(path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    site = open_store(path).resid_post
    assert isinstance(site.data, StoredArray)
    assert site.data.npartitions == SHAPE[0] * SHAPE[1]
    one = site.isel(entity=5)
    assert isinstance(one.data, StoredArray)
    assert one.data.npartitions == 1
    np.testing.assert_array_equal(one, values[:, :, 5])
    monkeypatch.setattr(dask_arrays, "FEW_BYTES", 100)
    assert site.isel(entity=5).data.npartitions == SHAPE[0] * SHAPE[1]
    np.testing.assert_array_equal(site.isel(entity=[9, 3]), values[:, :, [9, 3]])  # out of order: dask selects


def test_few_values_ask_no_scheduler(path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_arrays, "_results_are_shared", lambda: False)
    site = open_store(path).resid_post
    tasks: list[Any] = []
    with dask.config.set(scheduler=lambda graph, keys, **_: tasks.append(keys) or dask.get(graph, keys)):
        np.testing.assert_array_equal(site.isel(stage=1, entity=5).values, values[1, :, 5])
        assert np.asarray(site.isel(entity=[3, 9]).data, dtype=np.float64).dtype == np.float64
        assert not tasks
        monkeypatch.setattr(dask_arrays, "FEW_BYTES", 100)
        np.testing.assert_array_equal(site.isel(stage=1, entity=5).values, values[1, :, 5])
        assert len(tasks) == 1
        monkeypatch.undo()
        with Callback():  # a progress bar or a profiler has to see the task
            np.testing.assert_array_equal(site.isel(stage=1, entity=5).values, values[1, :, 5])
        assert len(tasks) == 2


def test_names_follow_the_content(path: Path) -> None:
    first, second = open_store(path).resid_post, open_store(path).resid_post
    assert first.data.name == second.data.name
    assert first[1].data.name == second.isel(stage=1).data.name != first.data.name
    assert first[1][0].data.name == second[1, 0].data.name
    assert first[0].data.name != first[1].data.name


def test_computed_and_persisted_arrays_are_plain_dask_arrays(path: Path, values: np.ndarray) -> None:
    array = open_store(path).resid_post.data[1, 0]
    for other in (array + 1, array.rechunk((5, 1, 8)), array.persist(), array[None], array[array[:, 0, 0] > 0]):
        assert not isinstance(other, StoredArray)
    persisted = array.persist()
    persisted.compute()[:] = 0  # of a copy
    np.testing.assert_array_equal(persisted, values[1, 0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)), values[1, 0])
    np.testing.assert_array_equal((array + 1).compute(), values[1, 0] + 1)
    np.testing.assert_array_equal(dask.array.concatenate([array, array]), np.concatenate([values[1, 0]] * 2))


def test_a_single_chunk_is_not_copied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_arrays, "_results_are_shared", lambda: False)
    read: list[Any] = []
    whole = dask_arrays.SelectedArray.select

    def select(self: Any, selections: Any) -> Any:
        read.append(whole(self, selections))
        return read[-1]

    monkeypatch.setattr(dask_arrays.SelectedArray, "select", select)
    array = open_store(path).resid_post.data[0, 0]
    assert np.shares_memory(array.compute(scheduler="synchronous"), read[-1])
    monkeypatch.undo()
    with Callback():  # a callback may keep the result
        assert dask_arrays._results_are_shared()
