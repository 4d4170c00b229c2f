"""Several seeds in one run, and weights that are removed once what is recorded of them is there."""

import json

import numpy as np
import pandas as pd
import pytest

import stratalens as sl
from stratalens.plugin.study import forecast as forecasting
from stratalens.plugin.study.config.settings import (
    AfterSettings,
    AnalysisSettings,
    RecordSettings,
    StudySettings,
    TrainSettings,
    validate_settings,
)
from stratalens.plugin.study.findings.seeds import describe_seeds, summarize_seeds
from stratalens.plugin.study.forecast import forecast_study
from stratalens.plugin.study.run import run_study
from stratalens.plugin.study.training.checkpoints import retained_stages, stages_still_needed
from stratalens.store.errors import InputError
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


def test_every_seed_is_a_run_of_its_own_and_the_table_is_over_them(settings, done):
    alone = [json.loads((done.folder / f"seed-{seed}" / "summary.json").read_text()) for seed in (4, 7)]
    rows = json.loads(done.summary.read_text())
    assert len(rows) == len(alone[0])
    for row, *held in zip(rows, *alone, strict=True):
        assert row["name"] == held[0]["name"] == held[1]["name"]
        values = [one["value"] for one in held if one["value"] is not None]
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


def test_weights_that_are_not_kept_are_gone_and_all_that_was_recorded_is_there(done):
    folder = done.folder / "seed-4"
    left = {path.parent.name for path in (folder / "checkpoints").rglob("*.safetensors")}
    assert left == {"s3"}
    ds = sl.open_store(folder / "run.zarr")
    assert list(ds.stage.values) == ["untrained", "s1", "s2", "s3"]
    assert list(ds.stage_order.values) == [0, 1, 2, 3]
    assert bool(ds.recorded.all())
    assert {path.stem for path in (folder / "answers").glob("*.json")} == {"untrained", "s1", "s2", "s3"}


def test_a_second_run_says_the_same_without_those_weights(settings, done):
    before, weights = json.loads(done.summary.read_text()), done.folder / "seed-4" / "checkpoints" / "s3"
    made = (weights / "model.safetensors").stat().st_mtime_ns
    run_study(settings, done.folder, smoke_test=True, quiet=True)
    assert json.loads(done.summary.read_text()) == before
    assert (weights / "model.safetensors").stat().st_mtime_ns == made


def test_what_is_needed_meanwhile_and_kept_at_the_end():
    names = ["untrained", "s1", "s2", "s3", "mixed"]
    plain = {"stages": 3, "after": [{"name": "mixed"}]}
    for policy, kept in (("all", names), ("last", ["s3", "mixed"]), ("none", [])):
        assert retained_stages(validate_settings({**plain, "keep_checkpoints": policy}, ""), names) == kept
    lora = validate_settings({**plain, "keep_checkpoints": "last", "train": {"method": "lora"}}, "")
    assert retained_stages(lora, names) == ["untrained", "s3", "mixed"]
    told = validate_settings({**plain, "keep_checkpoints": "none", "self_report": {}}, "")
    assert stages_still_needed(told, names[:3]) == ["untrained", "s2"]
    assert stages_still_needed(told, names) == ["untrained", "s3", "mixed"]


def test_training_on_from_removed_weights_is_refused(settings, done):
    folder = done.folder / "seed-7"
    for file in (folder / "checkpoints" / "s3").glob("*.safetensors"):
        file.rename(file.with_suffix(".away"))
    run_file = folder / "run.yaml"
    held = run_file.read_text()
    on = settings.model_copy(update={"seed": 7, "seeds": (), "after": (AfterSettings(name="mixed", epochs=1),)})
    try:
        run_file.write_text(held.replace("after: []", "after: [{name: mixed, epochs: 1.0}]"))
        with pytest.raises(InputError, match=r"s3 has no weights any more .*training 'mixed'.*keep_checkpoints: all"):
            run_study(on, folder, quiet=True)
    finally:
        run_file.write_text(held)
        for file in (folder / "checkpoints" / "s3").glob("*.away"):
            file.rename(file.with_suffix(".safetensors"))


def test_a_forecast_from_a_sample_is_that_of_all_entities(settings, monkeypatch):
    whole = forecast_study(settings)
    monkeypatch.setattr(forecasting, "MAX_ENTITIES", 5)
    monkeypatch.setattr(forecasting, "SAMPLED_ENTITIES", 4)
    part = forecast_study(settings)
    assert whole["sampled_entities"] is None
    assert part["sampled_entities"] == 12
    for name in ("store_bytes", "checkpoint_bytes", "bytes", "peak_bytes", "memory_bytes", "all_seeds_bytes", "seeds"):
        assert part[name] == whole[name], name
    assert part["stores"]["run.zarr"]["rows"] == whole["stores"]["run.zarr"]["rows"]
    assert part["training_tokens"] == pytest.approx(whole["training_tokens"], rel=0.1)
    assert part["recording_tokens"] == pytest.approx(whole["recording_tokens"], rel=0.1)
    assert (
        whole["checkpoint_bytes"] * 4
        == forecast_study(settings.model_copy(update={"keep_checkpoints": "all"}))["checkpoint_bytes"]
    )


def test_seeds_are_given_once():
    with pytest.raises(InputError, match="list each seed once"):
        validate_settings({"seeds": [1, 1]}, "here")


def test_a_number_that_one_seed_lacks_is_said_of_the_others():
    row = {"name": "first v last accuracy", "stage": "s6", "layer": 5, "token": "last", "site": "resid_post"}
    row |= {"low": None, "high": None, "null": 0.5, "p": None, "n": 4}
    made = summarize_seeds({0: [{**row, "value": 0.9}], 1: [{**row, "value": None}], 2: [{**row, "value": 0.7}]})[0]
    assert made["seeds"] == [0, 2]
    assert made["value"] == pytest.approx(0.8)
    assert "over 2 seeds" in describe_seeds([made])[0]
    none = summarize_seeds({0: [{**row, "value": None}]})[0]
    assert none["value"] is None
    assert describe_seeds([none]) == []
