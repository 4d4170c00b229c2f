"""Sites scaled to int8: the error is bounded, measured for each row, and shown by the store and by `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stratalens.store import ActivationWriter, create, info, open_store, verify_store
from stratalens.store.errors import InputError, MismatchError, NonFiniteError
from stratalens.store.format.int8 import MISSING, quantise, restore
from stratalens.store.format.layout import forecast
from stratalens.store.format.schema import site_variable
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at
from support.stores import activations, add_stage, make_labels, make_store
from support.synthetic_writer import content

HEADS = site_variable("z", ["head", "d_head"], [2, 3], "int8", "blocks.{layer}.attn.hook_z")
EMBED = site_variable("embed", ["d_model"], [8], "int8", "embed.hook_out")
SHAPE: dict[str, Any] = {
    "stages": 2, "layers": [0, 2, 5], "entities": 23, "d_model": 8, "block_size": 7, "skip": {"s1": [0, 9]},
}  # fmt: skip


def matrices(width: int = 32) -> st.SearchStrategy[Any]:
    finite = st.floats(allow_nan=False, allow_infinity=False, width=width)
    return arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=7), elements=finite)


@settings(max_examples=200, deadline=None)
@given(matrices())
def test_no_value_is_off_by_more_than_half_a_scale(values: np.ndarray) -> None:
    numbers, scale, error = quantise(values, "x")
    assert numbers.dtype == np.int8
    assert scale.dtype == error.dtype == np.float32
    back = restore(numbers, scale)
    assert np.isfinite(back).all()
    assert numbers.min() >= -127
    wide = values.astype(np.float64)
    steps = scale[..., None].astype(np.float64)
    # float32 rounds the quotient and the product, in addition to the half step.
    assert (np.abs(back - wide) <= steps * (0.5 + 1e-4) + np.abs(wide) * 2**-23).all()
    norms = np.linalg.norm(wide, axis=-1)
    lost = np.linalg.norm(wide - numbers * steps, axis=-1)
    expected = np.divide(lost, norms, out=np.zeros_like(lost), where=norms > 1e-300)
    np.testing.assert_allclose(error, expected, rtol=1e-3, atol=1e-6)
    assert (error[norms == 0] == 0).all()
    again = quantise(back, "x")[0]
    np.testing.assert_array_equal(again, numbers), "restored values are stored without further loss"


def test_missing_rows_and_rows_that_int8_cannot_hold() -> None:
    values = np.array([[1, 2], [np.nan, np.nan], [0, 0]], dtype=np.float32)
    numbers, scale, error = quantise(values, "x")
    assert numbers[1].tolist() == [MISSING, MISSING]
    assert np.isnan(scale).tolist() == np.isnan(error).tolist() == [False, True, False]
    assert restore(numbers, scale)[2].tolist() == [0, 0]
    for bad in ([np.nan, 1], [np.inf, 1], [np.nan, np.inf]):
        with pytest.raises(NonFiniteError, match=r"here: .* infinity, or NaN together with numbers.*dtype='float32'"):
            quantise(np.array([bad], dtype=np.float32), "here")


@pytest.fixture(scope="module", params=[("last", "-2"), tuple(range(-5, 0))], ids=["named", "all"])
def store(request: pytest.FixtureRequest, module_path: Path) -> Path:
    path = module_path / f"{len(request.param)}.zarr"
    return make_store(path, tokens=request.param, dtype="int8", extra=[HEADS, EMBED], **SHAPE)


def source_values(path: Path, stage: str) -> np.ndarray:
    """Values that make_store wrote to resid_post, dims (layer, entity, token, d_model); skipped rows are NaN."""
    tokens = load(storage_at(path)).tokens
    names = ["untrained", "s1"]
    order = {name: i for i, name in enumerate(names)}
    rows = np.arange(SHAPE["entities"])
    values = activations(
        make_labels(len(rows), names), stage, order, SHAPE["layers"], tokens, 8, rows, planted=0.0, seed=0
    )
    values[:, SHAPE["skip"].get(stage, [])] = np.nan
    return values


@pytest.mark.parametrize("chunks", ["auto", None])
def test_reads_as_float32(store: Path, chunks: Any) -> None:
    ds, bits = open_store(store, chunks=chunks), open_store(store, chunks=chunks, dtype="bits")
    assert ds.resid_post.dtype == ds.z.dtype == ds.embed.dtype == np.float32
    assert bits.resid_post.dtype == np.int8
    for number, stage in enumerate(["untrained", "s1"]):
        values = source_values(store, stage)
        expected, scale, error = quantise(values, "x")
        np.testing.assert_array_equal(bits.resid_post[number].values, expected)
        np.testing.assert_array_equal(ds.resid_post_scale[number].values, scale)
        np.testing.assert_array_equal(ds.resid_post_error[number].values, error)
        np.testing.assert_array_equal(ds.resid_post[number].values, restore(expected, scale))
    whole = ds.resid_post.values
    for key in (
        {"entity": 5}, {"entity": [22, 1, 8], "layer": 1}, {"token": 0, "entity": slice(3, 19, 2)},
        {"stage": 1, "layer": [2, 0], "d_model": [4, 1]}, {"d_model": 3},
    ):  # fmt: skip
        some = ds.resid_post.isel(key)
        np.testing.assert_array_equal(some.values, xr.DataArray(whole, dims=ds.resid_post.dims).isel(key).values)
    assert ds.z_scale.dims == ("stage", "layer", "entity", "token", "head")
    assert np.isnan(ds.resid_post.sel(stage="s1").isel(entity=[0, 9]).values).all()
    assert ds.recorded.values.sum() == 2 * 23 - 2
    assert verify_store(store).ok


def test_the_measured_error_is_in_the_store_and_in_info(store: Path) -> None:
    errors = open_store(store).resid_post_error.values.astype(np.float64)
    errors = errors[~np.isnan(errors)]
    assert 0 < errors.mean() < errors.max() < 0.02
    described = info(store)["variables"]["resid_post"]
    plain = xr.open_zarr(store)
    for attrs in (described, open_store(store).resid_post.attrs, plain.resid_post.attrs):
        assert attrs["max_relative_error"] == errors.max()
        assert attrs["mean_relative_error"] == pytest.approx(errors.mean(), rel=1e-9)
    assert "max_relative_error" not in info(store)["variables"]["resid_post_l2"]
    # A plain reader can restore the values.
    numbers, scale = zarr.open_array(store / "resid_post", mode="r"), plain[plain.resid_post.attrs["scale"]]
    values = numbers[...].astype(np.float32) * scale.values[..., None]
    np.testing.assert_array_equal(values, open_store(store).resid_post.values)


def write(path: Path, blocks: int | None = None) -> Any:
    store = create(
        path, entities=make_labels(20, ["s"]), layers=range(2), tokens=["last"], variables=[EMBED], block_size=8
    )
    values = np.random.default_rng(0).standard_normal((20, 1, 8), dtype=np.float32)
    with ActivationWriter(store) as writer, writer.stage("s", order=0, fingerprint="f") as stage:
        for block in list(stage.pending())[:blocks]:
            buffer = stage.buffer(block)
            buffer.write("embed", block.rows, values[block.rows])
            stage.submit(buffer)
    return store


def test_interrupted_extended_and_repaired(tmp_path: Path) -> None:
    write(tmp_path / "whole.zarr")
    path = tmp_path / "run.zarr"
    write(path, blocks=1)
    assert "mean_relative_error" not in info(path)["variables"]["embed"], "a stage is measured when it is complete"
    write(path)
    whole = content(tmp_path / "whole.zarr")
    assert content(path) == whole
    file = path / "embed" / "c.0.1.0.0"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert verify_store(path, repair=True).ok
    assert "mean_relative_error" not in info(path)["variables"]["embed"]
    write(path)
    assert content(path) == whole
    add_stage(path, "t", 1)
    after = content(path)
    assert {k: after[k] for k in whole if "/c." in k} == {k: whole[k] for k in whole if "/c." in k}
    errors = open_store(path).embed_error.values
    assert info(path)["variables"]["embed"]["max_relative_error"] == errors.max()
    assert verify_store(path).ok
    joined = make_joined(tmp_path, path)
    assert joined.embed.attrs["max_relative_error"] == errors.max()


def make_joined(tmp_path: Path, path: Path) -> xr.Dataset:
    """The store and a copy of it with other prompt ids."""
    other = tmp_path / "other.zarr"
    labels = {k: v for k, v in make_labels(20, ["s"]).items() if k != "entity"}
    names = np.array([f"o{i}" for i in range(20)], dtype=object)
    store = create(
        other, entities={"entity": names, **labels}, layers=range(2), tokens=["last"], variables=[EMBED], block_size=8
    )
    with ActivationWriter(store) as writer:
        for order, (name, fingerprint) in enumerate((("s", "f"), ("t", "sha256:t"))):
            with writer.stage(name, order=order, fingerprint=fingerprint) as stage:
                for block in stage.pending():
                    buffer = stage.buffer(block)
                    buffer.write("embed", block.rows, np.zeros((len(block), 1, 8), np.float32))
                    stage.submit(buffer)
    return open_store([path, other])


def test_what_it_takes_and_what_it_refuses(tmp_path: Path) -> None:
    store = write(tmp_path / "run.zarr")
    expected = forecast([EMBED], entities=20, layers=2, tokens=1, stages=1, block_size=8)
    described = info(tmp_path / "run.zarr")
    assert (described["bytes"], described["files"]) == (expected.nbytes, expected.files)
    wide = site_variable("embed", ["d_model"], [8], "float32", "embed.hook_out")
    with pytest.raises(MismatchError, match=r"dtype of embed differs.*\"int8\", got \"float32\""):
        create(tmp_path / "run.zarr", entities=make_labels(20, ["s"]), layers=range(2), tokens=["last"],
               variables=[wide])  # fmt: skip
    with ActivationWriter(store) as writer, writer.stage("t", order=1, fingerprint="g") as stage:
        block = next(stage.pending())
        buffer = stage.buffer(block)
        with pytest.raises(InputError, match="embed is stored as int8 scaled by row and takes float32, got int8"):
            buffer.write("embed", block.rows, np.zeros((8, 1, 8), np.int8))
        with pytest.raises(InputError, match="no variable"):
            buffer.write("embed_scal", block.rows, np.zeros((8, 1), np.float32))
        with pytest.raises(NonFiniteError, match="stage 't', embed, rows 0 to 7"):
            buffer.write("embed", block.rows, np.full((8, 1, 8), np.inf, np.float32))
        buffer.discard()


def test_half_the_bytes_of_bfloat16(tmp_path: Path) -> None:
    site = site_variable("resid_post", ["d_model"], [576], "int8", "blocks.{layer}.hook_out")
    half = site_variable("resid_post", ["d_model"], [576], "bfloat16", "blocks.{layer}.hook_out")
    shape: dict[str, Any] = {"entities": 4000, "layers": 30, "tokens": 2, "stages": 3}
    assert forecast([site], **shape).nbytes < 0.51 * forecast([half], **shape).nbytes
