"""Sequential fine-tuning with the Trainer of Hugging Face: at least one checkpoint a stage.

Every stage starts from the weights of the stage before, with a fresh optimiser
and schedule. A second run with the same settings reuses finished checkpoints.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from stratalens.plugin.compat import eager_attention
from stratalens.plugin.study.config.settings import UNTRAINED, AfterSettings, TrainSettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.checkpoints import (
    RECORD,
    check_stage_identity,
    course_identity,
    prepare_scratch_folder,
    require_weights,
    save_stage,
    stage_identity,
)
from stratalens.plugin.study.training.lora import ensure_adapter, load_stage
from stratalens.plugin.study.training.schedule import Course, plan_courses
from stratalens.plugin.study.training.trainer import CheckpointCallback, LossMonitor, ProgressFunction, make_trainer


def train_stages(
    load_untrained: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    corpus: Corpus,
    settings: TrainSettings,
    folder: Path,
    *,
    seed: int,
    base: Mapping[str, Any],
    device: str | None = None,
    progress: ProgressFunction | None = None,
    stage_epochs: Mapping[str, float] | None = None,
    after: Sequence[AfterSettings] = (),
    on_course_end: Callable[[dict[str, Path]], None] | None = None,
) -> dict[str, Path]:
    """Fine-tune through all stages of a corpus, one after the other.

    Args:
        load_untrained: returns the untrained model and its tokenizer; called
            only if training needs it.
        corpus: the training questions of each stage, in training order.
        settings: settings of every stage.
        folder: receives one checkpoint folder a stage.
        seed: seed of the order of examples; stage k derives its own from it.
        base: identity of the untrained model (name, layers), as plain values.
        device: None takes a GPU if there is one.
        progress: called after every step.
        stage_epochs: other numbers of epochs for some stages.
        after: courses after the last stage.
        on_course_end: called after every course with all checkpoints so far,
            in order.

    Returns:
        {stage: checkpoint folder}: the untrained model first, then the stages,
        then the checkpoints of `after`.

    Raises:
        InputError: the folder holds checkpoints of other settings.
        DivergedError: the loss is not finite or has exploded; the stages
            before it stay and are reused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    courses = plan_courses(corpus, settings, stage_epochs=stage_epochs, after=after)
    common = stage_identity(base, corpus, settings, seed, stage_epochs)
    identities = {c.name: course_identity(common, c) if c.after else common for c in courses}
    expected = {UNTRAINED: common} | {name: identities[c.name] for c in courses for name in c.checkpoints}
    finished = {name for name in expected if (folder / name).exists()}
    for name in finished:
        check_stage_identity(folder / name, expected[name])
    current: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    if UNTRAINED not in finished:
        current = load_untrained()
        record = {"identity": common, "stage": UNTRAINED, "order": 0, "losses": []}
        save_stage(*current, folder / UNTRAINED, record)
    checkpoints = {UNTRAINED: folder / UNTRAINED}
    for number, course in enumerate(courses, 1):
        if finished.issuperset(course.checkpoints):
            current = None
        else:
            if current is None:
                before = list(checkpoints.values())[-1]
                require_weights(before, f"training {course.name!r}")
                current = load_stage(before, folder / UNTRAINED)
            model, tokenizer = current
            if settings.method == "lora":
                model = ensure_adapter(model, settings.lora, seed, folder / UNTRAINED)
                current = model, tokenizer
            _train_course(
                model,
                tokenizer,
                course,
                folder,
                identities[course.name],
                len(checkpoints),
                seed=seed * 1000 + number,
                device=device,
                monitor=LossMonitor(course.name, number, len(courses), progress),
            )
        checkpoints |= {name: folder / name for name in course.checkpoints}
        if on_course_end is not None:
            on_course_end(dict(checkpoints))
    return checkpoints


def loss_curves(checkpoints: dict[str, Path]) -> list[dict[str, Any]]:
    """Read the loss curves of checkpoints: stage, step, loss, learning_rate."""
    rows = []
    for stage, folder in checkpoints.items():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        rows += [{"stage": stage, **entry} for entry in record["losses"]]
    return rows


def _train_course(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    course: Course,
    folder: Path,
    identity: Mapping[str, Any],
    order: int,
    *,
    seed: int,
    device: str | None,
    monitor: TrainerCallback,
) -> None:
    """Train one course in place, or resume it, and save its checkpoints.

    Args:
        model: the model before the course.
        tokenizer: its tokenizer.
        course: texts, settings and checkpoints.
        folder: receives the checkpoints.
        identity: the identity of the checkpoints.
        order: position of the first checkpoint among those of the study.
        seed: seed of the order of examples.
        device: None takes a GPU if there is one.
        monitor: callback that watches the loss.
    """
    scratch = folder / f".{course.name}.trainer"
    resume_from = prepare_scratch_folder(scratch, identity)
    trainer = make_trainer(model, tokenizer, course.texts, course.settings, scratch, seed, device)
    steps = math.ceil(len(trainer.get_train_dataloader()) * course.settings.epochs)
    count = len(course.checkpoints)
    ends = [round(steps * (number + 1) / count) for number in range(count)]

    def save(number: int, history: Sequence[Mapping[str, Any]]) -> None:
        name = course.checkpoints[number]
        if (folder / name).exists():  # an interrupted run has saved it already, with the same weights
            return
        start = ends[number - 1] if number else 0
        losses = [
            {key: float(entry[key]) for key in ("step", "loss", "learning_rate")}
            for entry in history
            if "loss" in entry and start < entry["step"] <= ends[number]
        ]
        record = {"identity": identity, "stage": name, "order": order + number, "losses": losses}
        save_stage(model, tokenizer, folder / name, record)

    for callback in (monitor, CheckpointCallback(ends[:-1], save)):
        trainer.add_callback(callback)
    # Attention as plain matrix products: at two dozen tokens a row the fused kernels cost more, above all backwards.
    try:
        with eager_attention(model):
            trainer.train(resume_from_checkpoint=resume_from)
    finally:
        model.train(False)
    ends[-1] = int(trainer.state.global_step)
    save(count - 1, trainer.state.log_history)
    shutil.rmtree(scratch, ignore_errors=True)
