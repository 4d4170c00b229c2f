"""RecordingCallback in training as it is run: warm-up, best models, several runs, failures, adapters, classifiers."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

import stratalens as sl
from stratalens.plugin.capture.callback import RecordingCallback
from stratalens.plugin.capture.training_copy import hooked_copy
from stratalens.store.errors import CheckWarning, InputError, MismatchError, RecordingWarning
from support.models import config, hf_model, table, tokenizer, tokenizer_folder

PROMPTS = table(4)
IDS = tokenizer()(list(PROMPTS.prompts)).input_ids


def padding_tokenizer() -> Any:
    """The tokenizer of the models with a padding token, which the Trainer needs."""
    padding = tokenizer()
    padding.pad_token = padding.eos_token
    return padding


def recording(path: Path, **options: Any) -> RecordingCallback:
    """A callback that records two layers of one position, without statistics."""
    return RecordingCallback(
        PROMPTS, path, **{"steps": 2, "statistics": False, "layers": [0, 2], "check": False, **options}
    )


def train(
    model: Any,
    folder: Path,
    callbacks: list[TrainerCallback],
    resume: str | None = None,
    labels: Callable[[list[int]], Any] = list,
    **options: Any,
) -> Trainer:
    """Train for a few steps; evaluation takes the same data."""
    data = [{"input_ids": ids[:12], "labels": labels(ids[:12])} for ids in IDS for _ in range(8)]
    defaults = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "seed": 0,
    }
    arguments: Any = TrainingArguments(str(folder), **{**defaults, **options})
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data[:4],
        processing_class=padding_tokenizer(),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def values_of(model: Any, folder: Path) -> np.ndarray[Any, Any]:
    """What recording these weights alone gives, of shape (layer, entity, token, d_model)."""
    hooked = hooked_copy(model, tokenizer_folder())
    ds = sl.capture(hooked, PROMPTS, folder, statistics=False, layers=[0, 2], check=False, progress=False)
    values: np.ndarray[Any, Any] = ds.resid_post.values[0]
    return values


class Snapshots(TrainerCallback):
    """Copies of the weights after every step, taken in front of everything else."""

    def __init__(self) -> None:
        self.models: dict[int, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.models[state.global_step] = copy.deepcopy(kwargs["model"])

    on_train_begin = on_step_end


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_warm_up_from_learning_rate_zero_and_accumulation(kind: str, tmp_path: Path) -> None:
    callback = recording(tmp_path / "run.zarr", steps=[0, 1, 2])
    train(
        hf_model(kind),
        tmp_path / "t",
        [callback],
        warmup_steps=2,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    ds = sl.open_store(tmp_path / "run.zarr")
    assert list(ds.stage.values) == ["step0", "step1", "step2", "step3"]
    assert bool(ds.recorded.all())
    assert not callback.failures
    first, second, third, _ = ds.weights_fingerprint.values
    assert first == second != third  # step 1 has learning rate 0
    np.testing.assert_array_equal(ds.resid_post.values[0], ds.resid_post.values[1])


def test_the_same_weights_end_the_training_where_the_caller_asks_for_it(tmp_path: Path) -> None:
    callback = recording(tmp_path / "run.zarr", steps=1, on_error="raise", allow_same_weights=False)
    with pytest.raises(MismatchError, match="stages 'step0' and 'step1' have the same weights"):
        train(hf_model("llama"), tmp_path / "t", [callback], warmup_steps=2)


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_every_stage_has_the_weights_of_its_step_although_the_best_model_is_loaded_at_the_end(
    kind: str, tmp_path: Path
) -> None:
    snapshots, callback = Snapshots(), recording(tmp_path / "run.zarr", steps=2)
    model = hf_model(kind)
    trainer = train(
        model,
        tmp_path / "t",
        [snapshots, callback],
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        save_strategy="steps",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first step is the best
    )
    assert str(trainer.state.best_model_checkpoint).endswith("-1")
    ds = sl.open_store(tmp_path / "run.zarr")
    assert list(ds.stage.values) == ["step0", "step2", "step3"]
    for stage, step in (("step2", 2), ("step3", 3)):
        expected = values_of(snapshots.models[step], tmp_path / f"{stage}.zarr")
        np.testing.assert_array_equal(ds.resid_post.sel(stage=stage).values, expected)
    trainer.evaluate()  # after the training, the callback is silent
    assert list(sl.open_store(tmp_path / "run.zarr").stage.values) == ["step0", "step2", "step3"]


@pytest.mark.parametrize(("unit", "stop_first"), [("steps", True), ("epoch", False)])
def test_a_run_that_stops_early_records_its_last_step(unit: str, stop_first: bool, tmp_path: Path) -> None:
    snapshots, callback = Snapshots(), recording(tmp_path / "run.zarr", steps=[0])
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = train(
        hf_model("llama"),
        tmp_path / "t",
        [snapshots, stop, callback] if stop_first else [snapshots, callback, stop],
        max_steps=-1,
        num_train_epochs=9,
        per_device_train_batch_size=16,  # two steps an epoch
        eval_strategy=unit,
        eval_steps=1,
        save_strategy=unit,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    last = trainer.state.global_step
    assert 1 < last < 18
    assert not str(trainer.state.best_model_checkpoint).endswith(f"-{last}")
    ds = sl.open_store(tmp_path / "run.zarr")
    assert list(ds.stage.values) == ["step0", f"step{last}"]
    expected = values_of(snapshots.models[last], tmp_path / "last.zarr")
    np.testing.assert_array_equal(ds.resid_post.values[1], expected)


def test_a_last_step_whose_weights_are_gone_is_not_recorded(tmp_path: Path) -> None:
    callback = recording(tmp_path / "run.zarr", steps=[0])
    with pytest.warns(RecordingWarning, match="the Trainer has loaded the best model since"):
        train(
            hf_model("llama"),
            tmp_path / "t",
            [callback, EarlyStoppingCallback(early_stopping_patience=1)],
            max_steps=-1,
            num_train_epochs=9,
            per_device_train_batch_size=16,
            eval_strategy="epoch",
            save_strategy="best",  # no callback runs after the one that stops the training
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=True,
        )
    assert list(sl.open_store(tmp_path / "run.zarr").stage.values) == ["step0"]


@pytest.mark.parametrize("steps", [2, [2]])
def test_a_second_run_of_one_callback_is_refused_with_a_warning(steps: Any, tmp_path: Path) -> None:
    callback = recording(tmp_path / "run.zarr", steps=steps)
    train(hf_model("llama"), tmp_path / "t", [callback])
    before = sl.open_store(tmp_path / "run.zarr").load()
    with pytest.warns(
        RecordingWarning, match="this run is not recorded from here on.*has recorded another run"
    ) as seen:
        train(hf_model("llama", seed=1), tmp_path / "t", [callback], max_steps=5)
    assert len([w for w in seen if w.category is RecordingWarning]) == 1
    assert list(callback.failures) == [0]
    assert sl.open_store(tmp_path / "run.zarr").identical(before)
    callback.name = "second-{}".format
    callback.end = False
    train(hf_model("llama", seed=1), tmp_path / "t", [callback])
    stages = list(sl.open_store(tmp_path / "run.zarr").stage.values)
    assert stages == [*before.stage.values, *(["second-0"] if steps == 2 else []), "second-2"]


def test_another_run_of_a_new_callback_is_refused_as_a_whole(tmp_path: Path) -> None:
    train(hf_model("llama"), tmp_path / "t", [recording(tmp_path / "run.zarr")])
    with pytest.warns(RecordingWarning, match="weights_fingerprint differs for stage 'step0'") as seen:
        train(hf_model("llama", seed=1), tmp_path / "t", [recording(tmp_path / "run.zarr")], max_steps=5)
    assert len([w for w in seen if w.category is RecordingWarning]) == 1
    assert list(sl.open_store(tmp_path / "run.zarr").stage.values) == ["step0", "step2", "step3"]
    callback = recording(tmp_path / "run.zarr", on_error="raise")
    with pytest.raises(MismatchError, match="weights_fingerprint differs for stage 'step0'"):
        train(hf_model("llama", seed=1), tmp_path / "t", [callback])


def test_a_resumed_run_adds_its_stages(tmp_path: Path) -> None:
    callback = recording(tmp_path / "run.zarr", end=False)
    options: dict[str, Any] = {"lr_scheduler_type": "constant"}  # the same steps whatever the last one is
    train(hf_model("gpt2"), tmp_path / "t", [callback], max_steps=6, save_strategy="steps", save_steps=3, **options)
    first = sl.open_store(tmp_path / "run.zarr").load()
    assert list(first.stage.values) == ["step0", "step2", "step4", "step6"]
    checkpoint = str(tmp_path / "t" / "checkpoint-3")
    train(hf_model("gpt2"), tmp_path / "t", [callback], max_steps=8, resume=checkpoint, **options)  # the same callback
    again = sl.open_store(tmp_path / "run.zarr")
    assert list(again.stage.values) == ["step0", "step2", "step4", "step6", "step8"]
    np.testing.assert_array_equal(again.resid_post.values[:4], first.resid_post.values)
    assert not callback.failures
    # Other clipping: step 4 has other weights. It stays as it was, and the next one is recorded.
    other = recording(tmp_path / "run.zarr", steps=[4, 5])
    with pytest.warns(RecordingWarning, match="step 4 was not recorded.*weights_fingerprint differs for stage 'step4'"):
        train(hf_model("gpt2"), tmp_path / "t", [other], max_steps=5, resume=checkpoint, max_grad_norm=1e-3, **options)
    again = sl.open_store(tmp_path / "run.zarr")
    assert list(again.stage.values)[5:] == ["step5"]
    np.testing.assert_array_equal(again.resid_post.values[:4], first.resid_post.values)


def test_a_failure_does_not_end_the_training(tmp_path: Path) -> None:
    class Diverge(TrainerCallback):
        """Weights that are NaN after step 2 alone."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model = kwargs["model"]
            if state.global_step == 2:
                self.before = copy.deepcopy(model.state_dict())
                next(model.parameters()).data.fill_(torch.nan)
            elif state.global_step == 3:
                model.load_state_dict(self.before)

    def steps(step: int) -> bool:
        if step == 1:
            raise ZeroDivisionError("no such step")
        return step < 3

    callback = recording(tmp_path / "run.zarr", steps=steps)
    with pytest.warns(RecordingWarning) as seen:
        trainer = train(hf_model("llama"), tmp_path / "t", [Diverge(), callback])
    messages = [str(w.message) for w in seen if w.category is RecordingWarning]
    assert trainer.state.global_step == 3
    assert messages[0].startswith("step 1 was not recorded, the training continues. ZeroDivisionError: no such step")
    assert messages[1].startswith("step 2 was not recorded, the training continues. NonFiniteError: stage 'step2'")
    assert list(callback.failures) == [1, 2]
    assert list(callback.recorded.values()) == [0, 3]
    assert sl.open_store(tmp_path / "run.zarr").recorded.all("entity").values.tolist() == [True, False, True]


def test_wrong_arguments_are_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown argument 'position' of RecordingCallback: did you mean 'positions'"):
        recording(tmp_path / "run.zarr", position=("last",))
    with pytest.raises(InputError, match="on_error='ignore'"):
        recording(tmp_path / "run.zarr", on_error="ignore")
    with pytest.raises(InputError, match="not a PromptTable"):
        RecordingCallback(["a prompt"], tmp_path / "run.zarr", steps=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_classifier_is_recorded_without_output_statistics(kind: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    settings = transformers.BertConfig(**sizes, num_attention_heads=4) if kind == "bert" else config(kind)
    settings.num_labels, settings.pad_token_id = 2, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(settings)
    callback = recording(tmp_path / "run.zarr", statistics=True, positions=("last", "entity_last"), steps=[0])
    with pytest.warns(CheckWarning, match="no output statistics"):
        train(model, tmp_path / "t", [callback], labels=lambda ids: ids[0] % 2, max_steps=2)
    assert not callback.failures
    ds = sl.open_store(tmp_path / "run.zarr")
    assert list(ds.stage.values) == ["step0", "step2"]
    assert "resid_post_l2" in ds
    assert not {"loss", "entropy", "entity_loss"} & set(ds)
    model.eval()
    for row, prompt in enumerate(PROMPTS.prompts):
        with torch.no_grad():
            hidden = model(**tokenizer()(prompt, return_tensors="pt"), output_hidden_states=True).hidden_states
        recorded = ds.resid_post.sel(stage="step2", layer=0, token="last").isel(entity=row)
        np.testing.assert_allclose(recorded, hidden[1][0, -1].numpy(), rtol=1e-4, atol=1e-5)


# peft and transformers raise it; its name differs between versions
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"])
def test_virtual_tokens_and_other_adapters_that_are_no_weights_are_named(method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    if method == "ADAPTION_PROMPT":
        settings = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)
        message = "the model is trained with ADAPTION_PROMPT, which cannot be merged"
    else:
        kind = peft.PromptTuningConfig if method == "PROMPT_TUNING" else peft.PrefixTuningConfig
        settings = kind(task_type="CAUSAL_LM", num_virtual_tokens=4)
        message = f"trained with {method}: it puts 4 virtual tokens before each prompt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(hf_model("llama"), settings)
    with pytest.raises(InputError, match=message):
        hooked_copy(model, tokenizer_folder())
    if method == "PROMPT_TUNING":
        callback = recording(tmp_path / "run.zarr", end=False, steps=[0])
        with pytest.warns(RecordingWarning, match=message):
            trainer = train(model, tmp_path / "t", [callback], max_steps=1)
        assert trainer.state.global_step == 1
