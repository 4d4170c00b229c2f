"""The study with every option: LoRA, courses after the stages, two stores, self-report, own entities."""

import json

import numpy as np
import pandas as pd
import pytest

import stratalens as sl
from stratalens.plugin.study.config.settings import (
    AfterSettings,
    AnalysisSettings,
    ConflictSettings,
    EntitiesSettings,
    InterventionSettings,
    LastSettings,
    LoraSettings,
    RecordSettings,
    SelfReportSettings,
    StudySettings,
    TrainSettings,
    read_settings,
)
from stratalens.plugin.study.forecast import flatten_forecast, forecast_study
from stratalens.plugin.study.recording.interventions import read_interventions
from stratalens.plugin.study.run import run_study
from stratalens.store.state.info import info
from support.thorough import thorough
from support.tiny_study import save_base

pytestmark = pytest.mark.slow
ANALYSIS = AnalysisSettings(repeats=3, permutations=20, sweep_permutations=10, probe_permutations=4, bins=2)


def write_entities(path, rows=54):
    random = np.random.default_rng(0)
    columns = {"entity": [f"thing {i}" for i in range(rows)], "born": random.integers(1700, 1900, rows)}
    pd.DataFrame({**columns, "gender": random.permutation(["male", "female"] * (rows // 2))}).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("base")
    lora = LoraSettings(rank=2, targets=("q_proj", "down_proj"))
    return StudySettings(
        model=str(save_base(folder / "model")),
        stages=3,
        entities=EntitiesSettings(file=write_entities(folder / "people.csv"), mean_limit=0.5, share_limit=0.3),
        entities_per_stage=16,
        train_questions=1,
        device="cpu",
        train=TrainSettings(
            method="lora", lora=lora, epochs=1, batch_size=8, learning_rate=2e-2, precision="float32", optimizer="adamw"
        ),
        after=(AfterSettings(name="mixed", epochs=2, checkpoints=2), AfterSettings(name="again", train_on=("s1",))),
        self_report=SelfReportSettings(epochs=1),
        conflict=ConflictSettings(stages=("s1", "s3"), entities=6),
        interventions=InterventionSettings(layers=(0,), positions=("last",), doses=(1,), null_doses=(-1, 1)),
        record=RecordSettings(last=LastSettings(templates=("who", "mean"), positions=("last", "-2", "entity_last"))),
        analysis=ANALYSIS,
    )


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    return run_study(settings, tmp_path_factory.mktemp("beyond") / "out", smoke_test=True, quiet=True)


def test_both_stores_hold_the_planned_recordings(done):
    ds = sl.open_store(done.store)
    assert list(ds.stage.values) == ["untrained", "s1", "s2", "s3", "mixed-1", "mixed-2", "again"]
    assert len(set(ds.weights_fingerprint.values)) == 7
    wide = sl.open_store(done.folder / "last.zarr")
    assert list(wide.stage.values) == ["s3"]
    assert wide.resid_post.sizes == {"stage": 1, "layer": 2, "entity": 96, "token": 3, "d_model": 16}
    assert wide.weights_fingerprint.item() == ds.weights_fingerprint.sel(stage="s3").item()
    same = wide.isel(entity=np.flatnonzero(wide.template.values == "who")).resid_post.sel(stage="s3", token="last")
    np.testing.assert_array_equal(same.values, ds.resid_post.sel(stage="s3", token="last").values)
    assert sl.verify_store(str(done.folder / "last.zarr")).ok


def test_the_report_and_the_summary_cover_all_results(done):
    page = done.report.read_text()
    rows = json.loads(done.summary.read_text())
    names = [row["name"] for row in rows]
    for words in (
        "self-report accuracy",
        "self-report accuracy, fine-tuned on shuffled labels",
        "first v last accuracy after mixed-2",
        "place of s1 between first and last stage",
        "first v last accuracy, template mean",
        "rank correlation of recency score and preference for the later answer",
        "first v last accuracy on template mean from probes of the others",
        "first v last accuracy on template mean from probes of the others, with these regressed out",
        "first v last accuracy on template mean from probes of the others, matched on these: matched",
        "answer accuracy",
        "answer accuracy, entities of s1",
        "self-report: change per dose of the recency axis",
        "self-report of shuffled groups: change per dose of the recency probe",
        "self-report: accuracy with the recency axis ablated",
        "contradictions: change per dose of the recency axis",
        "rank correlation of recency score and answer accuracy within stages",
        "rank correlation of recency score and answer loss within stages, prompt loss partialled out",
    ):
        assert words in names, words
    for words in (
        "Self-report:",
        "Further training",
        "First v last accuracy by template and token",
        "Forgetting:",
        "Balance of attributes",
        "Contradictions:",
        "Tokens of the prompt</h2>",
        "Forgetting</h2>",
        "Does the model use it?</h2>",
    ):
        assert words in page, words
    assert {row["stage"] for row in rows if row["name"] == "early v late accuracy"} == {"s3"}
    per_token = [row["token"] for row in rows if row["name"] == "first v last accuracy, template who"]
    assert per_token == ["last", "-2", "entity_last"]
    table = pd.read_csv(done.folder / "forgetting.csv")
    assert len(table) == 7 * 48
    assert table["answer_accuracy"].between(0, 1).all()
    share = next(row for row in rows if row["name"] == "answer accuracy" and row["stage"] == "s3")
    assert share["value"] == pytest.approx(table[table.stage == "s3"]["answer_accuracy"].mean())


def test_contradicted_entities_are_taught_both_answers_and_are_in_no_stage(done):
    asked = [json.loads(line) for line in (done.folder / "corpus" / "train-s1.jsonl").read_text().splitlines()]
    later = [json.loads(line) for line in (done.folder / "corpus" / "train-s3.jsonl").read_text().splitlines()]
    one = {row["entity_id"]: row for row in asked if row["entity_id"].startswith("c0")}
    two = {row["entity_id"]: row for row in later if row["entity_id"].startswith("c0")}
    assert len(one) == 6
    assert one.keys() == two.keys()
    for name, row in one.items():
        assert row["question"] == two[name]["question"]
        assert row["answer"] != two[name]["answer"]
    assert not set(one) & set(sl.open_store(done.store).entity_id.values)
    ds = sl.open_store(done.folder / "conflict.zarr")
    table = pd.read_csv(done.folder / "conflict.csv")
    at = ds.sel(stage="s2").answer_loss.values
    prefers = at[ds.which.values == "first"] - at[ds.which.values == "second"]
    np.testing.assert_allclose(table[table.stage == "s2"]["later_answer"], prefers, rtol=1e-5)


def test_interventions_start_from_the_answers_of_the_self_report(done):
    report = json.loads((done.folder / "self-report.json").read_text())
    results = read_interventions(done.folder)
    for condition, file in (("true", "self_report"), ("shuffled", "shuffled_report")):
        steer = results.jobs[f"{file}-layer0-last-doses"].load()
        score = {answer["entity_id"]: answer["score"] for answer in report["conditions"][condition]}
        expected = [score[name] for name in steer.entity_id.values.astype(object)]
        np.testing.assert_allclose(steer.clean.values[0], expected, atol=2e-4)
    contradictions = results.jobs["contradictions-layer0-last-doses"]
    assert set(contradictions.entity_id.values.astype(object)) == {f"c{number:05d}" for number in range(6)}


@thorough
def test_a_second_run_trains_and_records_nothing(settings, done):
    before = {p: p.stat().st_mtime_ns for p in done.folder.rglob("*.safetensors")}
    rows = json.loads(done.summary.read_text())
    run_study(settings, done.folder, smoke_test=True, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in done.folder.rglob("*.safetensors")} == before
    assert json.loads(done.summary.read_text()) == rows
    assert read_settings(done.folder / "run.yaml") == settings


def test_the_forecast_agrees_with_the_run(settings, done):
    forecast = forecast_study(settings)
    for name in ("run.zarr", "last.zarr"):
        facts = info(str(done.folder / name))
        assert forecast["stores"][name]["bytes"] == pytest.approx(facts["bytes"], rel=0.05)
        assert forecast["stores"][name]["rows"] == int(sl.open_store(done.folder / name).recorded.sum())
    weights = sum(p.stat().st_size for p in (done.folder / "checkpoints").rglob("*.safetensors"))
    assert forecast["checkpoint_bytes"] == pytest.approx(
        weights, rel=0.3
    )  # file headers are not negligible in such a small model
    assert forecast["training_seconds"] > 0
    assert forecast["training_tokens"] > 48 * 10
    assert flatten_forecast(forecast)["bytes"] == forecast["store_bytes"] + forecast["checkpoint_bytes"]
