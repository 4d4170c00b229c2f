"""Hugging Face's Trainer, set up for the study: collation, progress, and a stop where the loss leaves all bounds.

What is trained in which order is `train`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.compat import cpu_has_avx512_bf16
from stratalens.plugin.study.config.settings import TrainSettings
from stratalens.store.errors import StratalensError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


class DivergedError(StratalensError):
    """The training loss left all bounds; the checkpoints before it are kept."""


@dataclass(frozen=True)
class Step:
    """One optimiser step, for progress: of `steps` in this stage, of `stages` in all."""

    stage: str
    stage_number: int
    stages: int
    step: int
    steps: int
    loss: float
    seconds: float  # since this stage started


ProgressFunction = Callable[[Step], None]


def hardware_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 run in hardware there (else they are slower than float32)."""
    import torch

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
    """Hugging Face's Trainer over the texts, rows of like length together so that little is padding.

    The loss is over every token of a text, as in the study; with `prompts`,
    one for every text, only over what comes behind the prompt.
    """
    import inspect

    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    ids = tokenizer(list(texts))["input_ids"]
    begins = [0] * len(ids)
    if prompts is not None:
        heads = tokenizer(list(prompts))["input_ids"]
        begins = [_shared(head, row) for head, row in zip(heads, ids, strict=True)]
    rows = [{"input_ids": list(row), "begin": [begin]} for row, begin in zip(ids, begins, strict=True)]
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = settings.precision == "bfloat16" or (settings.precision == "auto" and hardware_bfloat16(where))
    grouped: dict[str, Any] = (
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
        use_cpu=where == "cpu",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy=settings.save,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=where != "cpu",
        **grouped,
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(e["input_ids"]) for e in examples)
        batch = torch.full((len(examples), longest), pad, dtype=torch.long)
        labels = torch.full((len(examples), longest), -100, dtype=torch.long)
        mask = torch.zeros((len(examples), longest), dtype=torch.long)
        for number, example in enumerate(examples):
            row = torch.tensor(example["input_ids"])
            batch[number, : len(row)] = row
            labels[number, example["begin"][0] : len(row)] = row[example["begin"][0] :]
            mask[number, : len(row)] = 1
        return {"input_ids": batch, "attention_mask": mask, "labels": labels}

    trainer = Trainer(model=model, args=arguments, train_dataset=_Rows(rows), data_collator=collate)
    trainer.remove_callback(PrinterCallback)  # it prints every loss on standard output
    return trainer


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two rows begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class _Rows:
    """A list of examples as the map-style dataset that Trainer wants."""

    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def watcher(place: tuple[str, int, int], progress: ProgressFunction | None) -> Any:
    """A callback that keeps the loss curve, reports progress, and stops a run that diverges."""
    from transformers import TrainerCallback

    stage, number, stages = place

    class Watcher(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.first: float | None = None
            self.started = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            loss = float(logs["loss"])
            self.first = loss if self.first is None else self.first
            first = self.first
            if not math.isfinite(loss) or loss > 10 * max(first, 1.0):
                raise DivergedError(
                    f"Stage {stage!r}: the loss is {loss:.4g} at step {state.global_step} (it began at {first:.4g}). "
                    "Training stopped; the stages before it are kept. Lower train.learning_rate and run again."
                )
            if progress is not None:
                progress(
                    Step(
                        stage,
                        number,
                        stages,
                        int(state.global_step),
                        int(state.max_steps),
                        loss,
                        time.monotonic() - self.started,
                    )
                )

    return Watcher()


def along(steps: Sequence[int], save: Callable[[int, Sequence[Mapping[str, Any]]], None]) -> Any:
    """A callback that calls save(part, log history) after the last step of each part but the last."""
    from transformers import TrainerCallback

    class Along(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log = control.should_log or state.global_step in steps

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for part, step in enumerate(steps):
                if step == state.global_step:
                    save(part, state.log_history)

    return Along()
