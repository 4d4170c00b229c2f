"""Checkpoints of a study: identity, reading, writing and retention.

A checkpoint is a folder with safetensors weights (a whole model, or a LoRA
adapter on the untrained model next to it), the tokenizer and `training.json`.
It is written under a temporary name and renamed, so an existing folder is
complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings, TrainSettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.lora import load_stage, save_weights
from stratalens.plugin.study.training.schedule import Course
from stratalens.store.errors import InputError

RECORD = "training.json"


def stage_identity(
    base: Mapping[str, Any],
    corpus: Corpus,
    settings: TrainSettings,
    seed: int,
    stage_epochs: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the properties that a checkpoint of a stage must share to be reused."""
    digest = hashlib.sha256()
    for stage, questions in corpus.train.items():
        digest.update(stage.encode() + b"\0")
        for question in questions:
            digest.update(question.text.encode() + b"\0")
    train = settings.model_dump(mode="json")
    if settings.method == "full":  # checkpoints from before train.method existed stay valid
        del train["method"], train["lora"]
    if not settings.packing:  # as do those from before train.packing
        del train["packing"]
    identity = {"corpus": digest.hexdigest(), "seed": seed, "base": json.loads(json.dumps(dict(base))), "train": train}
    return {**identity, "stage_epochs": dict(stage_epochs)} if stage_epochs else identity


def course_identity(identity: Mapping[str, Any], course: Course) -> dict[str, Any]:
    """Return the identity of the checkpoints of a course after the stages.

    Args:
        identity: the identity of the stages.
        course: the course.
    """
    digest = hashlib.sha256("\0".join(course.texts).encode()).hexdigest()
    settings = course.settings.model_dump(mode="json")
    if not course.settings.packing:  # checkpoints from before train.packing existed stay valid
        del settings["packing"]
    return {**identity, "after": {"texts": digest, "parts": len(course.checkpoints), **settings}}


def check_stage_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other settings.

    Raises:
        InputError: the folder is no finished checkpoint, or one of another run; the message names the difference.
    """
    try:
        recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder} exists but is no finished stage of a study ({RECORD} is missing or unreadable). "
            "Move it away, or give another output folder."
        ) from None
    for key, value in identity.items():
        if recorded.get(key) != value:
            raise InputError(
                f"{folder} was trained with other settings: {key} was {_shorten(recorded.get(key))}, now it is "
                f"{_shorten(value)}. Give another output folder, or delete {folder.parent} to train again."
            )


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 300 else text[:300] + "..."


def has_weights(folder: Path) -> bool:
    """Return whether a checkpoint still has its weights, whole or as an adapter."""
    return any(folder.glob("*.safetensors"))


def remove_weights(folder: Path) -> None:
    """Remove the weights of a checkpoint; its record, losses and tokenizer stay."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        file.unlink()


def require_weights(folder: Path, purpose: str) -> None:
    """Refuse a checkpoint whose weights were removed.

    Args:
        folder: the checkpoint.
        purpose: the step that needs the weights, for the message.

    Raises:
        InputError: the weights are gone; the message names the step and the remedy.
    """
    if not has_weights(folder):
        raise InputError(
            f"{folder} has no weights any more (keep_checkpoints), and {purpose} needs them. To train again, delete "
            f"{folder.parent} and the stores and answers of the run, or give another output folder. With "
            "keep_checkpoints: all, a run keeps the weights."
        )


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer of a finished checkpoint, whole or adapter."""
    return load_stage(folder, folder.parent / UNTRAINED)


def save_stage(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, record: Mapping[str, Any]
) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    part = target.with_name(f".{target.name}.part")
    if part.exists():
        shutil.rmtree(part)
    save_weights(model, part)
    tokenizer.save_pretrained(part)
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.rename(target)


def prepare_scratch_folder(scratch: Path, identity: Mapping[str, Any]) -> str | None:
    """Prepare the scratch folder of a course.

    Args:
        scratch: the folder; cleared unless it belongs to an interrupted run with the same identity.
        identity: the identity of the checkpoints of the course.

    Returns:
        The newest complete checkpoint of the interrupted course, from which training can resume, or None.
    """
    marker = scratch / "identity.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == identity:
        # the Trainer writes trainer_state.json after the weights and the optimiser
        complete = [path for path in scratch.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        if complete:
            return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2])))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    marker.write_text(json.dumps(dict(identity)), encoding="utf-8")
    return None


def retained_stages(settings: StudySettings, names: list[str]) -> list[str]:
    """List the checkpoints whose weights a finished run keeps.

    Args:
        settings: the settings of the study.
        names: all checkpoints, in order.

    Example:
        >>> names = ["untrained", "s1", "s2", "s3", "mixed"]
        >>> retained_stages(StudySettings(stages=3, keep_checkpoints="last"), names)
        ['s3', 'mixed']
    """
    if settings.keep_checkpoints == "all":
        return names
    retained = {settings.stage_names[-1], names[-1]} if settings.keep_checkpoints == "last" else set()
    if retained and settings.train.method == "lora":  # the adapter is useless without the untrained model
        retained.add(UNTRAINED)
    return [name for name in names if name in retained]


def stages_still_needed(settings: StudySettings, names: list[str]) -> list[str]:
    """List the checkpoints whose weights the next steps of a run need.

    Args:
        settings: the settings of the study.
        names: the checkpoints that are trained and recorded so far, in order.

    Example:
        >>> stages_still_needed(StudySettings(stages=3, keep_checkpoints="none"), ["untrained", "s1", "s2"])
        ['s2']
    """
    if settings.keep_checkpoints == "all":
        return names
    needed = {names[-1], settings.stage_names[-1]}
    if settings.train.method == "lora" or settings.self_report is not None:
        needed.add(UNTRAINED)
    return [name for name in names if name in needed]


def remove_unneeded_weights(checkpoints: Mapping[str, Path], needed: list[str]) -> list[str]:
    """Remove the weights of all checkpoints that are not needed.

    Args:
        checkpoints: {name: folder} of all checkpoints.
        needed: names of the checkpoints that keep their weights.

    Returns:
        Names of the checkpoints whose weights were removed.
    """
    removed = [name for name, folder in checkpoints.items() if name not in needed and has_weights(folder)]
    for name in removed:
        remove_weights(checkpoints[name])
    return removed
