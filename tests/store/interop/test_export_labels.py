"""Exports with labels: other readers get the values and the rows; a failure leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from stratalens.store.errors import InputError, NotRecordedError, StratalensError
from stratalens.store.format.schema import site_variable
from stratalens.store.interop import export_labels
from stratalens.store.interop.export_labels import export
from stratalens.store.reading.open import open_store
from support.stores import make_store

ROWS = 11
LABELS = {
    "n": np.arange(ROWS),
    "flag": np.arange(ROWS) % 2 == 0,
    "measured": [np.nan if i == 3 else i / 3 for i in range(ROWS)],
    "note": [['a "quoted", text', "two\nlines", "é;\t", ""][i % 4] for i in range(ROWS)],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads = site_variable("z", ["head", "d_head"], [2, 3], "float16", "blocks.{layer}.attn.hook_z")
    final = site_variable("ln_final", ["d_model"], [8], "float32", "ln_final.hook_out")
    return make_store(
        tmp_path_factory.mktemp("s") / "run.zarr",
        stages=3,
        entities=ROWS,
        tokens=("first", "last"),
        dtype="bfloat16",
        labels=LABELS,
        statistics=False,
        extra=[heads, final],
        block_size=4,
    )


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_labels, "_ROWS", 3)


def check_table(table: pd.DataFrame, path: Path) -> None:
    ds = open_store(path)
    assert table.columns[0] == "prompt_id"
    assert table["prompt_id"].tolist() == ds.entity.values.tolist()
    for name in ("prompt", "entity_id", "trained_stage", "n", "flag", "note"):
        assert table[name].tolist() == ds[name].values.tolist(), name
    np.testing.assert_allclose(table["measured"].astype(float), LABELS["measured"])


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values={"measured": [""]})


@pytest.mark.parametrize(("site", "layer"), [("resid_post", 1), ("z", 0), ("ln_final", None)])
def test_a_folder(path: Path, tmp_path: Path, site: str, layer: int | None) -> None:
    files = export(path, tmp_path / "out", site=site, layer=layer)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(file.name for file in files)
    expected = open_store(path)[site]
    expected = expected if layer is None else expected.sel(layer=layer)
    np.testing.assert_array_equal(np.load(files[0]), expected.values)
    check_table(read_csv(files[1]), path)
    text = files[2].read_text()
    assert "untrained, s1, s2" in text
    assert f"{site}.npy" in text
    assert "first, last" in text
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_array_with_a_table(path: Path, tmp_path: Path) -> None:
    for suffix in (".npy", ".safetensors"):
        files = export(path, tmp_path / f"a{suffix}", site="resid_post", layer=1)
        assert files[0].suffix == suffix
        check_table(read_csv(tmp_path / "a.csv"), path)
    assert json.loads((tmp_path / "a.npy.json").read_text())["layer"] == 1
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("resid_post"), np.load(tmp_path / "a.npy"))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(("site", "layer"), [("resid_post", 0), ("z", 1), ("ln_final", None)])
def test_npz(path: Path, tmp_path: Path, site: str, layer: int | None) -> None:
    (file,) = export(path, tmp_path / "a.npz", site=site, layer=layer)
    arrays = np.load(file)
    expected = open_store(path)[site]
    np.testing.assert_array_equal(arrays[site], expected.values if layer is None else expected.sel(layer=layer).values)
    assert arrays["stage"].tolist() == ["untrained", "s1", "s2"]
    assert arrays["token"].tolist() == ["first", "last"]
    check_table(pd.DataFrame({k: v for k, v in arrays.items() if v.shape == (ROWS,)}), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(("site", "layer"), [("resid_post", 0), ("z", 1)])
def test_parquet(path: Path, tmp_path: Path, site: str, layer: int) -> None:
    (file,) = export(path, tmp_path / "a.parquet", site=site, layer=layer)
    frame = pd.read_parquet(file)
    values = open_store(path)[site].sel(layer=layer).values
    assert len(frame) == 3 * ROWS * 2
    np.testing.assert_array_equal(np.stack(frame[site]).reshape(values.shape), values)
    one = frame[(frame["stage"] == "s1") & (frame["token"] == "last")].reset_index(drop=True)
    check_table(one.drop(columns=["stage", "token", site]), path)
    np.testing.assert_array_equal(np.stack(one[site]).reshape(ROWS, -1), values[1, :, 1].reshape(ROWS, -1))


@pytest.mark.parametrize(
    ("to", "options", "words"),
    [
        ("a.bin", {}, r"cannot export to 'a\.bin'.*valid: \.npy, \.safetensors, \.npz, \.parquet, or a folder"),
        ("no/a", {}, "does not exist"),
        ("full", {}, "not empty"),
        ("a", {"site": "resid_pots"}, "did you mean 'resid_post'"),
        ("a.npz", {"layer": 9}, "layer 9 was not recorded"),
        ("a.parquet", {"layer": None}, "choose one with --layer"),
    ],
)
def test_wrong_input_leaves_nothing(path: Path, tmp_path: Path, to: str, options: Any, words: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match=words):
        export(path, tmp_path / to, **{"site": "resid_post", "layer": 0} | options)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("to", ["a", "a.npz", "a.parquet", "a.npy"])
def test_a_failure_leaves_nothing(path: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    gap = make_store(tmp_path / "gap.zarr", 1, 1, 4, skip={"untrained": [2]}, statistics=False)
    with pytest.raises(NotRecordedError, match="untrained"):
        export(gap, tmp_path / to, site="resid_post", layer=0)
    assert [p.name for p in tmp_path.iterdir()] == ["gap.zarr"]
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StratalensError, match="disk full"):
        export(path, tmp_path / to, site="resid_post", layer=0)
    assert [p.name for p in tmp_path.iterdir()] == ["gap.zarr"]


def test_an_empty_folder_and_an_old_file_are_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a.npz").write_text("old")
    export(path, tmp_path / "out", site="resid_post", layer=0)
    export(path, tmp_path / "a.npz", site="resid_post", layer=0)
    assert np.load(tmp_path / "a.npz")["resid_post"].shape == (3, ROWS, 2, 8)
