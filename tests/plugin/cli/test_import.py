"""`stratalens import`: files in, a store that analyses take out; wrong input exits with 2 and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stratalens.plugin.cli.array_jobs import split_list, split_numbers
from stratalens.plugin.interop.array_files import site_of_name
from stratalens.store.errors import InputError
from stratalens.store.interop.export_labels import export
from stratalens.store.reading.open import open_store

ROWS = 24
X = np.random.default_rng(0).standard_normal((2, 3, ROWS, 4)).astype(np.float32)  # (stage, layer, entity, d_model)
X[1, 2, ::2] += 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    colours = [["red", "blue"][i % 2] for i in range(ROWS)]
    pd.DataFrame({"prompt": [f"p {i}" for i in range(ROWS)], "colour": colours}).to_csv("prompts.csv", index=False)
    for number, name in enumerate(("step0", "step600")):
        np.save(f"{name}.npy", X[number])
    return tmp_path


def test_one_file_for_each_stage(folder: Path, invoke: Any) -> None:
    arguments = ["step0.npy", "step600.npy", "--table", "prompts.csv", "-o", "run.zarr", "--layers", "3-5"]
    done = invoke("import", *arguments, "--source", "nnsight", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["stages"] == ["step0", "step600"]
    assert facts["complete"]
    ds = open_store("run.zarr")
    np.testing.assert_array_equal(ds.resid_post.values[:, :, :, 0], X)
    assert ds.layer.values.tolist() == [3, 4, 5]
    assert json.loads(str(ds.attrs["provenance"]))["source"] == "nnsight"
    again = invoke("import", *arguments, "--source", "nnsight")
    assert again.exit_code == 0, again.output
    answer = invoke("analyze", "run.zarr", "--verbs", "probes", "--by", "colour", "--permutations", "0", "--json")
    assert answer.exit_code == 0, answer.output
    assert invoke("verify", "run.zarr").exit_code == 0
    assert invoke("report", "run.zarr", "--by", "colour", "-o", "report.html", "--permutations", "0").exit_code == 0
    assert "did not run a model" in invoke("info", "run.zarr").stdout


def test_a_dataset_needs_no_table_and_what_was_exported_comes_in_again(folder: Path, invoke: Any) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    columns = {"prompt": [f"p {i}" for i in range(ROWS)], "colour": ["red", "blue"] * 12, "mine": X[0, 0].tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk("ds")
    done = invoke("import", "ds", "-o", "a.zarr", "--layers", "7", "--stages", "final")
    assert done.exit_code == 0, done.output
    ds = open_store("a.zarr")
    assert ds.mine.dims == ("stage", "layer", "entity", "token", "d_model")
    export("a.zarr", "out", site="mine", layer=7)
    done = invoke("import", "mine=out/mine.npy", "--table", "out/rows.csv", "-o", "b.zarr", "--layers", "7",
                  "--dims", "stage,entity,token,d_model", "--stages", "final")  # fmt: skip
    assert done.exit_code == 0, done.output
    other = open_store("b.zarr")
    np.testing.assert_array_equal(other.mine.values, ds.mine.values)
    for name in ("entity", "entity_id", "prompt", "colour"):
        assert other[name].values.tolist() == ds[name].values.tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step0.npy"], ["--table is missing"]),
        (["gone.npy", "--table", "prompts.csv"], ["gone.npy", "no such file"]),
        (["step0.npy", "--table", "gone.csv"], ["gone.csv"]),
        (["step0.npy", "--table", "prompts.csv", "--layers", "0,1"], ["has 3 along layer", "names 2"]),
        (["step0.npy", "--table", "prompts.csv", "--layers", "a"], ["'a' is no block index"]),
        (["step0.npy", "--table", "prompts.csv", "--tokens", "a,,b"], ["a name is empty"]),
        (["step0.npy", "--table", "prompts.csv", "--tokens", "a,b"], ["has 3 axes", "--layers 0,1,2"]),
        (["step0.npy", "--table", "prompts.csv", "--dims", "layer,entity"], ["has 3 axes", "names 2"]),
        (["step0.npy", "--table", "prompts.csv", "--dtype", "float8"], ["float8", "float32"]),
        (["step0.npy", "--table", "prompts.csv", "--nonfinite", "drop"], ["drop", "keep"]),
        (["step0.npy", "--table", "prompts.csv", "--site", "a/b"], ["a/b"]),
        (["step0.npy", "step600.npy", "--table", "prompts.csv", "--stages", "one"], ["2 files", "names 1"]),
    ],
)
def test_wrong_input(arguments: list[str], words: list[str], folder: Path, invoke: Any) -> None:
    before = sorted(p.name for p in folder.iterdir())
    done = invoke("import", *arguments, "-o", "run.zarr")
    assert done.exit_code == 2, done.output
    text = " ".join(done.stderr.split())
    assert all(word in text for word in words), text
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_store_on_another_path_stays(folder: Path, invoke: Any) -> None:
    Path("run.zarr").mkdir()
    Path("run.zarr/file").write_text("mine")
    assert invoke("import", "step0.npy", "--table", "prompts.csv", "-o", "run.zarr").exit_code == 2
    assert [p.name for p in Path("run.zarr").iterdir()] == ["file"]


def test_lists_of_options() -> None:
    assert split_list("a, b", "stages") == ["a", "b"]
    assert split_numbers("2,5-7", "layers") == [2, 5, 6, 7]
    with pytest.raises(InputError, match="3-x"):
        split_numbers("3-x", "layers")
    for many in ("0-999999999", "9" * 5000, "3-"):  # numbers that would fill the memory, or that Python cannot read
        with pytest.raises(InputError, match="block index"):
            split_numbers(many, "layers")
    assert site_of_name("mine." + "9" * 5000)[1] is None
