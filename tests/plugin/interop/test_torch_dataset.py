"""torch Datasets from real stores: every sample once, with the right values."""

import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stratalens.plugin.interop.convert import torch_dataset
from stratalens.store.reading.open import open_store
from support.stores import make_store

STAGES, LAYERS, ENTITIES, TOKENS, D = 3, 2, 40, ("entity_last", "last"), 8


def rows_of(batches):
    return np.concatenate([batch.numpy() for batch in batches])


def in_order(rows):
    return rows[np.lexsort(rows.T)]


def test_samples_by_number(ds, values):
    data = torch_dataset(ds, layer=1)
    assert len(data) == STAGES * ENTITIES * len(TOKENS)
    expected = values[:, 1].reshape(-1, D)
    np.testing.assert_array_equal(np.stack([data[i] for i in range(len(data))]), expected)
    np.testing.assert_array_equal(data[-1], expected[-1])
    picked = [5, 200, 5, 3, 77]
    np.testing.assert_array_equal(torch.stack(data.__getitems__(picked)), expected[picked])
    assert data.where(83) == {"stage": "s1", "entity": "r000001", "token": "last"}
    assert data.feature_shape == (D,)
    with pytest.raises(IndexError):
        data[len(data)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(0, 5), st.sampled_from([1, 3000, 10**9]), st.booleans())
def test_every_sample_comes_once(path, values, batch_size, seed, buffer_bytes, drop_last):
    data = torch_dataset(open_store(path, chunks=None), layer=0)
    batches = list(data.batches(batch_size, seed=seed, buffer_bytes=buffer_bytes, drop_last=drop_last))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    expected = values[:, 0].reshape(-1, D)
    rows = rows_of(batches) if batches else expected[:0]
    if drop_last:
        assert len(rows) == len(expected) // batch_size * batch_size
        assert {row.tobytes() for row in rows} <= {row.tobytes() for row in expected}
    else:
        np.testing.assert_array_equal(in_order(rows), in_order(expected))


def test_order(path, values):
    data = torch_dataset(open_store(path), layer=0)
    expected = values[:, 0].reshape(-1, D)
    np.testing.assert_array_equal(rows_of(data.batches(7, shuffle=False)), expected)
    batches = data.batches(16, seed=1)
    first = rows_of(batches)
    assert not np.array_equal(first, expected)
    np.testing.assert_array_equal(rows_of(batches), first)
    batches.set_epoch(1)
    assert not np.array_equal(rows_of(batches), first)
    torch.manual_seed(7)
    drawn = rows_of(data.batches(16))
    assert not np.array_equal(rows_of(data.batches(16)), drawn)
    torch.manual_seed(7)
    np.testing.assert_array_equal(rows_of(data.batches(16)), drawn)


def test_mixing_reaches_beyond_a_block(path):
    data = torch_dataset(open_store(path, chunks=None), layer=0, token="last")
    stage = {data[i].numpy().tobytes(): data.where(i)["stage"] for i in range(len(data))}
    first = next(iter(data.batches(60, seed=0)))
    assert len({stage[row.numpy().tobytes()] for row in first}) == STAGES


@pytest.mark.parametrize("seed", [3, None])
def test_several_workers(path, values, seed):
    data = torch_dataset(open_store(path), layer=1)
    expected = in_order(values[:, 1].reshape(-1, D))
    loader = DataLoader(data.batches(16, seed=seed), batch_size=None, num_workers=2)
    first, second = rows_of(loader), rows_of(loader)
    np.testing.assert_array_equal(in_order(first), expected)
    np.testing.assert_array_equal(in_order(second), expected)
    assert np.array_equal(first, second) == (seed is not None)


@pytest.mark.parametrize("seed", [3, None])
def test_persistent_workers_give_another_order_in_every_epoch(path, values, seed):
    batches = torch_dataset(open_store(path), layer=1).batches(16, seed=seed)
    loader = DataLoader(batches, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append(rows_of(loader))
        np.testing.assert_array_equal(in_order(epochs[-1]), in_order(values[:, 1].reshape(-1, D)))
    assert len({epoch.tobytes() for epoch in epochs}) == 3
    if seed is not None:
        batches.set_epoch(0)
        np.testing.assert_array_equal(rows_of(loader), epochs[0])
    with pytest.raises(TypeError):
        batches.set_epoch("a")


def test_random_access_through_a_loader(path, values):
    data = torch_dataset(open_store(path, chunks=None), layer=1, label="number")
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=2)
    batches = list(loader)
    rows = rows_of([x for x, _ in batches])
    np.testing.assert_array_equal(in_order(rows), in_order(values[:, 1].reshape(-1, D)))
    row_of = {row.tobytes(): i // len(TOKENS) % ENTITIES for i, row in enumerate(values[:, 1].reshape(-1, D))}
    for x, y in zip(rows, torch.cat([y for _, y in batches]).tolist(), strict=True):
        assert y == 10 * row_of[x.tobytes()]


NARROWED = {
    "all": lambda ds: ds,
    "rows": lambda ds: ds.isel(entity=slice(5, 33)),
    "scattered rows": lambda ds: ds.isel(entity=[3, 9, 10, 11, 31, 38]),
    "shuffled rows": lambda ds: ds.isel(entity=np.random.default_rng(0).permutation(ENTITIES)[:30]),
    "by label": lambda ds: ds.sel(entity=ds.entity[ds.number > 100], stage=["s2", "s1"]),
    "one stage and token": lambda ds: ds.sel(stage="s2", token="last"),
    "layer taken before": lambda ds: ds.isel(layer=[1]),
}


@pytest.mark.parametrize("narrowing", NARROWED)
@pytest.mark.parametrize("opened", ["auto", "lazy", "engine"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrowed_stores_are_read_from_their_files(stores, narrowing, opened, dtype):
    """Every narrowed store is read without dask, and gives the values of dask and xarray for the same selection."""
    if opened == "engine":
        ds = xr.open_dataset(stores[dtype], engine="stratalens")
    else:
        ds = open_store(stores[dtype], chunks="auto" if opened == "auto" else None)
    ds = NARROWED[narrowing](ds)
    data = torch_dataset(ds, layer=1)
    assert data.reader.stored is not None
    assert data.reader.stored_dtype == (np.uint16 if dtype == "bfloat16" else np.float32)
    expected = ds.resid_post.sel(layer=1).values.reshape(-1, D)
    np.testing.assert_array_equal(rows_of(data.batches(7, shuffle=False)), expected)
    picked = [0, len(expected) - 1, 4, 4]
    np.testing.assert_array_equal(torch.stack(data.__getitems__(picked)), expected[picked])


@pytest.mark.parametrize("chunks", ["auto", None])
def test_other_arrays_are_samples_too(stores, tmp_path, chunks):
    """Scaled sites, joined stores, and computed arrays."""
    scaled = open_store(stores["int8"], chunks=chunks)
    other = make_store(
        tmp_path / "b.zarr",
        STAGES,
        LAYERS,
        11,
        TOKENS,
        D,
        dtype="bfloat16",
        block_size=4,
        seed=4,
        labels={"entity": [f"b{i}" for i in range(11)], "number": np.arange(11)},
    )
    joined = open_store([stores["bfloat16"], other], chunks=chunks)
    doubled = open_store(stores["bfloat16"], chunks=chunks)
    doubled["resid_post"] = doubled.resid_post * 2
    for ds, direct in ((scaled, True), (joined, True), (doubled, False)):
        data = torch_dataset(ds, layer=0)
        assert (data.reader.stored is not None) == direct
        expected = ds.resid_post.values[:, 0].reshape(-1, D)
        np.testing.assert_array_equal(rows_of(data.batches(9, shuffle=False)), expected)
        np.testing.assert_array_equal(in_order(rows_of(data.batches(9, seed=0))), in_order(expected))


def test_the_order_is_that_of_the_seed_however_it_was_opened(stores):
    rows = [
        rows_of(torch_dataset(open_store(stores["bfloat16"], chunks=chunks), layer=1).batches(16, seed=5))
        for chunks in ("auto", None)
    ]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_batches_is_reused_after_the_tensors_are_gone(stores, dtype):
    data = torch_dataset(open_store(stores["bfloat16"], chunks=None, dtype=dtype), layer=1)
    assert data[0].dtype == getattr(torch, dtype)
    expected = list(data.batches(20, seed=1))  # all of them in use, so all in separate memory
    assert len({batch.data_ptr() for batch in expected}) == len(expected) == 12
    places = set()
    for batch, known in zip(data.batches(20, seed=1), expected, strict=True):
        assert torch.equal(batch, known)
        places.add(batch.data_ptr())
    assert len(places) <= 3
    views, copies = [], []
    for batch in data.batches(20, seed=1):
        views.append(batch[3:5].t())  # a view keeps the whole batch
        copies.append(views[-1].clone())
    assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


def test_memory_for_mixing_is_reused_in_every_epoch(path, values):
    data = torch_dataset(open_store(path, chunks=None), layer=0)
    batches = data.batches(7, seed=1, buffer_bytes=4000)
    expected = rows_of(batches)
    addresses = {buffer.values.ctypes.data for buffer in batches._buffers}
    assert len(addresses) == 2
    unfinished = iter(batches)  # next to two iterators that run at the same time
    next(unfinished)
    pairs = list(zip(batches, batches, strict=True))
    unfinished.close()
    for side in zip(*pairs, strict=True):
        np.testing.assert_array_equal(rows_of(side), expected)
    np.testing.assert_array_equal(rows_of(batches), expected)
    assert len(batches._buffers) == 2
    assert pickle.loads(pickle.dumps(batches))._buffers == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_workers_give_the_same_values(stores, dtype):
    data = torch_dataset(open_store(stores["bfloat16"], dtype=dtype), layer=0, label="number")
    loader = DataLoader(data.batches(16, seed=3), batch_size=None, num_workers=2)
    x, y = (torch.cat(batches) for batches in zip(*loader, strict=True))
    assert x.dtype == getattr(torch, dtype)
    alone, labels = (torch.cat(batches) for batches in zip(*data.batches(1000, shuffle=False), strict=True))
    np.testing.assert_array_equal(in_order(x.float().numpy()), in_order(alone.float().numpy()))
    assert sorted(y.tolist()) == sorted(labels.tolist())


def test_nothing_is_read_before_the_first_access(tmp_path):
    path = make_store(tmp_path / "run.zarr", 2, 1, 32, block_size=8)
    data = torch_dataset(open_store(path, chunks=None), stage="s1", layer=0)
    small = pickle.dumps(data)
    assert len(small) < 40_000
    for file in (path / "resid_post").rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            file.unlink()
    with pytest.raises(Exception, match="resid_post"):
        data[0]


def test_bfloat16_stays_bfloat16(tmp_path):
    path = make_store(tmp_path / "run.zarr", 1, 1, 6, dtype="bfloat16")
    wide = torch_dataset(open_store(path), layer=0)
    narrow = torch_dataset(open_store(path, dtype="bfloat16"), layer=0)
    assert narrow[0].dtype == torch.bfloat16
    assert torch.equal(narrow[3].float(), wide[3])
    assert next(iter(narrow.batches(4))).dtype == torch.bfloat16
