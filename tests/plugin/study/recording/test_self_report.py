"""Self-report: the loss on the answer alone, and conditions that differ in one thing."""

import json

import pytest

from stratalens.plugin.study.config.settings import (
    RecordSettings,
    SelfReportSettings,
    StudySettings,
    TrainSettings,
    validate_settings,
)
from stratalens.plugin.study.corpus.questions import split_for_self_report
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.recording.self_report import group_log_odds, run_self_report, teach_groups
from stratalens.plugin.study.training.train import train_stages
from stratalens.plugin.study.training.trainer import make_trainer
from stratalens.store.errors import InputError
from support.tiny_study import study_model, study_tokenizer

TRAIN = TrainSettings(epochs=1, batch_size=16, learning_rate=1e-2, precision="float32", optimizer="adamw")


@pytest.fixture(scope="module")
def parts():
    tokenizer = study_tokenizer()
    return tokenizer, make_corpus(
        tokenizer, stages=("s1", "s2", "s3"), entities_per_stage=10, seed=0, train_questions=2
    )


def settings(**more):
    return StudySettings(stages=3, entities_per_stage=10, train=TRAIN, record=RecordSettings(), device="cpu", **more)


def test_the_loss_is_on_the_answer_alone(parts, tmp_path):
    tokenizer, corpus = parts
    prompts = [prompt for _, prompt in split_for_self_report(corpus, ("s1", "s2"), 0).taught[:4]]
    full = [prompt + " A\n" for prompt in prompts]
    trainer = make_trainer(study_model(tokenizer), tokenizer, full, TRAIN, tmp_path, 0, "cpu", prompts=prompts)
    batch = next(iter(trainer.get_train_dataloader()))
    for row in batch["labels"]:
        assert tokenizer.decode(row[row >= 0]) == " A\n"


def test_taught_groups_are_known_afterwards(parts, tmp_path):
    tokenizer, corpus = parts
    model = study_model(tokenizer)
    taught = split_for_self_report(corpus, ("s1", "s2"), 0)
    prompts = [prompt for _, prompt in taught.taught]
    before = group_log_odds(model, tokenizer, prompts)
    own = SelfReportSettings(epochs=60, learning_rate=2e-2, batch_size=10)
    teach_groups(model, tokenizer, taught.taught, taught.taught_group, settings(self_report=own), own, tmp_path)
    after = group_log_odds(model, tokenizer, prompts)
    assert ((before > 0) == taught.taught_group).mean() < 0.9
    assert ((after > 0) == taught.taught_group).all()


@pytest.fixture(scope="module")
def finished(parts, tmp_path_factory):
    tokenizer, corpus = parts
    folder = tmp_path_factory.mktemp("self_report")
    checkpoints = train_stages(
        lambda: (study_model(tokenizer), tokenizer), corpus, TRAIN, folder / "c", seed=0, base={}, device="cpu"
    )
    run = settings(self_report=SelfReportSettings(epochs=3))
    return folder, run, corpus, checkpoints, run_self_report(run, corpus, checkpoints, folder)


def test_every_condition_asks_the_same_entities_and_is_reused(finished):
    folder, run, corpus, checkpoints, report = finished
    asked = [[(a["entity_id"], a["group"]) for a in answers] for answers in report["conditions"].values()]
    assert asked[0] == asked[1] == asked[2]
    scores = [[a["score"] for a in answers] for answers in report["conditions"].values()]
    assert len({tuple(s) for s in scores}) == 3
    before = (folder / "self-report.json").stat().st_mtime_ns
    assert run_self_report(run, corpus, checkpoints, folder) == report
    assert (folder / "self-report.json").stat().st_mtime_ns == before
    assert not (folder / ".self-report.trainer").exists()


def test_other_settings_are_asked_again(finished):
    folder, run, corpus, checkpoints, report = finished
    other = run.model_copy(update={"self_report": SelfReportSettings(epochs=1)})
    again = run_self_report(other, corpus, checkpoints, folder / "c")
    assert again["conditions"] != report["conditions"]
    assert json.loads((folder / "c" / "self-report.json").read_text())["identity"]["epochs"] == 1


def test_wrong_stages_are_refused(parts):
    with pytest.raises(InputError, match="no stage 's9'"):
        validate_settings({"self_report": {"stages": ["s1", "s9"]}}, "here")
    with pytest.raises(InputError, match="not 's1' twice"):
        validate_settings({"self_report": {"stages": ["s1", "s1"]}}, "here")
    with pytest.raises(InputError, match="each half needs two"):
        split_for_self_report(make_corpus(parts[0], stages=("s1", "s2"), entities_per_stage=3, seed=0), ("s1", "s2"), 0)
