"""Which texts a study trains on one after the other: the stages of its corpus, and what may come after them.

Lives here: `Course` (one uninterrupted training run with its own optimiser and
schedule) and the plan of all of them. Training them is `train`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stratalens.plugin.study.config.settings import AfterSettings, TrainSettings
from stratalens.plugin.study.corpus.corpus import Corpus


@dataclass(frozen=True)
class Course:
    """One training run: a fresh optimiser and schedule over some texts, with checkpoints along it.

    Attributes:
        name: of the course; with more than one part its checkpoints are called name-1, name-2 ...
        texts: what it trains on.
        settings: how.
        parts: checkpoints, evenly spaced; the last one is the course's end.
        after: whether it comes after the stages of the corpus.
    """

    name: str
    texts: tuple[str, ...]
    settings: TrainSettings
    parts: int = 1
    after: bool = False

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of its checkpoints, in order."""
        return (self.name,) if self.parts == 1 else tuple(f"{self.name}-{k}" for k in range(1, self.parts + 1))


def plan_courses(
    corpus: Corpus,
    settings: TrainSettings,
    *,
    stage_epochs: Mapping[str, float] | None = None,
    after: Sequence[AfterSettings] = (),
) -> tuple[Course, ...]:
    """All courses of a study, in order.

    Args:
        corpus: what each stage trains on.
        settings: of every stage.
        stage_epochs: other numbers of epochs for some stages.
        after: what is trained after the last stage, on entities that were seen before.
    """
    own = dict(stage_epochs or {})
    courses = [
        Course(name, tuple(q.text for q in questions), _override(settings, epochs=own.get(name)))
        for name, questions in corpus.train.items()
    ]
    for extra in after:
        texts = tuple(q.text for name in extra.train_on or corpus.stages for q in corpus.train[name])
        changed = _override(settings, epochs=extra.epochs, learning_rate=extra.learning_rate)
        courses.append(Course(extra.name, texts, changed, extra.checkpoints, after=True))
    return tuple(courses)


def _override(settings: TrainSettings, **changes: float | None) -> TrainSettings:
    given = {name: value for name, value in changes.items() if value is not None}
    return settings.model_copy(update=given) if given else settings
