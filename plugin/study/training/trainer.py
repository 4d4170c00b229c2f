"""The Trainer of Hugging Face, set up for a study: collation, progress, checkpoints, a stop if the loss explodes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from stratalens.plugin.compat import cpu_has_avx512_bf16
from stratalens.plugin.study.config.settings import TrainSettings
from stratalens.plugin.study.training.packing import collate_packed, collate_padded
from stratalens.store.errors import InputError, StratalensError


class DivergedError(StratalensError):
    """The training loss is not finite or has exploded; the checkpoints before it stay."""


@dataclass(frozen=True)
class Step:
    """One optimiser step of `steps` in a stage, which is one of `stages`."""

    stage: str
    stage_number: int
    stages: int
    step: int
    steps: int
    loss: float


ProgressFunction = Callable[[Step], None]


def has_bfloat16_hardware(device: str) -> bool:
    """Return whether bfloat16 matrix products run in hardware; else float32 is faster."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    if device != "cpu":
        return False
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capabilities and cpu_has_avx512_bf16()


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: TrainSettings,
    scratch: Path,
    seed: int,
    device: str | None = None,
    prompts: Sequence[str] | None = None,
) -> Trainer:
    """Set up a Trainer. Batches have texts of similar length; packed batches (`settings.packing`) have any texts.

    Args:
        model: the model to train.
        tokenizer: its tokenizer.
        texts: the training texts.
        settings: settings of the training.
        scratch: folder for the files of the Trainer.
        seed: seed of the order of examples.
        device: None takes a GPU if there is one.
        prompts: one for every text; the loss is then over the tokens after the
            prompt only. None takes the loss over every token.

    Raises:
        InputError: packed texts are longer than the attention window of the model.
    """
    ids = tokenizer(list(texts))["input_ids"]
    window, longest = getattr(model.config, "sliding_window", None), max(map(len, ids))
    if settings.packing and window is not None and longest > window:
        raise InputError(
            f"train.packing: a text has {longest} tokens, and this model attends to the last {window} only, which the "
            "mask of packed texts does not represent. Set train.packing: false."
        )
    starts = [0] * len(ids)
    if prompts is not None:
        heads = tokenizer(list(prompts))["input_ids"]
        starts = [common_prefix_length(head, row) for head, row in zip(heads, ids, strict=True)]
    rows = [
        {"input_ids": list(row), "labels": [-100] * start + list(row)[start:]}
        for row, start in zip(ids, starts, strict=True)
    ]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = settings.precision == "bfloat16" or (settings.precision == "auto" and has_bfloat16_hardware(device))
    grouped: dict[str, Any] = {}
    if not settings.packing:  # packed rows need no texts of equal length, so every batch has all kinds of questions
        grouped = (
            {"train_sampling_strategy": "group_by_length"}
            if "train_sampling_strategy" in inspect.signature(TrainingArguments).parameters
            else {"group_by_length": True}
        )
    optimizers = {"adafactor": "adafactor", "adamw": "adamw_torch", "sgd": "sgd"}
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=min(settings.batch_size, len(rows)),
        learning_rate=settings.learning_rate,
        optim=optimizers[settings.optimizer],
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=bf16,
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy=settings.save,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu",
        **grouped,
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    collate = partial(collate_packed if settings.packing else collate_padded, pad=pad)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.remove_callback(PrinterCallback)  # it prints every loss to standard output
    return trainer


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of ids that two rows share at their start.

    >>> common_prefix_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


class LossMonitor(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """A callback that reports progress and stops a run whose loss explodes.

    Args:
        stage: name of the stage.
        number: number of the stage, from 1.
        stages: number of stages.
        progress: called after every step.
    """

    def __init__(self, stage: str, number: int, stages: int, progress: ProgressFunction | None) -> None:
        self.stage, self.number, self.stages, self.progress = stage, number, stages, progress
        self.first: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Check the loss of a step."""
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if self.first is None:
            self.first = loss
        if not math.isfinite(loss) or loss > 10 * max(self.first, 1.0):
            raise DivergedError(
                f"Stage {self.stage!r}: the loss is {loss:.4g} at step {state.global_step} (first {self.first:.4g}). "
                "Training stopped; the stages before it stay. Lower train.learning_rate and run again."
            )
        if self.progress is not None:
            step, steps = int(state.global_step), int(state.max_steps)
            self.progress(Step(self.stage, self.number, self.stages, step, steps, loss))


class CheckpointCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """A callback that saves the checkpoints within a course.

    Args:
        steps: the last step of each checkpoint.
        save: called after such a step with the number of the checkpoint and the log history.
    """

    def __init__(self, steps: Sequence[int], save: Callable[[int, Sequence[Mapping[str, Any]]], None]) -> None:
        self.steps, self.save = steps, save

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the losses before a checkpoint."""
        control.should_log = control.should_log or state.global_step in self.steps

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the checkpoint of this step."""
        for number, step in enumerate(self.steps):
            if step == state.global_step:
                self.save(number, state.log_history)
