"""torch Datasets and ActivationCache from real stores: every sample once, with the right values."""

import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stratalens.plugin.interop.convert import to_activation_cache, torch_dataset
from stratalens.store.errors import InputError, NotRecordedError
from stratalens.store.format.schema import site_variable
from stratalens.store.reading.open import open_store
from support.stores import make_store

STAGES, LAYERS, ENTITIES, TOKENS, D = 3, 2, 40, ("entity_last", "last"), 8


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_store(
        tmp_path_factory.mktemp("store") / "run.zarr",
        STAGES,
        LAYERS,
        ENTITIES,
        TOKENS,
        D,
        labels={"number": np.arange(ENTITIES) * 10},
        block_size=8,
    )


@pytest.fixture(params=["auto", None], ids=["dask", "lazy"])
def ds(path, request):
    return open_store(path, chunks=request.param)


@pytest.fixture(scope="module")
def values(path):
    """Return the activations (stage, layer, entity, token, d_model) in memory, as zarr-python alone reads them."""
    import zarr

    return zarr.open_group(path, mode="r")["resid_post"][...]


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


def test_stages_tokens_and_rows_can_be_narrowed(ds, values):
    data = torch_dataset(ds.isel(entity=slice(5, 21)), layer=0, stage=["s2", "untrained"], token="last")
    np.testing.assert_array_equal(rows_of(data.batches(7, shuffle=False)), values[[2, 0], 0, 5:21, 1].reshape(-1, D))
    scalar = torch_dataset(ds.sel(stage="s1", token="last", layer=1))
    np.testing.assert_array_equal(rows_of(scalar.batches(100, shuffle=False)), values[1, 1, :, 1])
    one = torch_dataset(ds.sel(layer=[1]), stage="s1", token="last")
    np.testing.assert_array_equal(rows_of(one.batches(100, shuffle=False)), values[1, 1, :, 1])


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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_codes_of_a_plain_reader_are_refused(tmp_path, dtype):
    store = make_store(tmp_path / "run.zarr", 1, 1, 8, ("last",), D, dtype=dtype)
    plain = xr.open_zarr(store)
    with pytest.raises(InputError, match=r"not a float: plain readers show .*open_store"):
        torch_dataset(plain, layer=0)
    with pytest.raises(InputError, match="not a float"):
        to_activation_cache(plain, entity=str(plain.entity.values[0]))
    with pytest.raises(InputError, match="expected a Dataset, got str"):
        torch_dataset(str(store))
    with pytest.raises(InputError, match=r"run the capture again with sites=\('resid_post', 'mlp_out'\)"):
        torch_dataset(open_store(store), site="mlp_out")
    assert torch_dataset(open_store(store, dtype="bits"), layer=0).batches(8) is not None


def test_random_access_through_a_loader(path, values):
    data = torch_dataset(open_store(path, chunks=None), layer=1, label="number")
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=2)
    batches = list(loader)
    rows = rows_of([x for x, _ in batches])
    np.testing.assert_array_equal(in_order(rows), in_order(values[:, 1].reshape(-1, D)))
    row_of = {row.tobytes(): i // len(TOKENS) % ENTITIES for i, row in enumerate(values[:, 1].reshape(-1, D))}
    for x, y in zip(rows, torch.cat([y for _, y in batches]).tolist(), strict=True):
        assert y == 10 * row_of[x.tobytes()]


def test_labels_come_with_batches(ds, values):
    data = torch_dataset(ds, layer=0, stage="s1", token="last", label="number")
    x, y = next(iter(data.batches(ENTITIES, shuffle=False)))
    np.testing.assert_array_equal(x, values[1, 0, :, 1])
    assert y.tolist() == [10 * i for i in range(ENTITIES)]


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


@pytest.fixture(scope="module")
def stores(tmp_path_factory, path):
    folder = tmp_path_factory.mktemp("dtypes")
    labels = {"number": np.arange(ENTITIES) * 10}
    return {"float32": path} | {
        dtype: make_store(folder / dtype, STAGES, LAYERS, ENTITIES, TOKENS, D, labels=labels, block_size=8, dtype=dtype)
        for dtype in ("bfloat16", "int8")
    }


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


def test_missing_rows_are_refused_or_left_out(tmp_path):
    path = make_store(tmp_path / "run.zarr", 2, 1, 10, skip={"s1": [2, 7]}, block_size=4)
    ds = open_store(path)
    with pytest.raises(NotRecordedError, match=r"'s1' \(2 of 10 rows\)"):
        torch_dataset(ds, layer=0)
    assert len(torch_dataset(ds, layer=0, stage="untrained")) == 10
    data = torch_dataset(ds, layer=0, skip_missing=True)
    assert len(data) == 18
    samples = [data.where(i) for i in range(18) if data.where(i)["stage"] == "s1"]
    assert [sample["entity"] for sample in samples] == [f"r{i:06d}" for i in (0, 1, 3, 4, 5, 6, 8, 9)]
    for rows in (rows_of(data.batches(5)), np.stack([data[i] for i in range(18)])):
        assert rows.shape == (18, 8)
        assert not np.isnan(rows).any()


@pytest.fixture
def ragged():
    """Return all positions of three prompts with 4, 2 and 3 tokens, two layers, in memory."""
    values = np.random.default_rng(0).standard_normal((1, 2, 3, 4, 5)).astype(np.float32)
    for row, length in enumerate((4, 2, 3)):
        values[:, :, row, : 4 - length] = np.nan
    array = xr.DataArray(
        values,
        dims=("stage", "layer", "entity", "token", "d_model"),
        name="resid_post",
        coords={"stage": ["m"], "layer": [0, 3], "entity": ["a", "b", "c"], "token": [-4, -3, -2, -1]},
        attrs={"kind": "site", "hook": "blocks.{layer}.hook_out"},
    )
    return array.to_dataset()


@pytest.mark.parametrize("with_norms", [True, False])
def test_shorter_prompts_have_fewer_samples(ragged, with_norms):
    if with_norms:
        ragged["resid_post_l2"] = np.sqrt((ragged.resid_post**2).sum("d_model", skipna=False))
    data = torch_dataset(ragged, layer=3)
    assert [(data.where(i)["entity"], data.where(i)["token"]) for i in range(len(data))] == [
        ("a", -4),
        ("a", -3),
        ("a", -2),
        ("a", -1),
        ("b", -2),
        ("b", -1),
        ("c", -3),
        ("c", -2),
        ("c", -1),
    ]
    expected = ragged.resid_post.values[0, 1].reshape(-1, 5)
    np.testing.assert_array_equal(rows_of(data.batches(4, shuffle=False)), expected[~np.isnan(expected).any(axis=1)])


def test_a_missing_named_position_is_never_a_sample(ragged):
    ragged = ragged.assign_coords(token=["p", "q", "r", "last"])
    data = torch_dataset(ragged, layer=0)
    with pytest.raises(NotRecordedError, match=r"entity 'b', token 'p'.*skip_missing=True"):
        data[4]
    with pytest.raises(NotRecordedError, match="entity 'b'"):
        list(data.batches(4))
    assert len(torch_dataset(ragged, layer=0, skip_missing=True)) == 9
    assert len(torch_dataset(ragged, layer=0, token="last")) == 3


def test_bfloat16_stays_bfloat16(tmp_path):
    path = make_store(tmp_path / "run.zarr", 1, 1, 6, dtype="bfloat16")
    wide = torch_dataset(open_store(path), layer=0)
    narrow = torch_dataset(open_store(path, dtype="bfloat16"), layer=0)
    assert narrow[0].dtype == torch.bfloat16
    assert torch.equal(narrow[3].float(), wide[3])
    assert next(iter(narrow.batches(4))).dtype == torch.bfloat16


BAD = {
    "site": (
        {"site": "resid_pst", "layer": 0},
        ["site 'resid_pst' is not in", "did you mean 'resid_post'", "run.zarr"],
    ),
    "layer": ({"layer": 7}, ["unknown layer 7", "Valid: 0, 1"]),
    "no layer": ({}, ["layer is missing", "0, 1"]),
    "stage": ({"layer": 0, "stage": "s9"}, ["unknown stage 's9'", "untrained"]),
    "token": ({"layer": 0, "token": ["lst"]}, ["unknown token 'lst'", "did you mean 'last'"]),
    "label": ({"layer": 0, "label": "numbr"}, ["unknown label 'numbr'", "did you mean 'number'"]),
    "text label": ({"layer": 0, "label": "trained_stage"}, ["is text", "factorize"]),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_choices(path, case):
    arguments, fragments = BAD[case]
    with pytest.raises(InputError) as caught:
        torch_dataset(open_store(path), **arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_other_wrong_choices(ds):
    with pytest.raises(InputError, match="keep entity a dim"):
        torch_dataset(ds.isel(entity=0), layer=0)
    with pytest.raises(InputError, match="narrowed to stage 's1'"):
        torch_dataset(ds.sel(stage="s1"), layer=0, stage="s2")
    with pytest.raises(InputError, match="batch_size=0"):
        torch_dataset(ds, layer=0).batches(0)


def test_activation_cache(ds, values):
    cache = to_activation_cache(ds, stage="s2", entity="r000005")
    assert cache["resid_post", 1].shape == (1, len(TOKENS), D)
    np.testing.assert_array_equal(cache["resid_post", 1], values[2, 1, [5]])
    np.testing.assert_array_equal(cache["blocks.0.hook_out"], values[2, 0, [5]])
    several = to_activation_cache(ds.sel(stage="s1"), entity=["r000009", "r000002"])
    np.testing.assert_array_equal(several["resid_post", 0], values[1, 0, [9, 2]])
    one_layer = to_activation_cache(ds.sel(layer=1), stage="s1", entity="r000000")
    np.testing.assert_array_equal(one_layer["resid_post", 1], values[1, 1, [0]])
    assert ("blocks.0.hook_out" in one_layer.cache_dict) is False


def test_activation_cache_of_heads_and_sites_outside_blocks(tmp_path):
    extra = [
        site_variable("z", ["head", "d_head"], [2, 3], "float32", "blocks.{layer}.attn.hook_z"),
        site_variable("embed", ["d_model"], [8], "bfloat16", "embed.hook_out"),
    ]
    ds = open_store(make_store(tmp_path / "run.zarr", 1, 2, 5, extra=extra))
    cache = to_activation_cache(ds, entity=["r000001", "r000004"])
    np.testing.assert_array_equal(cache["z", 1], ds.z.values[0, 1, [1, 4]])
    np.testing.assert_array_equal(cache["hook_embed"], ds.embed.values[0, [1, 4]])
    assert cache.has_embed
    assert set(to_activation_cache(ds, entity="r000001", sites=["z"]).cache_dict) == {
        "blocks.0.attn.hook_z",
        "blocks.1.attn.hook_z",
    }
    heads = torch_dataset(ds, site="z", layer=1)
    np.testing.assert_array_equal(heads[3], ds.z.values[0, 1, 3, 0])
    embed = torch_dataset(ds, site="embed")
    np.testing.assert_array_equal(embed[3], ds.embed.values[0, 3, 0])
    with pytest.raises(InputError, match="outside the blocks"):
        torch_dataset(ds, site="embed", layer=1)


def test_activation_cache_of_all_positions_is_the_prompt(ragged):
    cache = to_activation_cache(ragged, entity="c")
    np.testing.assert_array_equal(cache["resid_post", 3], ragged.resid_post.values[0, 1, [2], 1:])
    both = to_activation_cache(ragged, entity=["b", "c"])
    assert both["resid_post", 3].shape == (2, 3, 5)
    assert both["resid_post", 3][0, 0].isnan().all()


def test_activation_cache_refuses(ds, tmp_path):
    with pytest.raises(InputError, match="stage is missing, and there are several: 'untrained', 's1', 's2'"):
        to_activation_cache(ds, entity="r000000")
    with pytest.raises(InputError, match="unknown entity 'r00000' in "):
        to_activation_cache(ds, stage="s1", entity="r00000")
    for number in (0, [0]):
        with pytest.raises(InputError, match=r"entity=0: rows are named by their prompt_id.* such as 'r000000'"):
            to_activation_cache(ds, stage="s1", entity=number)
    with pytest.raises(InputError, match="unknown stage 's9'"):
        to_activation_cache(ds, stage="s9", entity="r000000")
    with pytest.raises(InputError, match="names no prompt"):
        to_activation_cache(ds, stage="s1", entity=[])
    with pytest.raises(InputError, match="site 'resid' is not in"):
        to_activation_cache(ds, stage="s1", entity="r000000", sites=["resid"])
    with pytest.raises(InputError, match="'resid_post_l2' holds no activations of a hook"):
        to_activation_cache(ds, stage="s1", entity="r000000", sites=["resid_post_l2"])
    gap = open_store(make_store(tmp_path / "gap.zarr", 1, 1, 4, skip={"untrained": [2]}))
    with pytest.raises(NotRecordedError, match="'untrained'"):
        to_activation_cache(gap, entity=["r000001", "r000002"])
    assert to_activation_cache(gap, entity="r000001")["resid_post", 0].shape == (1, 1, 8)
