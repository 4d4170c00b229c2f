"""Sequential fine-tuning: one checkpoint for every stage, with Hugging Face's own Trainer.

Every stage starts from the weights of the one before it, with a fresh
optimiser and schedule. A finished stage is a folder with safetensors weights,
the tokenizer and `training.json`; it is made under another name and renamed,
so a folder that exists is whole. A second run with the same settings reuses it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.recency.corpus import Corpus, Question
from stratalens.recency.models import quiet_bars
from stratalens.recency.settings import UNTRAINED, TrainSettings
from stratalens.store.errors import InputError, StratalensError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

RECORD = "training.json"


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


def train_stages(
    start: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    corpus: Corpus,
    settings: TrainSettings,
    folder: Path,
    *,
    seed: int,
    base: Mapping[str, Any],
    device: str | None = None,
    callbacks: Callable[[str], Sequence[TrainerCallback]] | None = None,
    progress: ProgressFunction | None = None,
) -> dict[str, Path]:
    """Fine-tune through all stages of a corpus, one after the other.

    Args:
        start: gives the model that training starts from (saved as stage
            "untrained") and its tokenizer; called only if it is needed.
        corpus: what each stage trains on, in training order.
        settings: of every stage alike.
        folder: gets one checkpoint folder for every stage.
        seed: of the order of examples; stage k uses a seed made of it and k.
        base: what `start` gives, in words that can be compared (name, layers).
        device: None takes a GPU where there is one.
        callbacks: extra Trainer callbacks for the stage named.
        progress: called after every step.

    Returns:
        {stage: checkpoint folder}, the untrained one first.

    Raises:
        InputError: the folder holds stages of other settings.
        DivergedError: the loss is not finite or has exploded; the stages
            before are kept and reused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = (UNTRAINED, *corpus.stages)
    identity = _identity(base, corpus, settings, seed)
    found: dict[str, Path] = {}
    for name in names:
        if (folder / name).exists():
            _check(folder / name, identity)
            found[name] = folder / name
    held: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    for number, name in enumerate(names):
        if name in found:
            held = None
            continue
        if number == 0:
            held = start()
        elif held is None:
            held = load_checkpoint(found[names[number - 1]])
        model, tokenizer = held
        losses: list[dict[str, float]] = []
        if number:
            losses = _train_one(
                model,
                tokenizer,
                corpus.train[name],
                settings,
                folder / f".{name}.trainer",
                identity,
                seed=seed * 1000 + number,
                device=device,
                callbacks=tuple(callbacks(name)) if callbacks else (),
                progress=progress,
                place=(name, number, len(corpus.stages)),
            )
        record = {"identity": identity, "stage": name, "order": number, "losses": losses}
        _save(model, tokenizer, folder / name, record)
        found[name] = folder / name
    return {name: found[name] for name in names}


def loss_curves(checkpoints: dict[str, Path]) -> list[dict[str, Any]]:
    """Rows of (stage, step, loss, learning_rate) kept with the checkpoints."""
    rows = []
    for stage, folder in checkpoints.items():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        rows += [{"stage": stage, **entry} for entry in record["losses"]]
    return rows


def hardware_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 run in hardware there (else they are slower than float32)."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    if device != "cpu":
        return False
    capabilities = torch.backends.cpu.get_cpu_capability()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "AVX512" in capabilities and supported is not None and bool(supported())


def _identity(base: Mapping[str, Any], corpus: Corpus, settings: TrainSettings, seed: int) -> dict[str, Any]:
    """What has to be the same for a checkpoint to be reused."""
    digest = hashlib.sha256()
    for stage, questions in corpus.train.items():
        digest.update(stage.encode() + b"\0")
        for question in questions:
            digest.update(question.text.encode() + b"\0")
    return {
        "corpus": digest.hexdigest(),
        "seed": seed,
        "base": json.loads(json.dumps(dict(base))),
        "train": settings.model_dump(mode="json"),
    }


def _check(folder: Path, identity: dict[str, Any]) -> None:
    try:
        held = json.loads((folder / RECORD).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder} exists but is no finished stage of a study ({RECORD} is missing or unreadable). "
            "Move it away, or give another output folder."
        ) from None
    for key, value in identity.items():
        if held.get(key) != value:
            raise InputError(
                f"{folder} was trained with other settings: {key} was {_short(held.get(key))}, now it is "
                f"{_short(value)}. Give another output folder, or delete {folder.parent} to train again."
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 300 else text[:300] + "..."


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a finished stage."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_bars():
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, record: dict[str, Any]) -> None:
    part = target.with_name(f".{target.name}.part")
    if part.exists():
        shutil.rmtree(part)
    with quiet_bars():
        model.save_pretrained(part, safe_serialization=True)
    tokenizer.save_pretrained(part)
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.rename(target)


def _train_one(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    settings: TrainSettings,
    scratch: Path,
    identity: dict[str, Any],
    *,
    seed: int,
    device: str | None,
    callbacks: Sequence[TrainerCallback],
    progress: ProgressFunction | None,
    place: tuple[str, int, int],
) -> list[dict[str, float]]:
    """Train one stage in place, from its last checkpoint within the stage where there is one; its loss curve."""
    last = _within_stage(scratch, identity)
    trainer = make_trainer(model, tokenizer, [q.text for q in questions], settings, scratch, seed, device)
    watch = _watcher(place, progress)
    for callback in (watch, *callbacks):
        trainer.add_callback(callback)
    # Attention as plain matrix products: at two dozen tokens a row the fused kernels cost more, above all backwards.
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        trainer.train(resume_from_checkpoint=last)
    finally:
        model.set_attn_implementation(implementation)
        model.train(False)
    shutil.rmtree(scratch, ignore_errors=True)
    return [
        {key: float(entry[key]) for key in ("step", "loss", "learning_rate")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def _within_stage(scratch: Path, identity: dict[str, Any]) -> str | None:
    """The newest checkpoint of an interrupted stage, if it is of this very run; others are cleared away."""
    marker = scratch / "identity.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == identity:
        # trainer_state.json is written after the weights and the optimiser
        whole = [path for path in scratch.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        if whole:
            return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    marker.write_text(json.dumps(identity), encoding="utf-8")
    return None


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: TrainSettings,
    scratch: Path,
    seed: int,
    device: str | None = None,
) -> Trainer:
    """Hugging Face's Trainer over the texts, rows of like length together so that little is padding.

    The loss is over every token of a text, as in the study.
    """
    import inspect

    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    ids = tokenizer(list(texts))["input_ids"]
    rows = [{"input_ids": list(row)} for row in ids]
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
            labels[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return {"input_ids": batch, "attention_mask": mask, "labels": labels}

    trainer = Trainer(model=model, args=arguments, train_dataset=_Rows(rows), data_collator=collate)
    trainer.remove_callback(PrinterCallback)  # it prints every loss on standard output
    return trainer


class _Rows:
    """A list of examples as the map-style dataset that Trainer wants."""

    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def _watcher(place: tuple[str, int, int], progress: ProgressFunction | None) -> Any:
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
