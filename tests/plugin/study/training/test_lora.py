"""LoRA in a study: a tiny model, adapters as checkpoints, recorded as stages."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stratalens as sl
from stratalens.plugin.study.config.settings import LoraSettings, TrainSettings
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.training.checkpoints import load_checkpoint
from stratalens.plugin.study.training.train import train_stages
from stratalens.store.errors import InputError
from support.tiny_study import study_model, study_tokenizer

pytest.importorskip("peft")
SETTINGS = TrainSettings(
    method="lora",
    lora=LoraSettings(rank=2, alpha=4, targets=("q_proj", "down_proj")),
    epochs=2,
    batch_size=16,
    learning_rate=3e-2,
    optimizer="adamw",
    precision="float32",
    save="epoch",
)


@pytest.fixture(scope="module")
def parts():
    tokenizer = study_tokenizer()
    return tokenizer, make_corpus(tokenizer, stages=("a", "b"), entities_per_stage=8, seed=0, train_questions=4)


def train(parts, folder, settings=SETTINGS, **more):
    tokenizer, corpus = parts
    return train_stages(
        lambda: (study_model(tokenizer), tokenizer), corpus, settings, folder, seed=0, base={}, device="cpu", **more
    )


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    return train(parts, tmp_path_factory.mktemp("lora") / "run")


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_stage_is_an_adapter_that_names_the_untrained_model_next_to_it(trained):
    for name in ("a", "b"):
        files = {path.name for path in trained[name].iterdir()}
        assert "adapter_model.safetensors" in files
        assert "model.safetensors" not in files
        config = json.loads((trained[name] / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "../untrained"
        assert config["r"] == 2
    assert not same(adapter(trained["a"]), adapter(trained["b"]))
    kinds = {name.split(".")[-3] for name in adapter(trained["a"])}
    assert kinds == {"q_proj", "down_proj"}


def test_the_first_stage_moves_only_the_targets(parts, trained):
    model, _ = load_checkpoint(trained["a"])
    start = load_file(trained["untrained"] / "model.safetensors")
    merged = model.merge_and_unload().state_dict()
    moved = {name for name, value in start.items() if not torch.equal(value, merged[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "down_proj"}


def test_an_interrupted_stage_resumes_inside_and_ends_in_the_same_adapter(parts, trained, tmp_path):
    seen = []

    def stop(step):
        seen.append((step.stage, step.step))
        if seen[-1] == ("b", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, tmp_path, progress=stop)
    assert not (tmp_path / "b").exists()
    seen.clear()
    checkpoints = train(parts, tmp_path, progress=lambda step: seen.append((step.stage, step.step)))
    assert seen[0] == ("b", 3)
    assert same(adapter(checkpoints["b"]), adapter(trained["b"]))


def test_adapters_of_a_moved_run_are_recorded_as_stages(parts, trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained["a"].parent, moved)
    table = sl.PromptTable.from_dataframe(parts[1].prompts(("who",)))
    ds = sl.capture({name: moved / name for name in trained}, table, tmp_path / "run.zarr", progress=False)
    assert len(set(ds.weights_fingerprint.values)) == 3
    model, tokenizer = load_checkpoint(moved / "b")
    with torch.no_grad():
        hidden = model(**tokenizer(table.frame["prompt"][0], return_tensors="pt"), output_hidden_states=True)
    recorded = ds.resid_post.sel(stage="b", layer=0).isel(entity=0, token=0).values
    np.testing.assert_allclose(recorded, hidden.hidden_states[1][0, -1].numpy(), rtol=1e-4, atol=1e-6)


def test_wrong_targets_are_named_with_the_right_ones(parts, tmp_path):
    wrong = SETTINGS.model_copy(update={"lora": LoraSettings(targets=("q_prj",))})
    with pytest.raises(InputError, match="did you mean 'q_proj'"):
        train(parts, tmp_path, wrong)
