"""Which weights are kept: those that are still needed, and those that the settings ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stratalens.recency.parts import UNTRAINED
from stratalens.recency.settings import StudySettings
from stratalens.recency.training.checkpoints import has_weights, remove_weights


def kept_at_the_end(settings: StudySettings, names: list[str]) -> list[str]:
    """Checkpoints, of all `names` in order, whose weights a finished run holds.

    >>> kept_at_the_end(StudySettings(stages=3, keep_checkpoints="last"), ["untrained", "s1", "s2", "s3", "mixed"])
    ['s3', 'mixed']
    """
    if settings.keep_checkpoints == "all":
        return names
    ends = {settings.stage_names[-1], names[-1]} if settings.keep_checkpoints == "last" else set()
    if ends and settings.train.method == "lora":  # an adapter is nothing without it
        ends.add(UNTRAINED)
    return [name for name in names if name in ends]


def needed_meanwhile(settings: StudySettings, names: list[str]) -> list[str]:
    """Checkpoints, of those that are recorded so far, whose weights a run still needs: to go on, and for what follows.

    >>> needed_meanwhile(StudySettings(stages=3, keep_checkpoints="none"), ["untrained", "s1", "s2"])
    ['s2']
    """
    if settings.keep_checkpoints == "all":
        return names
    needed = {names[-1], settings.stage_names[-1]}
    if settings.train.method == "lora" or settings.self_report is not None:
        needed.add(UNTRAINED)
    return [name for name in names if name in needed]


def drop(checkpoints: Mapping[str, Path], keep: list[str]) -> list[str]:
    """Remove the weights of all others; returns whose."""
    gone = [name for name, folder in checkpoints.items() if name not in keep and has_weights(folder)]
    for name in gone:
        remove_weights(checkpoints[name])
    return gone
