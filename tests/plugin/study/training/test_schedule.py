"""Courses after the stages: mixed, repeated, with several checkpoints; other epochs for one stage."""

import pytest
import torch
from safetensors.torch import load_file

from stratalens.plugin.study.config.settings import AfterSettings, TrainSettings
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.training.schedule import plan_courses
from stratalens.plugin.study.training.train import loss_curves, train_stages
from stratalens.store.errors import InputError
from support.tiny_study import study_model, study_tokenizer

SETTINGS = TrainSettings(epochs=2, batch_size=16, learning_rate=1e-2, precision="float32", save="epoch")
MIXED = AfterSettings(name="mixed", epochs=4, checkpoints=2)
AGAIN = AfterSettings(name="again", train_on=("a",), epochs=1)


@pytest.fixture(scope="module")
def parts():
    tokenizer = study_tokenizer()
    return tokenizer, make_corpus(tokenizer, stages=("a", "b"), entities_per_stage=8, seed=0, train_questions=4)


def train(parts, folder, **more):
    tokenizer, corpus = parts
    return train_stages(
        lambda: (study_model(tokenizer), tokenizer), corpus, SETTINGS, folder, seed=0, base={}, device="cpu", **more
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    return train(parts, tmp_path_factory.mktemp("whole"), after=(MIXED, AGAIN))


def test_the_plan_has_the_texts_of_each_course(parts):
    corpus = parts[1]
    courses = plan_courses(corpus, SETTINGS, stage_epochs={"b": 6}, after=(MIXED, AGAIN))
    assert [c.name for c in courses] == ["a", "b", "mixed", "again"]
    assert [c.settings.epochs for c in courses] == [2, 6, 4, 1]
    assert len(courses[2].texts) == 64
    assert courses[3].texts == courses[0].texts
    assert courses[2].checkpoints == ("mixed-1", "mixed-2")


def test_checkpoints_of_a_course_are_stages_with_their_share_of_the_loss_curve(whole):
    assert list(whole) == ["untrained", "a", "b", "mixed-1", "mixed-2", "again"]
    counts = {}
    for row in loss_curves(whole):
        counts[row["stage"]] = counts.get(row["stage"], 0) + 1
    assert counts == {"a": 4, "b": 4, "mixed-1": 8, "mixed-2": 8, "again": 2}
    assert not same(weights(whole["mixed-1"]), weights(whole["mixed-2"]))


def test_the_number_of_checkpoints_does_not_change_the_weights_of_a_course(parts, whole, tmp_path):
    """A course of four epochs ends in the same weights with one and with two checkpoints."""
    one = AfterSettings(name="mixed", epochs=4, checkpoints=1)
    checkpoints = train(parts, tmp_path, after=(one,))
    assert same(weights(checkpoints["mixed"]), weights(whole["mixed-2"]))
    assert (checkpoints["mixed"] / "config.json").read_text() == (whole["mixed-1"] / "config.json").read_text()


def test_an_interrupted_course_ends_in_the_same_weights(parts, whole, tmp_path):
    def stop(step):
        if (step.stage, step.step) == ("mixed", 11):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, tmp_path, after=(MIXED, AGAIN), progress=stop)
    assert (tmp_path / "mixed-1").is_dir()
    checkpoints = train(parts, tmp_path, after=(MIXED, AGAIN))
    for name in ("mixed-1", "mixed-2", "again"):
        assert same(weights(checkpoints[name]), weights(whole[name])), name
    assert [r["loss"] for r in loss_curves(checkpoints)] == pytest.approx([r["loss"] for r in loss_curves(whole)])


def test_more_epochs_for_one_stage_train_it_longer(parts, tmp_path):
    checkpoints = train(parts, tmp_path, stage_epochs={"b": 4})
    assert [sum(row["stage"] == name for row in loss_curves(checkpoints)) for name in ("a", "b")] == [4, 8]
    with pytest.raises(InputError, match="other settings"):
        train(parts, tmp_path, stage_epochs={"b": 3})
