"""open_store: dtypes, stage order, joined stores, keys, schedulers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import ml_dtypes
import numpy as np
import pytest
import xarray as xr

from stratalens.store import open_store
from stratalens.store.errors import InputError, MismatchError
from stratalens.store.reading.slabs import SlabReader
from support.stores import make_store


def test_forms_of_bfloat16(stores: dict[str, Path]) -> None:
    bits = open_store(stores["bfloat16"], dtype="bits").resid_post
    half = open_store(stores["bfloat16"], dtype="bfloat16", chunks=None).resid_post
    wide = open_store(stores["bfloat16"]).resid_post
    assert (bits.dtype, half.dtype, wide.dtype) == (np.uint16, ml_dtypes.bfloat16, np.float32)
    np.testing.assert_array_equal(half.values.view(np.uint16), bits.values)
    np.testing.assert_array_equal(half.values.astype(np.float32), wide.values)


def test_plain_xarray_shows_labels_as_coordinates(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=4, labels={"prompt": list("abcd"), "with blank": [1, 2, 3, 4]})
    plain, ours = xr.open_zarr(path), open_store(path)
    assert "coordinates" not in plain.attrs
    assert set(ours.coords) - set(plain.coords) == {"with blank"}  # CF's list of names is cut at blanks
    np.testing.assert_array_equal(plain["with blank"], ours["with blank"])
    assert plain.resid_post.coords["prompt"].values.tolist() == list("abcd")


def test_opening_reads_no_data(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("data was read")

    with monkeypatch.context() as patch:
        patch.setattr(SlabReader, "read", refuse)
        for chunks in ("auto", None):
            ds = open_store(stores["float32"], chunks=chunks)  # type: ignore[arg-type]
            ds.resid_post.isel(layer=0).sel(stage="s1")
            repr(ds)


def test_stages_come_in_training_order(tmp_path: Path) -> None:
    from support.stores import add_stage

    path = make_store(tmp_path / "run.zarr", ["a", "b"], stop_before="b", entities=6)
    add_stage(path, "late", 9, seed=1)
    add_stage(path, "middle", 5, seed=2)
    ds = open_store(path)
    assert ds.stage.values.tolist() == ["a", "middle", "late"]
    assert ds.stage_order.values.tolist() == [0, 5, 9]
    plain = xr.open_zarr(path)
    np.testing.assert_array_equal(plain.resid_post.sel(stage="middle"), ds.resid_post.sel(stage="middle"))
    np.testing.assert_array_equal(ds.recorded.sel(stage="late"), np.ones(6, bool))


def test_readers_travel_to_other_processes(stores: dict[str, Path]) -> None:
    ds = open_store(stores["bfloat16"], chunks=None)
    again = pickle.loads(pickle.dumps(ds))
    xr.testing.assert_identical(again.load(), ds.load())


def test_schedulers_agree(stores: dict[str, Path]) -> None:
    ds = open_store(stores["bfloat16"])
    with dask.config.set(scheduler="synchronous"):
        one_thread = ds.resid_post.values
    with dask.config.set(scheduler="threads", num_workers=4):
        np.testing.assert_array_equal(ds.resid_post.values, one_thread)


def test_joined_along_entity(tmp_path: Path) -> None:
    def names(offset: int) -> dict[str, Any]:
        return {"entity": [f"p{offset + i}" for i in range(9)]}

    a = make_store(tmp_path / "a.zarr", entities=9, labels=names(0), block_size=4, dtype="bfloat16")
    b = make_store(
        tmp_path / "b.zarr",
        entities=9,
        labels=names(100),
        block_size=5,
        dtype="bfloat16",
        seed=3,
        provenance={"token_ids_digest": "other"},
    )
    for chunks in ("auto", None):
        both = open_store([a, b], chunks=chunks)  # type: ignore[arg-type]
        left, right = open_store(a), open_store(b)
        assert both.sizes["entity"] == 18
        for name in ("resid_post", "resid_post_l2", "loss", "recorded", "exposure"):
            np.testing.assert_array_equal(both[name].isel(entity=slice(0, 9)).values, left[name].values)
            np.testing.assert_array_equal(both[name].isel(entity=slice(9, 18)).values, right[name].values)
        index = np.array([17, 3, 9, 0, 8])
        np.testing.assert_array_equal(both.resid_post.isel(entity=index).values, both.resid_post.values[:, :, index])
        assert both.entity.values.tolist() == [*left.entity.values, *right.entity.values]
    with pytest.raises(MismatchError, match="'p0' is in more than one"):
        open_store([a, a])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": [0, 2]}, "layers differs"),
        ({"tokens": ("first",)}, "positions differs"),
        ({"dtype": "float16"}, "variables differs"),
        ({"stages": ["untrained", "s1"]}, "stages differs"),
        ({"provenance": {"tokenizer_fingerprint": "t1"}}, "tokenizer_fingerprint differs"),
        ({"labels": {"extra": list(range(6))}}, "label columns differs"),
    ],
)
def test_stores_that_do_not_belong_together(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    a = make_store(tmp_path / "a.zarr", entities=6)
    extra = {"entity": [f"other{i}" for i in range(6)], **change.pop("labels", {})}
    b = make_store(tmp_path / "b.zarr", entities=6, labels=extra, **change)
    with pytest.raises(MismatchError, match=says):
        open_store([a, b])


def test_key_follows_the_content(tmp_path: Path) -> None:
    from support.stores import add_stage

    paths = [make_store(tmp_path / f"{i}.zarr", entities=6, block_size=4) for i in range(2)]
    keys = [open_store(p).attrs["stratalens_key"] for p in paths]
    assert keys[0] == keys[1]
    add_stage(paths[1], "more", 7, seed=0)
    assert open_store(paths[1]).attrs["stratalens_key"] != keys[0]
    other = make_store(tmp_path / "other.zarr", entities=6, block_size=4, seed=5)
    assert open_store(other).attrs["stratalens_key"] != keys[0]


@pytest.mark.parametrize("arguments", [{"dtype": "float64"}, {"chunks": 3}])
def test_unknown_options(stores: dict[str, Path], arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="use"):
        open_store(stores["float32"], **arguments)
