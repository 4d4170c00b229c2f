"""from_arrays: every kind of array gives the same store; wrong input is named and leaves nothing behind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import stratalens as sl
from stratalens.plugin.interop import from_arrays as module
from stratalens.store.errors import InputError, LabelWarning, MismatchError, NonFiniteError
from stratalens.store.state.info import info

STAGES, LAYERS, ROWS, TOKENS, D = ["s0", "s1"], [0, 3, 7], 13, ["first", "last"], 4
COUNTER = itertools.count()


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, ROWS, 2, D)).astype(np.float32)


def frame(rows: int = ROWS) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": [f"prompt {i}" for i in range(rows)],
            "prompt_id": [f"id{i}" for i in range(rows)],
            "colour": [["red", "blue"][i % 2] for i in range(rows)],
        }
    )


def write(path: Path, arrays: Any, table: Any = None, **options: Any) -> xr.Dataset:
    options = {"stages": STAGES, "layers": LAYERS, "tokens": TOKENS, "block_size": 4, "progress": False} | options
    return sl.from_arrays(path / "a.zarr", arrays, frame() if table is None else table, **options)


def as_kind(kind: str, values: np.ndarray, folder: Path) -> Any:
    if kind == "memmap":
        np.save(folder / "x.npy", values)
        return np.load(folder / "x.npy", mmap_mode="r")
    if kind == "torch":
        return torch.from_numpy(values).requires_grad_()
    if kind == "dask":
        return da.from_array(values, chunks=(1, 2, 5, 2, 3))
    if kind == "zarr":
        return zarr.create_array(folder / "x.zarr", data=values, chunks=(1, 2, 5, 2, 4))
    if kind == "xarray":
        dims = ("stage", "layer", "entity", "token", "d_model")
        coords = {"stage": STAGES, "layer": LAYERS, "token": TOKENS, "entity": [f"id{i}" for i in range(ROWS)]}
        return xr.DataArray(values, dims=dims, coords=coords).transpose("entity", "d_model", "token", "layer", "stage")
    if kind == "stages":
        return {name: values[i] for i, name in enumerate(STAGES)}
    if kind == "stages and layers":
        return {name: {n: values[i, j] for j, n in enumerate(LAYERS)} for i, name in enumerate(STAGES)}
    if kind == "layers":
        return {n: values[:, j] for j, n in enumerate(LAYERS)}
    return values


@pytest.mark.parametrize(
    "kind",
    ["numpy", "memmap", "torch", "dask", "zarr", "xarray", "stages", "stages and layers", "layers"],
)
def test_every_kind_of_array_gives_the_same_store(kind: str, values: np.ndarray, tmp_path: Path) -> None:
    ds = write(tmp_path, {"resid_post": as_kind(kind, values, tmp_path)})
    np.testing.assert_array_equal(ds.resid_post.values, values)
    assert ds.resid_post.dims == ("stage", "layer", "entity", "token", "d_model")
    assert ds.stage.values.tolist() == STAGES
    assert ds.layer.values.tolist() == LAYERS
    assert ds.token.values.tolist() == TOKENS
    assert ds.colour.values.tolist() == frame()["colour"].tolist()
    assert ds.recorded.values.all()
    assert sl.verify_store(tmp_path / "a.zarr").ok
    facts = info(tmp_path / "a.zarr")
    assert facts["complete"]
    assert "did not run a model" in facts["provenance"]["origin"]


def test_names_come_from_what_is_passed(values: np.ndarray, tmp_path: Path) -> None:
    named = as_kind("xarray", values, tmp_path)
    ds = write(tmp_path, {"resid_post": named}, stages=None, layers=None, tokens=None)
    assert (ds.stage.values.tolist(), ds.layer.values.tolist(), ds.token.values.tolist()) == (STAGES, LAYERS, TOKENS)
    nested = as_kind("stages and layers", values, tmp_path)
    other = sl.from_arrays(tmp_path / "b.zarr", {"resid_post": nested}, frame(), tokens=TOKENS)
    assert (other.stage.values.tolist(), other.layer.values.tolist()) == (STAGES, LAYERS)
    single = sl.from_arrays(tmp_path / "c.zarr", {"resid_post": values[:1, :, :, :1]}, frame())
    assert (single.stage.values.tolist(), single.layer.values.tolist()) == (["model"], [0, 1, 2])
    assert single.token.values.tolist() == ["last"]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((ROWS, D), {"layers": [5]}),
        ((1, ROWS, D), {"layers": [5], "dims": ("layer", "entity", "d_model")}),
        ((3, ROWS, D), {"layers": LAYERS}),
        ((3, ROWS, D), {"layers": None}),
        ((ROWS, 3, D), {"dims": {"resid_post": ("entity", "layer", "d_model")}}),
        ((D, ROWS, 3), {"dims": ("d_model", "entity", "layer"), "layers": None}),
    ],
)
def test_dims_of_size_one_are_left_out(shape: tuple[int, ...], options: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    ds = write(tmp_path, {"resid_post": x}, **{"stages": ["m"], "tokens": ["last"]} | options)
    back = ds.resid_post.squeeze(["stage", "token"])
    order = options.get("dims")
    order = order["resid_post"] if isinstance(order, dict) else order
    expected = xr.DataArray(x, dims=order) if order else x if x.ndim == 3 else x[None]
    np.testing.assert_array_equal(back.values, expected.transpose("layer", "entity", "d_model") if order else expected)


def test_several_sites_statistics_and_a_second_call(values: np.ndarray, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    z, final = rng.standard_normal((2, 3, ROWS, 2, 2, 3)), rng.standard_normal((2, ROWS, 2, 6)).astype(np.float16)
    loss = rng.standard_normal((2, ROWS, 2)).astype(np.float32)
    loss[0, 0, 0] = np.nan  # the loss of the first token
    norms = np.linalg.norm(values, axis=-1)
    first = write(tmp_path, {"resid_post": values})
    arrays = {"resid_post": values, "z": z, "ln_final": final, "loss": loss, "resid_post_l2": norms}
    arrays["answer_loss"] = loss[:, :, 1]
    ds = write(tmp_path, arrays)
    np.testing.assert_array_equal(ds.resid_post.values, first.resid_post.values)
    assert ds.z.dims[-2:] == ("head", "d_head")
    np.testing.assert_array_equal(ds.z.values, z.astype(np.float32))
    assert ds.ln_final.dims == ("stage", "entity", "token", "ln_final_d_model")
    np.testing.assert_array_equal(ds.ln_final.values, final)
    np.testing.assert_array_equal(ds.loss.values, loss)
    np.testing.assert_allclose(ds.resid_post_l2.values, norms)
    assert ds.answer_loss.dims == ("stage", "entity")
    assert sl.verify_store(tmp_path / "a.zarr").ok
    named = ds.isel(stage=[1])
    accuracy = sl.statistics_probe(named, target="colour", statistics=("loss",), folds=2, progress=False)
    assert accuracy.accuracy.sizes["stage"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "float64"])
def test_dtypes(dtype: str, kind: str, values: np.ndarray, tmp_path: Path) -> None:
    x = {"numpy": values, "torch": torch.from_numpy(values).bfloat16(), "float64": values.astype(np.float64)}[kind]
    exact = values.astype(ml_dtypes.bfloat16).astype(np.float32) if kind == "torch" else values
    ds = write(tmp_path, {"resid_post": x}, dtype=dtype)
    expected = exact if dtype == "int8" else exact.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    np.testing.assert_allclose(ds.resid_post.values, expected.astype(np.float32), atol=0.02 if dtype == "int8" else 0)


def test_an_interrupted_import_resumes(values: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "s1" and done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"resid_post": values}, progress=stop)
    facts = info(tmp_path / "a.zarr")
    assert not facts["complete"]
    assert facts["whole_stages"] == ["s0"]
    reads: list[slice] = []
    real = module._Import._pieces
    monkeypatch.setattr(module._Import, "_pieces", lambda self, *a: (reads.append(a[-1]), real(self, *a))[1])
    ds = write(tmp_path, {"resid_post": values})
    np.testing.assert_array_equal(ds.resid_post.values, values)
    assert 1 <= len(reads) <= 2
    longer = np.concatenate([values, values[:1] + 1])
    ds = write(tmp_path, {"resid_post": longer}, stages=[*STAGES, "s2"])
    np.testing.assert_array_equal(ds.resid_post.values, longer)


def test_other_values_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path, {"resid_post": values})
    changed = values.copy()
    changed[1, 2, 9, 1, 3] += 1
    with pytest.raises(MismatchError, match=r"stage 's1' of .* has other values"):
        write(tmp_path, {"resid_post": changed})
    with pytest.raises(MismatchError, match="source differs"):
        write(tmp_path, {"resid_post": values}, source="nnsight")
    with pytest.raises(InputError, match="holds a store already"):
        write(tmp_path, {"resid_post": values}, resume=False)
    with pytest.raises(MismatchError, match="'s0' and 's1' have the same weights"):
        sl.from_arrays(tmp_path / "b.zarr", {"resid_post": values[[0, 0]]}, frame(), stages=STAGES, tokens=TOKENS)
    ds = sl.from_arrays(
        tmp_path / "c.zarr",
        {"resid_post": values[[0, 0]]},
        frame(),
        stages=STAGES,
        tokens=TOKENS,
        fingerprints={"s0": "blake3:a", "s1": "blake3:b"},
    )
    assert ds.weights_fingerprint.values.tolist() == ["blake3:a", "blake3:b"]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read is of one block and few layers, and large stages are hashed by a sample."""
    monkeypatch.setattr(module, "_READ_BYTES", 4 * 5 * D * 4)
    monkeypatch.setattr(module, "_SAMPLE_BYTES", 3 * 32 * D * 4)
    base = np.random.default_rng(3).standard_normal((1, 3, 200, 1, D)).astype(np.float32)
    largest = 0

    class Watched:
        shape, dtype = base.shape, base.dtype

        def __getitem__(self, index: Any) -> np.ndarray:
            nonlocal largest
            largest = max(largest, base[index].nbytes)
            return base[index]

    ds = write(tmp_path, {"resid_post": Watched()}, frame(200), stages=["m"], layers=None, tokens=None, block_size=5)
    np.testing.assert_array_equal(ds.resid_post.values, base)
    assert largest <= 4 * 5 * D * 4
    assert len(module._sampled_rows(200, 32)) == 16


WRONG = [
    ({"arrays": {}}, "arrays is empty"),
    ({"arrays": np.zeros(3)}, "arrays is ndarray: give a mapping"),
    ({"arrays": {"resid_post": [[1.0]]}}, "list is not an array"),
    ({"arrays": {"resid_post": np.zeros((2, 3, ROWS, 2, D), np.int64)}}, "dtype int64; activations are float32"),
    ({"arrays": {"resid_post": np.zeros((2, 3, ROWS, 2, D), complex)}}, "dtype complex128"),
    ({"arrays": {"a/b": np.zeros((2, 3, ROWS, 2, D))}}, "without slashes"),
    ({"stages": ["s0"]}, r"has 2 along stage, but stages names 1: s0"),
    ({"stages": "s0"}, "give a list, such as stages="),
    ({"stages": ["s0", "s0"]}, "stage 's0' is listed twice"),
    ({"stages": ["s0", "a/b"]}, "a/b"),
    ({"stages": []}, "stages is empty"),
    ({"layers": [0, 1]}, "has 3 along layer, but layers names 2"),
    ({"layers": [0, 1, 1]}, "layer 1 is listed twice"),
    ({"layers": [0, 1, -1]}, "layers has -1"),
    ({"tokens": ["last"]}, "has 2 along token, but tokens names 1"),
    ({"tokens": ["last", "last"]}, "different ones"),
    ({"table": frame(12)}, "has 13 rows, the table has 12"),
    ({"table": {"prompt": ["a"]}}, "the table is dict"),
    ({"table": "no/such.csv"}, "no such file"),
    ({"dims": ("entity", "layer")}, r"has 5 axes, .* and dims names 2"),
    ({"dims": "entity"}, "give a list of names"),
    ({"dims": ("stage", "layer", "entity", "tokens", "d_model")}, "did you mean 'token'"),
    ({"dims": {"resid_pots": ("entity",)}}, "dims names 'resid_pots'.*did you mean 'resid_post'"),
    ({"dims": ("stage", "layer", "row", "token", "d_model")}, "must have 'entity'"),
    ({"ids": ["id0"]}, "ids names 1 rows, the table has 13"),
    ({"ids": [f"id{i}" for i in reversed(range(ROWS))]}, "row 0 is 'id12' in ids and 'id0' .* The order differs: sort"),
    ({"ids": [f"no{i}" for i in range(ROWS)]}, "The table has no row no0"),
    ({"dtype": "float8"}, "dtype='float8'.*did you mean"),
    ({"nonfinite": "ignore"}, "nonfinite='ignore'"),
    ({"fingerprints": {"s9": "x"}}, "no such stage 's9'"),
    ({"arrays": {"resid_post": {"s0": np.zeros((3, ROWS, 2, D))}}}, "no stage 's1'; it has s0"),
    ({"arrays": {"resid_post": {0: np.zeros((2, ROWS, 2, D))}}}, "no layer 3; it has 0"),
    ({"arrays": {"resid_post": {}}}, "the mapping is empty"),
    ({"arrays": {"resid_post": {}}, "layers": None}, "the mapping is empty"),
    ({"arrays": {"resid_post": {"s0": {"a": np.zeros(3)}}}, "layers": None}, "layers has 'a'"),
    ({"arrays": {"loss": np.zeros((2, ROWS, 2, 3))}}, "has 4 axes"),
    (
        {"arrays": {"resid_post": {"s0": np.zeros((3, ROWS, 2, D)), "s1": np.zeros((3, ROWS, 2, D), np.float32)}}},
        "one array has features",
    ),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_wrong_input_is_named_and_nothing_is_written(
    change: dict[str, Any], words: str, values: np.ndarray, tmp_path: Path
) -> None:
    change = {"arrays": {"resid_post": values}, **change}
    with pytest.raises(InputError, match=words):
        write(tmp_path, **change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf")])
def test_values_that_are_not_finite(value: float, word: str, values: np.ndarray, tmp_path: Path) -> None:
    spoilt = values.copy()
    spoilt[1, 2, 9, 0, 3] = value
    place = rf"stage 's1', site 'resid_post', layer 7, entity 'id9', token 'first', feature \[3\]: .* is {word}"
    with pytest.raises(NonFiniteError, match=place):
        write(tmp_path, {"resid_post": spoilt})
    ds = write(tmp_path, {"resid_post": spoilt}, nonfinite="keep")
    np.testing.assert_array_equal(ds.resid_post.values, spoilt)


def test_values_beyond_the_range_of_the_dtype(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="beyond the range of float16"):
        write(tmp_path, {"resid_post": values * 1e6}, dtype="float16")


def test_ids_of_arrays_and_table(values: np.ndarray, tmp_path: Path) -> None:
    named = as_kind("xarray", values, tmp_path)
    with pytest.raises(InputError, match="row 0 is 'id0' in the coordinate entity and 'id12' in the table"):
        write(tmp_path, {"resid_post": named}, frame().iloc[::-1])
    ds = write(tmp_path, {"resid_post": values}, ids=[f"id{i}" for i in range(ROWS)])
    assert ds.entity.values[12] == "id12"


@pytest.mark.parametrize("dim", ["stage", "layer", "token", "entity"])
def test_two_arrays_in_different_orders_are_refused(dim: str, values: np.ndarray, tmp_path: Path) -> None:
    named = as_kind("xarray", values, tmp_path)
    reverse = named.isel({dim: slice(None, None, -1)})
    with pytest.raises(InputError, match=rf"the coordinate {dim} of mlp_out is .* that of resid_post is"):
        write(tmp_path, {"resid_post": named, "mlp_out": reverse}, stages=None, layers=None, tokens=None)
    assert list(tmp_path.iterdir()) == []


def test_a_store_with_numbered_rows_resumes(values: np.ndarray, tmp_path: Path) -> None:
    numbered = frame().assign(prompt_id=[f"r{i:06d}" for i in range(ROWS)])
    write(tmp_path, {"resid_post": values}, numbered)
    with pytest.warns(LabelWarning, match="names its rows r000000"):
        ds = write(tmp_path, {"resid_post": values}, frame().drop(columns="prompt_id"))
    assert ds.entity.values[1] == "r000001"


def test_statistics_may_come_first(values: np.ndarray, tmp_path: Path) -> None:
    arrays = {"resid_post_l2": np.linalg.norm(values, axis=-1), "loss": values[:, 0, :, :, 0], "resid_post": values}
    assert write(tmp_path, arrays, layers=None).layer.values.tolist() == [0, 1, 2]


def test_every_analysis_takes_it(tmp_path: Path) -> None:
    x = np.random.default_rng(5).standard_normal((1, 2, 40, 1, 5)).astype(np.float32)
    x[:, 1, ::2] += 2
    table = frame(40)
    ds = sl.from_arrays(tmp_path / "a.zarr", {"my_site": x}, table, progress=False)
    assert ds.my_site.attrs["hook"] == "imported.{layer}.my_site"
    probes = sl.probe(ds, target="colour", site="my_site", method="lda", progress=False)
    best = probes.strata.best(1)
    assert best["layer"].tolist() == [1]
    assert sl.centroids(ds, by="colour", site="my_site", progress=False).centroid.shape == (1, 2, 1, 2, 5)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float16]),
        hnp.array_shapes(min_dims=5, max_dims=5, max_side=4),
        elements=st.floats(-100, 100, width=16),
    ),
    st.integers(1, 3),
)
def test_what_goes_in_comes_out(tmp_path: Path, x: np.ndarray, block_size: int) -> None:
    path = tmp_path / f"{next(COUNTER)}.zarr"
    stages, tokens = [f"s{i}" for i in range(x.shape[0])], [f"t{i}" for i in range(x.shape[3])]
    ds = sl.from_arrays(
        path,
        {"resid_post": x},
        frame(x.shape[2]),
        stages=stages,
        tokens=tokens,
        progress=False,
        allow_same_weights=True,
        block_size=block_size,
    )
    assert ds.resid_post.dtype == x.dtype
    np.testing.assert_array_equal(ds.resid_post.values, x)
    layer = x.shape[1] - 1
    out = path.with_suffix("")
    sl.export(path, out, site="resid_post", layer=layer)
    exported = np.load(out / "resid_post.npy", mmap_mode="r")
    np.testing.assert_array_equal(exported, x[:, layer])
    again = sl.from_arrays(
        out / "again.zarr",
        {"resid_post": exported},
        out / "rows.csv",
        stages=stages,
        layers=[layer],
        tokens=tokens,
        dims=("stage", "entity", "token", "d_model"),
        progress=False,
        allow_same_weights=True,
    )
    np.testing.assert_array_equal(again.resid_post.values, x[:, [layer]])
    for name in ("entity", "entity_id", "prompt", "colour"):
        assert again[name].values.tolist() == ds[name].values.tolist()
