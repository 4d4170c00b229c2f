"""Interventions of a study: an axis that the answer reads is distinguished from one that it does not read."""

import json
import shutil

import numpy as np
import pytest

import stratalens as sl
from stratalens.analyses.report.sections import intervention_sections
from stratalens.plugin.progress import PhaseProgress
from stratalens.plugin.study.findings.analyses import Findings
from stratalens.plugin.study.findings.interventions import (
    add_intervention_results,
    has_effect,
    intervention_table,
)
from stratalens.plugin.study.recording import interventions
from stratalens.plugin.study.recording.interventions import read_interventions, run_interventions
from stratalens.store.errors import InputError
from support.planted_study import STAGE_SIZE, planted_settings, planted_study

SETTINGS = planted_settings(doses=[-2, 2])


def run(folder, causal, settings):
    corpus, checkpoints, ds = planted_study(folder, causal)
    progress = PhaseProgress({"recording": 1.0}, quiet=True)
    with progress.phase("recording", ""):
        return corpus, run_interventions(settings, corpus, (), checkpoints, ds, folder, progress)


@pytest.fixture(scope="module")
def reads_axis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reads")
    return folder, *run(folder, True, SETTINGS)


@pytest.fixture(scope="module")
def does_not_read_axis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("does_not")
    with pytest.MonkeyPatch.context() as patch:  # without the negative control, which the other model has
        patch.delitem(interventions._CONDITIONS, interventions.SHUFFLED)
        return folder, *run(folder, False, SETTINGS)


@pytest.fixture(params=["reads_axis", "does_not_read_axis"])
def planted(request):
    _, corpus, results = request.getfixturevalue(request.param)
    findings = Findings()
    add_intervention_results(findings, results, seed=0)
    return request.param == "reads_axis", corpus, results, findings, {row["name"]: row for row in findings.rows}


def test_steering_and_ablation_show_what_the_answer_reads(planted):
    causal, _, _, findings, rows = planted
    steering = rows["self-report: change per dose of the recency axis"]
    ablation = rows["self-report: change by ablating the recency axis"]
    assert has_effect(steering) is causal, steering
    assert (has_effect(ablation) and ablation["value"] < 0) is causal, ablation
    control = rows["self-report: change per dose of the answer direction"]
    distance = rows["self-report: distance of unseen groups along the recency axis"]
    assert distance["low"] > 0.3, distance  # the stage can be read from the activations in both models
    if causal:
        assert steering["value"] > 0
        assert steering["p"] == pytest.approx(1 / 21)
        assert has_effect(control)
        assert rows["self-report: accuracy"]["low"] > 0.6
        assert rows["self-report: accuracy with the recency axis ablated"]["value"] < 0.75
    figures = findings.report["interventions"]
    said = figures["self-report"].attrs["verdict"]
    assert ("no effect beyond" in said) is not causal
    assert ("not evidence of a report" in said) is causal  # this model says so without being taught, too
    assert ("the report needs the axis" in figures["ablation"].attrs["verdict"]) is causal
    sections = intervention_sections(findings.report)
    assert [page.spec.name for page in sections[0].figures] == ["dose_response"] * len(figures)
    assert said in sections[0].points


def test_the_effects_add_up(planted):
    """The change per dose times the distance of the groups is their difference, in a model that reads only the axis."""
    causal, _, results, _, rows = planted
    table = intervention_table(results).sel(outcome="self-report", direction="recency axis")
    slope = float(table.effect.sel(dose=[-2, 2]).squeeze().values @ [-2, 2]) / 8
    assert float(table.slope.squeeze()) == pytest.approx(slope, rel=1e-6)
    assert bool((table.kl > 0).all())
    if causal:
        expected = rows["self-report: log odds of the later group, later minus earlier"]["value"]
        carried = slope * rows["self-report: distance of unseen groups along the recency axis"]["value"]
        assert 0.45 < carried / expected < 1.1  # the square of the cosine between the axis and what the answer reads


def test_no_scored_entity_made_a_direction(planted):
    _, corpus, results, _, rows = planted
    steer = results.jobs["self_report-layer0-last-steer_random"].load()
    scored = set(steer["entity_id"].values[steer["scored"].values].astype(object))
    taught = {e.entity_id for e in corpus.entities if e.trained_stage in ("s1", "s3")} - scored
    assert len(scored) == len(taught) == STAGE_SIZE
    assert int(steer.attrs["entities_that_made_the_directions"]) == 0
    assert rows["self-report: accuracy"]["n"] == STAGE_SIZE


def test_an_interrupted_run_resumes_and_a_complete_one_runs_nothing(reads_axis, monkeypatch, tmp_path):
    run_folder, corpus, first = reads_axis
    with pytest.raises(InputError, match="no complete interventions"):
        read_interventions(tmp_path)
    folder = run_folder / "interventions"
    done, lost = (folder / "results" / f"self_report-layer0-last-{job}.zarr" for job in ("steer_random", "doses"))
    expected, before = first.jobs[lost.stem]["effect"].values, done.stat().st_mtime_ns
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({"identity": state["identity"]}))
    shutil.rmtree(lost)
    checkpoints = {stage: run_folder / "checkpoints" / stage for stage in ("untrained", "s3")}
    progress = PhaseProgress({"recording": 1.0}, quiet=True)
    ds = sl.open_store(run_folder / "run.zarr")
    with progress.phase("recording", ""):
        again = run_interventions(SETTINGS, corpus, (), checkpoints, ds, run_folder, progress)
        monkeypatch.setattr(sl, "intervene", lambda *a, **k: pytest.fail("runs a job again"))
        assert run_interventions(SETTINGS, corpus, (), checkpoints, ds, run_folder, progress).places == first.places
    assert done.stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.jobs[lost.stem]["effect"].values, expected)
    assert not (run_folder / "checkpoints" / "self-report-true").exists()
