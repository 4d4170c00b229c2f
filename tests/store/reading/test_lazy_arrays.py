"""Lazy arrays: any selection equals NumPy's on the same values, with and without dask and verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.store import open_store
from support.stores import make_store

SELECTED = ["resid_post", "resid_post_l2", "logit_percentile", "loss", "answer_loss"]


def one(size: int) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(-size, size - 1),
        st.lists(st.integers(-size, size - 1), max_size=size + 2).map(lambda v: np.array(v, dtype=int)),
        st.slices(size),
        st.just(slice(None)),
    )


@pytest.fixture(scope="module")
def opened(stores: dict[str, Path]) -> dict[tuple[str, bool, bool], xr.Dataset]:
    return {
        (dtype, verify, auto): open_store(path, chunks="auto" if auto else None, verify=verify)
        for dtype, path in stores.items()
        for verify in (False, True)
        for auto in (False, True)
    }


@pytest.fixture(scope="module")
def plain(stores: dict[str, Path]) -> dict[str, xr.Dataset]:
    datasets = {dtype: xr.open_zarr(path)[SELECTED].load() for dtype, path in stores.items()}
    bits = datasets["bfloat16"].resid_post
    datasets["bfloat16"]["resid_post"] = bits.copy(data=bits.values.view(ml_dtypes.bfloat16).astype(np.float32))
    return datasets


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_selections_equal_numpy(
    opened: dict[tuple[str, bool, bool], xr.Dataset], plain: dict[str, xr.Dataset], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(sorted(opened)))
    array = opened[case][data.draw(st.sampled_from(SELECTED))]
    key = {d: data.draw(one(n)) for d, n in array.sizes.items() if data.draw(st.booleans())}
    np.testing.assert_array_equal(array.isel(key).values, plain[case[0]][array.name].variable.isel(key).values)


def test_exposure(stores: dict[str, Path]) -> None:
    ds = open_store(stores["float32"])
    order = dict(zip(ds.stage.values.tolist(), ds.stage_order.values.tolist(), strict=True))
    trained = np.array([order[t] for t in ds.trained_stage.values])
    np.testing.assert_array_equal(ds.exposure.values, ds.stage_order.values[:, None] - trained[None])


def test_exposure_is_unknown_where_the_training_stage_is(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=4, labels={"trained_stage": ["s1", "", "s7", "untrained"]})
    np.testing.assert_array_equal(open_store(path).exposure.values, [[-1, np.nan, np.nan, 0], [0, np.nan, np.nan, 1]])


@pytest.mark.parametrize("dtype", [np.int64, np.float64, object])
def test_exposure_matches_numbers_with_stages_by_their_text(tmp_path: Path, dtype: type) -> None:
    labels = np.array([512, 1, 7, 0]).astype(str if dtype is object else dtype).astype(dtype)
    path = make_store(tmp_path / "run.zarr", ["1", "512"], entities=4, labels={"trained_stage": labels})
    np.testing.assert_array_equal(open_store(path).exposure.values, [[-1, 0, np.nan, np.nan], [0, 1, np.nan, np.nan]])


def test_large_label_columns_stay_lazy(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from stratalens.store.reading import open as reader

    eager = open_store(stores["float32"])
    monkeypatch.setattr(reader, "EAGER_LABELS", 3)
    ds = open_store(stores["float32"])
    assert "entity" not in ds.indexes
    assert "entity" in eager.indexes
    for name in ("entity", "entity_id", "trained_stage"):
        np.testing.assert_array_equal(ds[name].values, eager[name].values)
    assert ds.isel(entity=[5, 2]).entity.values.tolist() == ["r000005", "r000002"]
    indexed = ds.set_xindex("entity")
    xr.testing.assert_identical(
        indexed.resid_post.sel(entity="r000011").load(), eager.resid_post.sel(entity="r000011").load()
    )
