import json

import numpy as np
import pytest

import stratalens as sl
from stratalens.plugin.study.config.settings import (
    AnalysisSettings,
    InterventionSettings,
    RecordSettings,
    SelfReportSettings,
    StudySettings,
    TrainSettings,
    read_settings,
)
from stratalens.plugin.study.recording.stores import with_order_of_run
from stratalens.plugin.study.run import _claim_folder, run_study
from stratalens.store.errors import InputError
from support.thorough import THOROUGH
from support.tiny_study import save_base

ANALYSIS = AnalysisSettings(repeats=3, permutations=20, sweep_permutations=10, probe_permutations=4, bins=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return StudySettings(
        model=str(save_base(tmp_path_factory.mktemp("base"))),
        vocabulary="used",
        stages=3,
        entities_per_stage=16,
        train_questions=2,
        train=TrainSettings(epochs=1, batch_size=16, learning_rate=1e-2, precision="float32"),
        record=RecordSettings(),
        analysis=ANALYSIS,
    )


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return run_study(settings, folder, notes=("a note of ours",), smoke_test=True)


def test_the_store_holds_every_stage_layer_and_position(settings, done):
    ds = sl.open_store(done.store)
    assert list(ds.stage.values) == ["untrained", "s1", "s2", "s3"]
    assert ds.resid_post.sizes == {"stage": 4, "layer": 2, "entity": 48, "token": 2, "d_model": 16}
    assert ds.ln_final.sizes == {"stage": 4, "entity": 48, "token": 2, "d_model": 16}
    assert bool(ds.recorded.all())
    assert bool(np.isfinite(ds.answer_loss).all())
    assert set(ds.half.values) == {"early", "late"}


def test_every_headline_number_has_interval_null_and_n(done):
    rows = json.loads(done.summary.read_text())
    assert {"name", "stage", "layer", "token", "value", "low", "high", "null", "n"} <= set(rows[0])
    by_name = {row["name"]: row for row in rows}
    for name in ("early v late accuracy", "first v last accuracy", "rank correlation of held-out centroids"):
        for suffix in ("", ", untrained", " after the final norm"):
            row = by_name[name + suffix]
            assert row["low"] <= row["value"] <= row["high"], row
            assert row["null"] is not None
            assert row["n"] in (32, 48)
    assert by_name["early v late accuracy"]["stage"] == "s3"
    assert by_name["early v late accuracy, untrained"]["stage"] == "untrained"


def test_the_report_is_standalone_and_has_its_notes(done):
    page = done.report.read_text()
    assert "a note of ours" in page
    assert "these results are not meaningful" in page
    assert "<script src" not in page
    assert "tokens in use" in page


def test_a_second_run_reuses_everything_and_gives_the_same_numbers(settings, done, capsys):
    weights = done.folder / "checkpoints" / "s3" / "model.safetensors"
    before, rows = weights.stat().st_mtime_ns, json.loads(done.summary.read_text())
    run_study(settings, done.folder, smoke_test=True)
    assert weights.stat().st_mtime_ns == before
    assert json.loads(done.summary.read_text()) == rows
    said = capsys.readouterr()
    assert said.out == ""
    assert "training: done" in said.err


def test_a_study_that_records_only_the_ends_knows_the_order_of_all_stages(settings, tmp_path):
    """Three stages were trained, two are recorded; the resumed run reads the same store."""
    ends = settings.model_copy(update={"record": RecordSettings(stages="ends", positions=("last",))})
    done = run_study(ends, tmp_path / "out", quiet=True)
    ds = sl.open_store(done.store)
    assert ds.stage.values.tolist() == ["untrained", "s3"]
    assert ds.stage_order.values.tolist() == [0, 3]
    rows = json.loads(done.summary.read_text())
    accuracy = next(row for row in rows if row["name"] == "first v last accuracy")
    assert accuracy["value"] is not None
    whole = with_order_of_run(ds, ("untrained", *ends.stage_names))
    projection = sl.project(whole, permutations=0, bootstrap=0, progress=False)
    assert projection.group.values.tolist() == ["s1", "s2", "s3"]
    assert projection.attrs["ordered"]
    assert projection.exposure.values.tolist() == [[-1, -2, -3], [2, 1, 0]]
    if THOROUGH:
        resumed = run_study(ends, done.folder, quiet=True)
        assert json.loads(resumed.summary.read_text()) == rows


def test_other_settings_in_the_same_folder_are_refused(settings, done):
    with pytest.raises(InputError, match="seed was 0, now 1"):
        run_study(settings.model_copy(update={"seed": 1}), done.folder)
    with pytest.raises(InputError, match="--resume"):
        run_study(settings, done.folder, resume=False)


def test_interventions_are_added_to_a_finished_run_and_stay(settings, tmp_path):
    plain = settings.model_copy(update={"self_report": SelfReportSettings()})
    more = plain.model_copy(update={"interventions": InterventionSettings()})
    _claim_folder(tmp_path / "out", plain, True)
    _claim_folder(tmp_path / "out", more, True)
    assert read_settings(tmp_path / "out" / "run.yaml") == more
    with pytest.raises(InputError, match="interventions was"):
        _claim_folder(tmp_path / "out", plain, True)
    with pytest.raises(InputError, match="seed was 0, now 1"):
        _claim_folder(tmp_path / "out", more.model_copy(update={"seed": 1}), True)


def test_a_folder_with_other_things_is_left_alone(settings, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"no run\.yaml"):
        run_study(settings, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_sample_is_recorded_at_all_stages_and_all_entities_at_the_ends(settings, tmp_path):
    """The headline numbers come from all entities, also if weights are removed after every stage."""
    record = RecordSettings(positions=("last",), sample=12)
    analysis = ANALYSIS.model_copy(update={"statistic_sets": THOROUGH, "matching_bins": (2,), "set_permutations": 5})
    sampled = settings.model_copy(update={"record": record, "keep_checkpoints": "last", "analysis": analysis})
    done = run_study(sampled, tmp_path / "out", quiet=True)
    ds, ends = sl.open_store(done.store), sl.open_store(done.folder / "ends.zarr")
    assert ds.sizes["entity"] == 36
    assert (ends.sizes["entity"], ends.stage.values.tolist()) == (48, ["untrained", "s3"])
    assert set(ds.entity_id.values) < set(ends.entity_id.values)
    assert bool(ds.recorded.all() & ends.recorded.all())
    rows = {row["name"]: row for row in json.loads(done.summary.read_text())}
    last = with_order_of_run(ends, ("untrained", "s1", "s2", "s3")).sel(stage=["s3"], token=["last"]).isel(layer=[-1])
    probes = sl.probe(last, target="trained_stage", pairs=[("s1", "s3")], C=0.1, folds=5, seed=0, progress=False)
    assert rows["first v last accuracy"]["value"] == pytest.approx(float(probes.accuracy_mean.squeeze()))
    if THOROUGH:
        assert "loss over the name,weighted" in (done.folder / "controls.csv").read_text()
