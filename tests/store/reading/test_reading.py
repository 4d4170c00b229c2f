"""Reading: any selection equals NumPy's on the same values, lazily, with and without dask and verification."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.store import open_store
from stratalens.store.errors import InputError, MismatchError
from stratalens.store.reading import chunks as chunks_module
from stratalens.store.reading.slabs import SlabReader
from stratalens.store.storage.local import ReadHandle
from support.stores import make_store


@pytest.fixture(scope="module")
def stores(module_path: Path) -> dict[str, Path]:
    root = module_path
    return {
        dtype: make_store(
            root / f"{dtype}.zarr",
            3,
            [1, 3, 5],
            23,
            tuple(range(-7, 0)) if dtype == "float16" else ("last", "-2", "-3"),
            5,
            dtype,
            block_size=7,
            skip={"s1": [0, 9]},
            prompts_per_entity=2,
        )
        for dtype in ("float32", "float16", "bfloat16")
    }


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
    found = {dtype: xr.open_zarr(path)[SELECTED].load() for dtype, path in stores.items()}
    bits = found["bfloat16"].resid_post
    found["bfloat16"]["resid_post"] = bits.copy(data=bits.values.view(ml_dtypes.bfloat16).astype(np.float32))
    return found


SELECTED = ["resid_post", "resid_post_l2", "logit_percentile", "loss", "answer_loss"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_selections_equal_numpy(
    opened: dict[tuple[str, bool, bool], xr.Dataset], plain: dict[str, xr.Dataset], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(sorted(opened)))
    array = opened[case][data.draw(st.sampled_from(SELECTED))]
    key = {d: data.draw(one(n)) for d, n in array.sizes.items() if data.draw(st.booleans())}
    np.testing.assert_array_equal(array.isel(key).values, plain[case[0]][array.name].variable.isel(key).values)


def test_forms_of_bfloat16(stores: dict[str, Path]) -> None:
    bits = open_store(stores["bfloat16"], dtype="bits").resid_post
    half = open_store(stores["bfloat16"], dtype="bfloat16", chunks=None).resid_post
    wide = open_store(stores["bfloat16"]).resid_post
    assert (bits.dtype, half.dtype, wide.dtype) == (np.uint16, ml_dtypes.bfloat16, np.float32)
    np.testing.assert_array_equal(half.values.view(np.uint16), bits.values)
    np.testing.assert_array_equal(half.values.astype(np.float32), wide.values)


def test_widening_is_exact_for_every_bit_pattern() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.empty(bits.shape, dtype=np.float32)
    chunks_module.bfloat16_to_float32(bits, out)
    np.testing.assert_array_equal(out.view(np.uint32), bits.astype(np.uint32) << 16)  # NaNs and their payloads, too


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


def test_exposure(stores: dict[str, Path]) -> None:
    ds = open_store(stores["float32"])
    order = dict(zip(ds.stage.values.tolist(), ds.stage_order.values.tolist(), strict=True))
    trained = np.array([order[t] for t in ds.trained_stage.values])
    np.testing.assert_array_equal(ds.exposure.values, ds.stage_order.values[:, None] - trained[None])


def test_exposure_is_unknown_where_the_training_stage_is(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=4, labels={"trained_stage": ["s1", "", "s7", "untrained"]})
    np.testing.assert_array_equal(open_store(path).exposure.values, [[-1, np.nan, np.nan, 0], [0, np.nan, np.nan, 1]])


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
    b = make_store(tmp_path / "b.zarr", entities=9, labels=names(100), block_size=5, dtype="bfloat16", seed=3,
                   provenance={"token_ids_digest": "other"})  # fmt: skip
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


@pytest.mark.parametrize("gap", [0, 100, 1 << 12])
@pytest.mark.parametrize("verify", [False, True])
def test_scattered_rows_are_read_alone(
    stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch, gap: int, verify: bool
) -> None:
    """Rows of chunks that need no check: whatever lies between them, and however few layers fit into a piece."""
    monkeypatch.setattr(ReadHandle, "gap", gap)
    monkeypatch.setattr(chunks_module, "PIECE", 200)
    dice = np.random.default_rng(0)
    counted: list[int] = []
    pieces = ReadHandle.read_pieces

    def counting(self: ReadHandle, memory: np.ndarray, wanted: Any) -> bool:
        counted.append(len(wanted))
        return pieces(self, memory, wanted)

    monkeypatch.setattr(ReadHandle, "read_pieces", counting)
    for path in stores.values():
        site = open_store(path, chunks=None, verify=verify).resid_post
        whole = site.values
        before = len(counted)
        for _ in range(30):
            rows = dice.integers(0, 23, dice.integers(1, 5))
            tokens = dice.permutation(whole.shape[3])[: dice.integers(1, 4)]
            layers = dice.permutation(3)[: dice.integers(1, 4)]
            found = site.isel(layer=layers, entity=rows, token=tokens).values
            np.testing.assert_array_equal(found, whole[:, layers][:, :, rows][:, :, :, tokens])
        assert len(counted) > before, "nothing was read row by row"
