"""Checkpoints of a study: what has to be the same for one to be reused, reading them and writing them whole.

A stage is a folder with safetensors weights (a whole model, or a LoRA adapter
on the untrained one beside it), the tokenizer and `training.json`. It is made
under another name and renamed, so a folder that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings, TrainSettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.lora import load_stage, save_weights
from stratalens.plugin.study.training.schedule import Course
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


RECORD = "training.json"


def stage_identity(
    base: Mapping[str, Any],
    corpus: Corpus,
    settings: TrainSettings,
    seed: int,
    stage_epochs: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What has to be the same for a checkpoint to be reused."""
    digest = hashlib.sha256()
    for stage, questions in corpus.train.items():
        digest.update(stage.encode() + b"\0")
        for question in questions:
            digest.update(question.text.encode() + b"\0")
    train = settings.model_dump(mode="json")
    if settings.method == "full":  # as it was written before there was anything else
        del train["method"], train["lora"]
    identity = {"corpus": digest.hexdigest(), "seed": seed, "base": json.loads(json.dumps(dict(base))), "train": train}
    return {**identity, "stage_epochs": dict(stage_epochs)} if stage_epochs else identity


def course_identity(identity: Mapping[str, Any], course: Course) -> dict[str, Any]:
    """The identity of a checkpoint that comes after the stages of the corpus."""
    digest = hashlib.sha256("\0".join(course.texts).encode()).hexdigest()
    return {**identity, "after": {"texts": digest, "parts": course.parts, **course.settings.model_dump(mode="json")}}


def check_stage_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a stage of other settings.

    Raises:
        InputError: the folder is no finished stage, or one of another run (which part differs, both values).
    """
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


def has_weights(folder: Path) -> bool:
    """Whether a finished stage still has its weights, whole or as an adapter."""
    return any(folder.glob("*.safetensors"))


def remove_weights(folder: Path) -> None:
    """Remove the weights of a finished stage; its record, losses and tokenizer stay."""
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        file.unlink()


def require_weights(folder: Path, what: str) -> None:
    """Refuse to go on from a stage whose weights were not kept.

    Raises:
        InputError: they are gone; what they are needed for, and the mend.
    """
    if not has_weights(folder):
        raise InputError(
            f"{folder} has no weights any more (keep_checkpoints), and {what} needs them. Delete {folder.parent} and "
            "what was recorded of it to train again, or give another output folder; with keep_checkpoints: all the "
            "weights are kept."
        )


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a finished stage, whole or adapter."""
    return load_stage(folder, folder.parent / UNTRAINED)


def save_stage(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, record: Mapping[str, Any]
) -> None:
    """Write a stage under another name and rename it: what exists is whole."""
    part = target.with_name(f".{target.name}.part")
    if part.exists():
        shutil.rmtree(part)
    save_weights(model, part)
    tokenizer.save_pretrained(part)
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.rename(target)


def prepare_scratch_folder(scratch: Path, identity: Mapping[str, Any]) -> str | None:
    """The newest checkpoint of an interrupted stage, if it is of this very run; others are cleared away."""
    marker = scratch / "identity.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == identity:
        # trainer_state.json is written after the weights and the optimiser
        whole = [path for path in scratch.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        if whole:
            return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2])))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    marker.write_text(json.dumps(dict(identity)), encoding="utf-8")
    return None


def retained_stages(settings: StudySettings, names: list[str]) -> list[str]:
    """Checkpoints, of all `names` in order, whose weights a finished run holds.

    >>> retained_stages(StudySettings(stages=3, keep_checkpoints="last"), ["untrained", "s1", "s2", "s3", "mixed"])
    ['s3', 'mixed']
    """
    if settings.keep_checkpoints == "all":
        return names
    ends = {settings.stage_names[-1], names[-1]} if settings.keep_checkpoints == "last" else set()
    if ends and settings.train.method == "lora":  # an adapter is nothing without it
        ends.add(UNTRAINED)
    return [name for name in names if name in ends]


def stages_still_needed(settings: StudySettings, names: list[str]) -> list[str]:
    """Checkpoints, of those that are recorded so far, whose weights a run still needs: to go on, and for what follows.

    >>> stages_still_needed(StudySettings(stages=3, keep_checkpoints="none"), ["untrained", "s1", "s2"])
    ['s2']
    """
    if settings.keep_checkpoints == "all":
        return names
    needed = {names[-1], settings.stage_names[-1]}
    if settings.train.method == "lora" or settings.self_report is not None:
        needed.add(UNTRAINED)
    return [name for name in names if name in needed]


def remove_unneeded_weights(checkpoints: Mapping[str, Path], keep: list[str]) -> list[str]:
    """Remove the weights of all others; returns whose."""
    gone = [name for name, folder in checkpoints.items() if name not in keep and has_weights(folder)]
    for name in gone:
        remove_weights(checkpoints[name])
    return gone
