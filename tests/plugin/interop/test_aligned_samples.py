"""Samples of several stages and layers from real stores: the right rows, the right values, and their statistics."""

import numpy as np
import pytest
import torch
import xarray as xr

from stratalens.plugin.interop.convert import torch_dataset
from stratalens.store.errors import InputError, NotRecordedError
from stratalens.store.reading.open import open_store
from support.stores import make_store

STAGES, LAYERS, ENTITIES, TOKENS, D = 3, 2, 40, ("entity_last", "last"), 8  # of the stores of this folder
SELECTIONS = {
    "all": ({}, ("stage", "layer", "d_model")),
    "two stages at one layer": ({"stage": ["s2", "untrained"], "layer": 1}, ("stage", "d_model")),
    "two layers of one stage": ({"stage": "s1", "layer": [1, 0]}, ("layer", "d_model")),
    "one of each in lists": ({"stage": ["s1"], "layer": [0], "token": "last"}, ("stage", "layer", "d_model")),
    "nothing to align": ({"stage": "s1", "layer": 0}, ("d_model",)),
}


def rows_of(batches):
    return np.concatenate([batch.float().numpy() for batch in batches])


def in_order(rows):
    flat = rows.reshape(len(rows), -1)
    return rows[np.lexsort(flat.T)]


def expected_samples(ds, selection):
    """Return the samples as xarray selects them."""
    array = ds.resid_post.sel(selection)
    array = array if "token" in array.dims else array.expand_dims("token")
    rest = [dim for dim in ("stage", "layer", "d_model") if dim in array.dims]
    values = array.transpose("entity", "token", *rest).astype(np.float32).values
    return values.reshape(-1, *values.shape[2:])


@pytest.mark.parametrize("chosen", SELECTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_samples_are_those_of_xarray(stores, chosen, dtype):
    selection, dims = SELECTIONS[chosen]
    for chunks in ("auto", None):
        ds = open_store(stores[dtype], chunks=chunks)
        data = torch_dataset(ds, aligned=True, **selection)
        expected = expected_samples(ds, selection)
        assert data.dims == dims
        assert (len(data), *data.feature_shape) == expected.shape
        assert data.reader.stored is not None
        np.testing.assert_array_equal(rows_of(data.batches(7, shuffle=False)), expected)
        np.testing.assert_array_equal(in_order(rows_of(data.batches(9, seed=3))), in_order(expected))
        picked = [0, len(expected) - 1, 5, 5]
        np.testing.assert_array_equal(torch.stack(data.__getitems__(picked)), expected[picked])


def test_bits_narrowed_rows_joined_stores_and_computed_arrays(stores, tmp_path):
    narrow = torch_dataset(open_store(stores["bfloat16"], dtype="bfloat16"), aligned=True)
    assert narrow[0].dtype == next(iter(narrow.batches(4))).dtype == torch.bfloat16
    wide = open_store(stores["bfloat16"])
    np.testing.assert_array_equal(rows_of(narrow.batches(8, shuffle=False)), expected_samples(wide, {}))
    labels = {"entity": [f"b{i}" for i in range(11)], "number": np.arange(11)}
    more = make_store(tmp_path / "b.zarr", STAGES, LAYERS, 11, TOKENS, D, block_size=4, seed=4, labels=labels)
    doubled = open_store(stores["float32"])
    doubled["resid_post"] = doubled.resid_post * 2
    for ds in (
        wide.isel(entity=np.random.default_rng(0).permutation(ENTITIES)[:30]),
        open_store([stores["float32"], more], chunks=None),
        doubled,
        doubled[["resid_post"]].compute(),
    ):
        data = torch_dataset(ds, stage=["s2", "s1"], aligned=True, label="number")
        x, y = (torch.cat(parts) for parts in zip(*data.batches(9, shuffle=False), strict=True))
        np.testing.assert_array_equal(x, expected_samples(ds, {"stage": ["s2", "s1"]}))
        np.testing.assert_array_equal(y, np.repeat(ds.number.values, len(TOKENS)))
        shuffled, numbers = (torch.cat(parts) for parts in zip(*data.batches(9, seed=0), strict=True))
        label_of = {row.numpy().tobytes(): label for row, label in zip(x, y.tolist(), strict=True)}
        assert [label_of[row.numpy().tobytes()] for row in shuffled] == numbers.tolist()
    assert data.where(3) == {"entity": ds.entity.values[1], "token": "last"}


def test_a_row_that_is_missing_at_one_stage_is_refused_or_left_out(tmp_path):
    missing = {"s1": [3, 17], "s2": [17, 30]}
    path = make_store(tmp_path / "run.zarr", 3, 2, 40, TOKENS, D, block_size=8, skip=missing, stop_before="s3")
    ds = open_store(path)
    with pytest.raises(NotRecordedError, match=r"'s1' \(2 of 40 rows\), 's2' \(2 of 40 rows\).*skip_missing=True"):
        torch_dataset(ds, aligned=True)
    assert len(torch_dataset(ds, aligned=True, stage=["untrained"])) == 40 * 2
    for selection, absent in (({}, [3, 17, 30]), ({"stage": ["untrained", "s1"]}, [3, 17])):
        data = torch_dataset(ds, aligned=True, skip_missing=True, **selection)
        left = ds.isel(entity=np.setdiff1d(np.arange(40), absent))
        np.testing.assert_array_equal(rows_of(data.batches(9, shuffle=False)), expected_samples(left, selection))
        assert data.where(6) == {"entity": "r000004", "token": "entity_last"}
        assert data.normalization().attrs["samples"] == 2 * (40 - len(absent))
    none = make_store(tmp_path / "none.zarr", 2, 1, 6, skip={"untrained": range(3), "s1": range(3, 6)})
    with pytest.raises(NotRecordedError, match="no row was recorded at all of the selected stages"):
        torch_dataset(open_store(none), aligned=True, skip_missing=True)


def test_a_part_without_values_is_named(ragged):
    """Positions before the start of a prompt are no samples; a NaN at one layer alone is an error, or left out."""
    data = torch_dataset(ragged, aligned=True)
    assert (len(data), data.feature_shape, data.dims) == (9, (1, 2, 5), ("stage", "layer", "d_model"))
    expected = ragged.resid_post.transpose("entity", "token", "stage", "layer", "d_model").values
    expected = expected[~np.isnan(expected).any((2, 3, 4))]
    np.testing.assert_array_equal(rows_of(data.batches(4, shuffle=False)), expected)
    ragged = ragged.assign_coords(token=["a", "b", "c", "d"]).isel(entity=[0])  # named positions exist everywhere
    ragged.resid_post[0, 1, 0, 2] = np.nan
    data = torch_dataset(ragged, aligned=True)
    for read in (lambda: list(data.batches(4)), lambda: data[2]):
        with pytest.raises(NotRecordedError, match="nothing was recorded at stage 'm', layer 3, entity 'a', token 'c'"):
            read()
    assert len(torch_dataset(ragged, aligned=True, skip_missing=True)) == 3


def test_wrong_arguments_name_the_remedy(ds):
    with pytest.raises(InputError, match=r"layer=\[0, 1\]: a sample has one layer; .*aligned=True"):
        torch_dataset(ds, layer=[0, 1])
    with pytest.raises(InputError, match=r"stage=\[\] selects nothing"):
        torch_dataset(ds, stage=[], aligned=True)
    with pytest.raises(InputError, match="unknown layer 7"):
        torch_dataset(ds, layer=[0, 7], aligned=True)
    data = torch_dataset(ds, aligned=True)
    with pytest.raises(InputError, match=r"rank=\(2, 2\)"):
        data.batches(4, rank=(2, 2))
    with pytest.raises(InputError, match="seed is missing: all ranks need the same one"):
        data.batches(4, rank=(0, 2))
    with pytest.raises(InputError, match="samples=0"):
        data.normalization(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("selection", [{}, {"stage": ["s1", "s2"], "layer": 0}, {"stage": "s1", "layer": 1}])
def test_normalization_is_that_of_numpy_in_float64(stores, dtype, selection):
    ds = open_store(stores[dtype])
    for data, x in (
        (torch_dataset(ds, aligned=True, **selection), expected_samples(ds, selection)),
        (torch_dataset(ds, layer=1), ds.resid_post.sel(layer=1).values.reshape(-1, D)),
    ):
        result = data.normalization()
        x = x.astype(np.float64)
        norms = np.linalg.norm(x, axis=-1)
        references = {
            "feature_mean": x.mean(0),
            "feature_std": x.std(0),
            "mean_norm": norms.mean(0),
            "mean_square": (norms**2).mean(0),
            "variance": x.var(0).sum(-1),
            "scale": np.sqrt(D) / norms.mean(0),
        }
        assert set(result.data_vars) == set(references)
        for name, reference in references.items():
            assert result[name].dims == (data.dims if name.startswith("feature") else data.dims[:-1])
            np.testing.assert_allclose(result[name], reference, rtol=1e-12, err_msg=name)
        scaled = rows_of(data.batches(64)) * result.scale.values[..., None]
        np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1).mean(0), np.sqrt(D), rtol=1e-5)
    assert "stage" not in result.coords
    stages = torch_dataset(ds, aligned=True, stage=["s2", "s1"]).normalization().scale
    assert stages.sel(stage="s1").dims == ("layer",)


def test_normalization_keeps_the_digits_of_large_values_and_takes_a_sample():
    x = np.random.default_rng(0).standard_normal((2, 3000, 4)).astype(np.float32) + np.float32(1e4)
    dims, coords = ("stage", "entity", "d_model"), {"stage": ["a", "b"], "entity": np.arange(3000).astype(str)}
    ds = xr.DataArray(x, dims=dims, coords=coords, name="resid_post", attrs={"kind": "site"}).to_dataset()
    data = torch_dataset(ds, aligned=True)
    np.testing.assert_allclose(data.normalization().feature_std, x.astype(np.float64).std(1), rtol=1e-9)
    part = data.normalization(500, buffer_bytes=30_000)
    assert part.attrs == {"site": "resid_post", "samples": 500}
    np.testing.assert_allclose(part.feature_mean, x.mean(1), atol=5 / np.sqrt(500))
