"""Sequential fine-tuning: one checkpoint for every stage, with Hugging Face's own Trainer.

Every stage starts from the weights of the one before it, with a fresh
optimiser and schedule. A finished stage is a folder with safetensors weights,
the tokenizer and `training.json`; it is made under another name and renamed,
so a folder that exists is whole. A second run with the same settings reuses it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.compat import eager_attention
from stratalens.plugin.study.config.settings import UNTRAINED, AfterSettings, TrainSettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.checkpoints import (
    RECORD,
    check_stage,
    identity_after,
    identity_of,
    require_weights,
    save_stage,
    within_stage,
)
from stratalens.plugin.study.training.lora import current_or_new, load_stage
from stratalens.plugin.study.training.schedule import Course, plan
from stratalens.plugin.study.training.trainer import ProgressFunction, along, make_trainer, watcher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


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
    stage_epochs: Mapping[str, float] | None = None,
    after: Sequence[AfterSettings] = (),
    reached: Callable[[dict[str, Path]], None] | None = None,
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
        stage_epochs: other numbers of epochs for some stages.
        after: what is trained after the last stage.
        reached: called after every course with the checkpoints so far, in order.

    Returns:
        {stage: checkpoint folder}, the untrained one first, what was trained after the stages last.

    Raises:
        InputError: the folder holds stages of other settings.
        DivergedError: the loss is not finite or has exploded; the stages
            before are kept and reused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    courses = plan(corpus, settings, stage_epochs=stage_epochs, after=after)
    common = identity_of(base, corpus, settings, seed, stage_epochs)
    identities = {c.name: identity_after(common, c) if c.after else common for c in courses}
    found: dict[str, Path] = {}
    for name, identity in [(UNTRAINED, common), *((n, identities[c.name]) for c in courses for n in c.checkpoints)]:
        if (folder / name).exists():
            check_stage(folder / name, identity)
            found[name] = folder / name
    held: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    if UNTRAINED not in found:
        held = start()
        record = {"identity": common, "stage": UNTRAINED, "order": 0, "losses": []}
        save_stage(*held, folder / UNTRAINED, record)
        found[UNTRAINED] = folder / UNTRAINED
    before, order = UNTRAINED, 1
    for number, course in enumerate(courses, 1):
        if all(name in found for name in course.checkpoints):
            held = None
        else:
            if held is None:
                require_weights(found[before], f"training {course.name!r}")
            model, tokenizer = held or load_stage(found[before], found[UNTRAINED])
            if settings.method == "lora":
                model = current_or_new(model, settings.lora, seed, found[UNTRAINED])
            held = model, tokenizer
            _train_one(
                model,
                tokenizer,
                course,
                folder,
                identities[course.name],
                order,
                seed=seed * 1000 + number,
                device=device,
                callbacks=tuple(callbacks(course.name)) if callbacks else (),
                watch=watcher((course.name, number, len(courses)), progress),
            )
            found |= {name: folder / name for name in course.checkpoints}
        before, order = course.checkpoints[-1], order + course.parts
        if reached is not None:
            reached({name: found[name] for name in (UNTRAINED, *(n for c in courses[:number] for n in c.checkpoints))})
    return {name: found[name] for name in (UNTRAINED, *(n for c in courses for n in c.checkpoints))}


def loss_curves(checkpoints: dict[str, Path]) -> list[dict[str, Any]]:
    """Rows of (stage, step, loss, learning_rate) kept with the checkpoints."""
    rows = []
    for stage, folder in checkpoints.items():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        rows += [{"stage": stage, **entry} for entry in record["losses"]]
    return rows


def _train_one(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    course: Course,
    folder: Path,
    identity: Mapping[str, Any],
    order: int,
    *,
    seed: int,
    device: str | None,
    callbacks: Sequence[TrainerCallback],
    watch: TrainerCallback,
) -> None:
    """Train one course in place, from its last checkpoint within where there is one, and save its stages."""
    scratch = folder / f".{course.name}.trainer"
    last = within_stage(scratch, identity)
    trainer = make_trainer(model, tokenizer, course.texts, course.settings, scratch, seed, device)
    steps = math.ceil(len(trainer.get_train_dataloader()) * course.settings.epochs)
    ends = [round(steps * (part + 1) / course.parts) for part in range(course.parts)]

    def save(part: int, history: Sequence[Mapping[str, Any]]) -> None:
        name, begun = course.checkpoints[part], ends[part - 1] if part else 0
        if (folder / name).exists():  # an earlier try of this course came so far, with the same weights
            return
        losses = [
            {key: float(entry[key]) for key in ("step", "loss", "learning_rate")}
            for entry in history
            if "loss" in entry and begun < entry["step"] <= ends[part]
        ]
        record = {"identity": identity, "stage": name, "order": order + part, "losses": losses}
        save_stage(model, tokenizer, folder / name, record)

    for callback in (watch, *callbacks, along(ends[:-1], save)):
        trainer.add_callback(callback)
    # Attention as plain matrix products: at two dozen tokens a row the fused kernels cost more, above all backwards.
    try:
        with eager_attention(model):
            trainer.train(resume_from_checkpoint=last)
    finally:
        model.train(False)
    ends[-1] = int(trainer.state.global_step)
    save(course.parts - 1, trainer.state.log_history)
    shutil.rmtree(scratch, ignore_errors=True)
