"""Selection and conversion: torch_dataset() and to_activation_cache() on real stores."""

import numpy as np
import pytest
import xarray as xr

from stratalens.plugin.interop.convert import to_activation_cache, torch_dataset
from stratalens.store.errors import InputError, NotRecordedError
from stratalens.store.format.schema import site_variable
from stratalens.store.reading.open import open_store
from support.stores import make_store

STAGES, LAYERS, ENTITIES, TOKENS, D = 3, 2, 40, ("entity_last", "last"), 8


def rows_of(batches):
    return np.concatenate([batch.numpy() for batch in batches])


def test_stages_tokens_and_rows_can_be_narrowed(ds, values):
    data = torch_dataset(ds.isel(entity=slice(5, 21)), layer=0, stage=["s2", "untrained"], token="last")
    np.testing.assert_array_equal(rows_of(data.batches(7, shuffle=False)), values[[2, 0], 0, 5:21, 1].reshape(-1, D))
    scalar = torch_dataset(ds.sel(stage="s1", token="last", layer=1))
    np.testing.assert_array_equal(rows_of(scalar.batches(100, shuffle=False)), values[1, 1, :, 1])
    one = torch_dataset(ds.sel(layer=[1]), stage="s1", token="last")
    np.testing.assert_array_equal(rows_of(one.batches(100, shuffle=False)), values[1, 1, :, 1])


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


def test_labels_come_with_batches(ds, values):
    data = torch_dataset(ds, layer=0, stage="s1", token="last", label="number")
    x, y = next(iter(data.batches(ENTITIES, shuffle=False)))
    np.testing.assert_array_equal(x, values[1, 0, :, 1])
    assert y.tolist() == [10 * i for i in range(ENTITIES)]


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


BAD = {
    "site": (
        {"site": "resid_pst", "layer": 0},
        ["site 'resid_pst' is not in", "did you mean 'resid_post'", "run.zarr"],
    ),
    "layer": ({"layer": 7}, ["unknown layer 7", "Valid: 0, 1"]),
    "no layer": ({}, ["layer is missing", "0, 1"]),
    "stage": ({"layer": 0, "stage": "s9"}, ["unknown stage 's9'", "untrained"]),
    "token": ({"layer": 0, "token": ["lst"]}, ["unknown token 'lst'", "did you mean 'last'"]),
    "label": ({"layer": 0, "label": "numbers"}, ["unknown label 'numbers'", "did you mean 'number'"]),
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
