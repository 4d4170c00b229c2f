"""Bad input on the command line: exit code 2, a message with the place and the remedy, and no partial output."""

import shutil

import numpy as np
import pandas as pd
import pytest
import zarr

LONG = "Q: Who is Ann 0?" + " The" * 200 + "\nA:"


def edit(column, row, value):
    def change(table):
        table = table.copy()
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return change


TABLES = {
    "empty table": (lambda t: t.iloc[:0], ["prompts.csv", "no rows"]),
    "no prompt column": (lambda t: t.rename(columns={"prompt": "promt"}), ["prompt", "promt"]),
    "empty prompt": (edit("prompt", 4, ""), ["row 4", "empty"]),
    "duplicate prompt_id": (lambda t: t.assign(prompt_id="same"), ["prompt_id", "same"]),
    "entity not in its prompt": (edit("entity", 7, "Zed"), ["Zed", "row 7"]),
    "prompt longer than the context": (edit("prompt", 0, LONG), ["64", "row 0"]),
    "span outside the prompt": (lambda t: t.assign(verb_start=2, verb_end=900), ["verb", "900"]),
}

RUNS = {
    "missing prompts": ({"prompts": "nowhere.csv"}, ["nowhere.csv"]),
    "position beyond a short prompt": ({"positions": ["-60"]}, ["-60", "missing"]),
    "unknown position": ({"positions": ["entity_lst"]}, ["entity_lst", "entity_last"]),
    "position of too many digits": ({"positions": ["-" + "9" * 5000]}, ["position", "entity_last"]),
    "site of too many digits": ({"sites": ["blocks." + "9" * 5000 + ".hook_resid_post"]}, ["blocks.99", "resid_post"]),
    "unknown site": ({"sites": ["resid_pst"]}, ["resid_pst", "resid_post"]),
    "site that needs a set_use": ({"sites": ["blocks.0.attn.hook_result"]}, ["hook_result"]),
    "unknown layer": ({"layers": [99]}, ["99"]),
    "unknown dtype": ({"dtype": "float8"}, ["float8", "bfloat16"]),
    "unknown statistic": ({"statistics": ["los"]}, ["los", "loss"]),
    "empty stage name": ({"stages": [{"name": ""}]}, ["empty"]),
    "stage name that leaves the folder": ({"stages": [{"name": ".."}]}, [".."]),
    "stage name with a slash": ({"stages": [{"name": "a/b"}]}, ["a/b"]),
    "stage name with a control character": ({"stages": [{"name": "a\nb"}]}, ["control"]),
    "checkpoint that is not there": ({"stages": [{"name": "a", "path": "gone"}]}, ["gone"]),
    "checkpoint without weights": ({"stages": [{"name": "a", "path": "hollow"}]}, ["hollow", "safetensors"]),
    "unknown key": ({"positons": ["last"]}, ["positons", "positions"]),
}


@pytest.fixture
def place(workplace, checkpoints):
    (workplace.folder / "hollow").mkdir()
    shutil.copy(checkpoints / "base" / "config.json", workplace.folder / "hollow" / "config.json")
    return workplace


def check(result, words, folder):
    assert result.exit_code == 2, result.output
    assert [word for word in words if word not in result.stderr] == []
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (folder / "run.zarr").exists()


@pytest.mark.parametrize("case", TABLES)
def test_bad_table(case, place, invoke):
    change, words = TABLES[case]
    table = pd.read_csv(place.folder / "prompts.csv")
    change(table).to_csv(place.folder / "prompts.csv", index=False)
    check(invoke("capture", place()), words, place.folder)


@pytest.mark.parametrize("case", RUNS)
def test_bad_run(case, place, invoke):
    changes, words = RUNS[case]
    check(invoke("capture", place(**changes)), words, place.folder)


def test_store_path_that_is_a_file(place, invoke):
    (place.folder / "run.zarr").write_text("mine")
    result = invoke("capture", place())
    assert result.exit_code == 2, result.output
    assert "run.zarr" in result.stderr
    assert (place.folder / "run.zarr").read_text() == "mine"


def test_store_path_that_is_a_foreign_zarr_group(place, invoke):
    zarr.open_group(place.folder / "run.zarr", mode="w").create_array("theirs", data=np.arange(3))
    result = invoke("capture", place())
    assert result.exit_code == 2, result.output
    assert zarr.open_group(place.folder / "run.zarr", mode="r")["theirs"][:].tolist() == [0, 1, 2]


def test_store_with_other_prompts(place, invoke):
    assert invoke("capture", place()).exit_code == 0
    before = {p: p.read_bytes() for p in (place.folder / "run.zarr").rglob("*") if p.is_file()}
    table = pd.read_csv(place.folder / "prompts.csv")
    table["prompt"] = table["prompt"].str.replace("Who", "What", regex=False)
    table.to_csv(place.folder / "prompts.csv", index=False)
    result = invoke("capture", place())
    assert result.exit_code == 2, result.output
    assert {p: p.read_bytes() for p in (place.folder / "run.zarr").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["analyze", "STORE", "--by", "traned_stage"], ["traned_stage", "trained_stage"]),
        (["analyze", "STORE", "--verbs", "probs"], ["probs", "probes"]),
        (["analyze", "STORE", "--verbs", "probes,centroid"], ["verbs='centroid'", "mean 'centroids'", "Valid: "]),
        (["analyze", "STORE", "--verbs", " , "], ["verbs is empty", "centroids, probes, controls"]),
        (["analyze", "STORE", "--site", "z"], ["'z'", "resid_post"]),
        (["analyze", "STORE", "--backend", "gpu", "--verbs", "probes"], ["gpu"]),
        (["analyze", "STORE", "--by", "prompt", "--verbs", "probes"], ["prompt"]),
        (["export", "STORE", "--site", "resid_post", "--layer", "9", "--to", "OUT/a.npy"], ["9", "valid"]),
        (["export", "STORE", "--site", "resid_post", "--layer", "0", "--to", "OUT/a.csv"], [".npy"]),
    ],
)
def test_bad_questions(arguments, words, recorded, tmp_path, invoke):
    placed = [a.replace("STORE", str(recorded)).replace("OUT", str(tmp_path)) for a in arguments]
    result = invoke(*placed)
    assert result.exit_code == 2, result.output
    assert [word for word in words if word not in result.stderr] == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused(place, invoke, monkeypatch):
    """The capture refuses a disk that is too small before it writes; --force skips this check."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("stratalens.plugin.capture.store.shutil.disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    result = invoke("capture", place())
    check(result, ["GiB free", "--force"], place.folder)
    assert invoke("capture", place(), "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["either a run file or --preset", "smoke"]),
        (["--preset", "smok"], ["smok", "smoke"]),
        (["OUT/nothing.yaml"], ["nothing.yaml"]),
        (["OUT/wrong.yaml"], ["epoch", "epochs"]),
    ],
)
def test_bad_studies(arguments, words, tmp_path, invoke):
    (tmp_path / "wrong.yaml").write_text("preset: custom\ntrain: {epoch: 3}\n")
    placed = [a.replace("OUT", str(tmp_path)) for a in arguments]
    result = invoke("study", *placed, "--out", tmp_path / "study")
    assert result.exit_code == 2, result.output
    assert [word for word in words if word not in result.stderr] == []
    assert not (tmp_path / "study").exists()
