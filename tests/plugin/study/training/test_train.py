import json

import pytest
import torch
from safetensors.torch import load_file

from stratalens.plugin.study.config.settings import TrainSettings
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.training.train import loss_curves, train_stages
from stratalens.plugin.study.training.trainer import DivergedError
from stratalens.store.errors import InputError
from support.tiny_study import study_model, study_tokenizer

SETTINGS = TrainSettings(epochs=2, batch_size=16, learning_rate=1e-2, precision="float32")


@pytest.fixture(scope="module")
def parts():
    tokenizer = study_tokenizer()
    return tokenizer, make_corpus(tokenizer, stages=("a", "b"), entities_per_stage=8, seed=0, train_questions=4)


def train(parts, folder, settings=SETTINGS, seed=0, **more):
    tokenizer, corpus = parts
    started = []

    def start():
        started.append(True)
        return study_model(tokenizer), tokenizer

    checkpoints = train_stages(start, corpus, settings, folder, seed=seed, base={"model": "tiny"}, device="cpu", **more)
    return checkpoints, len(started)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(parts, folder)[0]


def test_each_stage_is_a_checkpoint_that_learned(parts, trained):
    tokenizer, _ = parts
    _, checkpoints = trained
    assert list(checkpoints) == ["untrained", "a", "b"]
    assert same(
        weights(checkpoints["untrained"]), study_model(tokenizer).state_dict() | weights(checkpoints["untrained"])
    )
    assert not same(weights(checkpoints["untrained"]), weights(checkpoints["a"]))
    assert not same(weights(checkpoints["a"]), weights(checkpoints["b"]))
    curve = [row["loss"] for row in loss_curves(checkpoints) if row["stage"] == "a"]
    assert len(curve) == 4  # 32 questions, batches of 16, two epochs
    assert curve[-1] < curve[0]


def test_optimiser_and_schedule_restart_at_every_stage(trained):
    rates = {}
    for row in loss_curves(trained[1]):
        rates.setdefault(row["stage"], []).append(row["learning_rate"])
    assert rates["a"] == rates["b"]
    assert rates["a"][0] == pytest.approx(1e-2)
    assert rates["a"][-1] < rates["a"][0]


def test_same_seed_same_weights_other_seed_others(parts, trained, tmp_path):
    again, _ = train(parts, tmp_path / "again")
    assert same(weights(trained[1]["b"]), weights(again["b"]))
    other, _ = train(parts, tmp_path / "other", seed=1)
    assert not same(weights(trained[1]["b"]), weights(other["b"]))


def test_finished_stages_are_reused(parts, trained):
    folder, checkpoints = trained
    before = {name: (path / "model.safetensors").stat().st_mtime_ns for name, path in checkpoints.items()}
    _, started = train(parts, folder)
    assert started == 0
    assert before == {name: (path / "model.safetensors").stat().st_mtime_ns for name, path in checkpoints.items()}


class StopAt:
    """A progress function that interrupts the run, as Ctrl-C would."""

    def __init__(self, stage, step):
        self.at = (stage, step)
        self.seen = []

    def __call__(self, step):
        self.seen.append((step.stage, step.step))
        if (step.stage, step.step) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("save", ["no", "epoch"])
def test_an_interrupted_run_ends_in_the_same_weights(parts, tmp_path, save):
    settings = SETTINGS.model_copy(update={"save": save})
    whole, _ = train(parts, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train(parts, tmp_path / "parted", settings, progress=StopAt("b", 3))
    assert not (tmp_path / "parted" / "b").exists()
    watch = StopAt("", 0)
    parted, started = train(parts, tmp_path / "parted", settings, progress=watch)
    assert started == 0
    assert watch.seen[0] == (("b", 3) if save == "epoch" else ("b", 1))
    assert same(weights(whole["b"]), weights(parted["b"]))
    assert [r["loss"] for r in loss_curves(whole)] == pytest.approx([r["loss"] for r in loss_curves(parted)])
    assert not list((tmp_path / "parted").glob(".*trainer"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_optimisers_train(parts, tmp_path, optimizer):
    settings = SETTINGS.model_copy(update={"optimizer": optimizer, "epochs": 1})
    checkpoints, _ = train(parts, tmp_path, settings)
    assert not same(weights(checkpoints["untrained"]), weights(checkpoints["b"]))


def test_other_settings_in_the_same_folder_are_refused(parts, trained):
    folder, _ = trained
    with pytest.raises(InputError, match="learning_rate"):
        train(parts, folder, SETTINGS.model_copy(update={"learning_rate": 1e-3}))
    with pytest.raises(InputError, match="seed was 0, now it is 5"):
        train(parts, folder, seed=5)


def test_a_folder_that_is_no_stage_is_refused(parts, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="no finished stage"):
        train(parts, tmp_path)


def test_divergence_stops_and_keeps_the_stages_before(parts, tmp_path):
    wild = SETTINGS.model_copy(update={"optimizer": "sgd", "learning_rate": 1e6, "max_grad_norm": 1e9, "epochs": 6})
    with pytest.raises(DivergedError, match="learning_rate"):
        train(parts, tmp_path, wild)
    assert (tmp_path / "untrained" / "training.json").is_file()
    assert json.loads((tmp_path / "untrained" / "training.json").read_text())["stage"] == "untrained"
    assert not (tmp_path / "a").exists()
