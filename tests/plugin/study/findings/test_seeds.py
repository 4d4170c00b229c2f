"""Several seeds in one run, and weights that the run removes once they are recorded."""

import json

import numpy as np
import pandas as pd
import pytest

import stratalens as sl
from stratalens.plugin.study.config.settings import (
    AfterSettings,
    AnalysisSettings,
    RecordSettings,
    StudySettings,
    TrainSettings,
)
from stratalens.plugin.study.findings.seeds import describe_seeds, summarize_seeds
from stratalens.plugin.study.run import run_study
from stratalens.store.errors import InputError
from support.thorough import thorough
from support.tiny_study import save_base

ANALYSIS = AnalysisSettings(repeats=2, permutations=10, sweep_permutations=5, probe_permutations=3, bins=2)
TRAIN = TrainSettings(epochs=1, batch_size=16, learning_rate=1e-2, precision="float32", optimizer="adamw")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return StudySettings(
        model=str(save_base(tmp_path_factory.mktemp("base"), layers=1)),
        stages=3,
        entities_per_stage=12,
        train_questions=2,
        seeds=(4, 7),
        device="cpu",
        train=TRAIN,
        record=RecordSettings(positions=("last",)),
        analysis=ANALYSIS,
        keep_checkpoints="last",
    )


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    return run_study(settings, tmp_path_factory.mktemp("seeds") / "out", smoke_test=True, quiet=True)


def test_every_seed_has_its_own_run_and_the_table_summarises_them(settings, done):
    alone = [json.loads((done.folder / f"seed-{seed}" / "summary.json").read_text()) for seed in (4, 7)]
    rows = json.loads(done.summary.read_text())
    assert len(rows) == len(alone[0])
    for row, *original in zip(rows, *alone, strict=True):
        assert row["name"] == original[0]["name"] == original[1]["name"]
        values = [one["value"] for one in original if one["value"] is not None]
        assert row["values"] == values
        if len(values) == 2:
            assert row["value"] == pytest.approx(np.mean(values))
            assert row["sd"] == pytest.approx(np.std(values, ddof=1))
            assert row["low"] <= row["min"] <= row["value"] <= row["max"] <= row["high"]
    table = pd.read_csv(done.folder / "seeds.csv")
    assert {"name", "value", "sd", "seed 4", "seed 7"} <= set(table)
    assert "over 2 seeds" in done.report.read_text()
    entities = [(done.folder / f"seed-{seed}" / "corpus" / "entities.csv").read_text() for seed in (4, 7)]
    assert entities[0] != entities[1]


def test_removed_weights_are_gone_and_all_recordings_are_there(done):
    folder = done.folder / "seed-4"
    left = {path.parent.name for path in (folder / "checkpoints").rglob("*.safetensors")}
    assert left == {"s3"}
    ds = sl.open_store(folder / "run.zarr")
    assert list(ds.stage.values) == ["untrained", "s1", "s2", "s3"]
    assert list(ds.stage_order.values) == [0, 1, 2, 3]
    assert bool(ds.recorded.all())
    assert {path.stem for path in (folder / "answers").glob("*.json")} == {"untrained", "s1", "s2", "s3"}


@thorough
def test_a_second_run_gives_the_same_numbers_without_those_weights(settings, done):
    before, weights = json.loads(done.summary.read_text()), done.folder / "seed-4" / "checkpoints" / "s3"
    modified = (weights / "model.safetensors").stat().st_mtime_ns
    run_study(settings, done.folder, smoke_test=True, quiet=True)
    assert json.loads(done.summary.read_text()) == before
    assert (weights / "model.safetensors").stat().st_mtime_ns == modified


def test_training_from_removed_weights_is_refused(settings, done):
    folder = done.folder / "seed-7"
    for file in (folder / "checkpoints" / "s3").glob("*.safetensors"):
        file.rename(file.with_suffix(".away"))
    run_file = folder / "run.yaml"
    original = run_file.read_text()
    on = settings.model_copy(update={"seed": 7, "seeds": (), "after": (AfterSettings(name="mixed", epochs=1),)})
    try:
        run_file.write_text(original.replace("after: []", "after: [{name: mixed, epochs: 1.0}]"))
        with pytest.raises(InputError, match=r"s3 has no weights any more .*training 'mixed'.*keep_checkpoints: all"):
            run_study(on, folder, quiet=True)
    finally:
        run_file.write_text(original)
        for file in (folder / "checkpoints" / "s3").glob("*.away"):
            file.rename(file.with_suffix(".safetensors"))


def test_a_number_that_one_seed_misses_is_summarised_over_the_others():
    row = {"name": "first v last accuracy", "stage": "s6", "layer": 5, "token": "last", "site": "resid_post"}
    row |= {"low": None, "high": None, "null": 0.5, "p": None, "n": 4}
    summary = summarize_seeds({0: [{**row, "value": 0.9}], 1: [{**row, "value": None}], 2: [{**row, "value": 0.7}]})[0]
    assert summary["seeds"] == [0, 2]
    assert summary["value"] == pytest.approx(0.8)
    assert "over 2 seeds" in describe_seeds([summary])[0]
    none = summarize_seeds({0: [{**row, "value": None}]})[0]
    assert none["value"] is None
    assert describe_seeds([none]) == []
