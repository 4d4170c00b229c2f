"""The training schedule of a study: a course for every stage of the corpus, and courses after the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stratalens.plugin.study.config.settings import AfterSettings, TrainSettings
from stratalens.plugin.study.corpus.corpus import Corpus


@dataclass(frozen=True)
class Course:
    """One training with its own optimiser and schedule, and its checkpoints.

    Attributes:
        name: name of the course.
        texts: the training texts.
        settings: settings of the training.
        checkpoints: names of its checkpoints, evenly spaced; the last one is at its end.
        after: whether it comes after the stages of the corpus.
    """

    name: str
    texts: tuple[str, ...]
    settings: TrainSettings
    checkpoints: tuple[str, ...]
    after: bool = False


def plan_courses(
    corpus: Corpus,
    settings: TrainSettings,
    *,
    stage_epochs: Mapping[str, float] | None = None,
    after: Sequence[AfterSettings] = (),
) -> tuple[Course, ...]:
    """Plan all courses of a study, in order.

    Args:
        corpus: the training questions of each stage.
        settings: settings of every stage.
        stage_epochs: other numbers of epochs for some stages.
        after: courses after the last stage, on entities that a stage has taught already.
    """
    epochs = dict(stage_epochs or {})
    courses = [
        Course(name, tuple(q.text for q in questions), _override(settings, epochs=epochs.get(name)), (name,))
        for name, questions in corpus.train.items()
    ]
    for extra in after:
        texts = tuple(q.text for name in extra.train_on or corpus.stages for q in corpus.train[name])
        changed = _override(settings, epochs=extra.epochs, learning_rate=extra.learning_rate)
        courses.append(Course(extra.name, texts, changed, extra.checkpoint_names, after=True))
    return tuple(courses)


def _override(settings: TrainSettings, **changes: float | None) -> TrainSettings:
    """Copy the settings with the changes that are not None."""
    return settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
