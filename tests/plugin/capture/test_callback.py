"""RecordingCallback records chosen steps of a training run and does not change the training."""

import json

import numpy as np
import pytest
import torch

import stratalens as sl
from stratalens.plugin.capture.callback import RecordingCallback
from stratalens.plugin.study.config.settings import TrainSettings
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.training.trainer import make_trainer
from stratalens.store.errors import InputError
from support.tiny_study import study_model, study_tokenizer


@pytest.fixture(scope="module")
def parts():
    tokenizer = study_tokenizer()
    corpus = make_corpus(tokenizer, stages=("a", "b"), entities_per_stage=8, seed=0)
    return tokenizer, corpus, sl.PromptTable.from_dataframe(corpus.prompts(("who",)))


def run(parts, folder, callback=None):
    tokenizer, corpus, _ = parts
    model = study_model(tokenizer)
    settings = TrainSettings(epochs=1, batch_size=8, learning_rate=1e-2, optimizer="adamw", precision="float32")
    texts = [q.text for q in corpus.train["a"]]
    trainer = make_trainer(model, tokenizer, texts, settings, folder, seed=3, device="cpu")
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train()
    return model, trainer


def test_every_chosen_step_becomes_a_stage_and_training_is_not_touched(parts, tmp_path):
    tokenizer, _, table = parts
    plain, _ = run(parts, tmp_path / "plain")
    callback = RecordingCallback(table, tmp_path / "run.zarr", steps=2, tokenizer=tokenizer, positions=("last",))
    watched, trainer = run(parts, tmp_path / "watched", callback)
    assert trainer.state.global_step == 5
    ds = sl.open_store(tmp_path / "run.zarr")
    assert list(ds.stage.values) == ["step0", "step2", "step4", "step5"]
    assert bool(ds.recorded.all())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert json.dumps(trainer.state.log_history[-2]["loss"])  # the Trainer logged, and finished


def test_the_last_stage_is_what_recording_the_final_model_gives(parts, tmp_path):
    tokenizer, _, table = parts
    callback = RecordingCallback(table, tmp_path / "run.zarr", steps=[3], tokenizer=tokenizer, statistics=False)
    model, _ = run(parts, tmp_path / "train", callback)
    model.save_pretrained(tmp_path / "final")
    tokenizer.save_pretrained(tmp_path / "final")
    alone = sl.capture({"final": tmp_path / "final"}, table, tmp_path / "alone.zarr", statistics=False, progress=False)
    ds = sl.open_store(tmp_path / "run.zarr")
    assert list(ds.stage.values) == ["step3", "step5"]
    np.testing.assert_array_equal(ds.resid_post.sel(stage="step5").values, alone.resid_post.sel(stage="final").values)
    assert not np.array_equal(ds.resid_post.sel(stage="step3").values, ds.resid_post.sel(stage="step5").values)
    assert ds.weights_fingerprint.values[1] == alone.weights_fingerprint.values[0]


# peft and transformers raise it; its name differs between versions
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_lora_run_records_the_merged_weights(parts, tmp_path):
    peft = pytest.importorskip("peft")
    tokenizer, corpus, table = parts
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(study_model(tokenizer), config)
    callback = RecordingCallback(table, tmp_path / "run.zarr", steps=[], tokenizer=tokenizer, statistics=False)
    settings = TrainSettings(epochs=1, batch_size=40, learning_rate=1e-2, optimizer="adamw", precision="float32")
    trainer = make_trainer(model, tokenizer, [q.text for q in corpus.train["a"]], settings, tmp_path / "t", 3, "cpu")
    trainer.add_callback(callback)
    trainer.train()
    prompt = table.frame["prompt"][0]
    with torch.no_grad():
        hidden = model(**tokenizer(prompt, return_tensors="pt"), output_hidden_states=True).hidden_states[1]
    recorded = sl.open_store(tmp_path / "run.zarr").resid_post.isel(stage=0, layer=0, entity=0, token=0).values
    np.testing.assert_allclose(recorded, hidden[0, -1].numpy(), rtol=1e-4, atol=1e-6)


def test_one_name_for_two_steps_is_refused(parts, tmp_path):
    tokenizer, _, table = parts
    callback = RecordingCallback(
        table, tmp_path / "run.zarr", steps=2, tokenizer=tokenizer, name=lambda step: "now", on_error="raise"
    )
    with pytest.raises(InputError, match="steps 0 and 2 have the same stage name"):
        run(parts, tmp_path / "train", callback)


def test_no_tokenizer_and_no_steps_are_refused(parts, tmp_path):
    with pytest.raises(InputError, match="positive number"):
        RecordingCallback(parts[2], tmp_path / "run.zarr", steps=0)
    with pytest.raises(InputError, match="tokenizer="):
        run(parts, tmp_path / "train", RecordingCallback(parts[2], tmp_path / "run.zarr", steps=1, on_error="raise"))
