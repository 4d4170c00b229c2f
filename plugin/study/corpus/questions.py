"""Questions that checkpoints answer: about attributes, and about the stage of an entity (self-report)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stratalens.plugin.study.config.templates import GROUP_ANSWERS, GROUP_QUESTION, PROMPT_FORMAT
from stratalens.plugin.study.corpus.corpus import Corpus, Question
from stratalens.store.errors import InputError

MAX_ANSWERS = 32  # an attribute with more values, such as a year, is too hard for a single question


@dataclass(frozen=True)
class AskedQuestion:
    """A question that every checkpoint answers.

    Attributes:
        entity_id: the entity of the question.
        trained_stage: the stage that trains on the entity.
        kind: the attribute.
        prompt: the training text up to the answer.
        answer: the true answer.
        trained: whether training uses this question.
    """

    entity_id: str
    trained_stage: str
    kind: str
    prompt: str
    answer: str
    trained: bool


def candidate_answers(corpus: Corpus) -> dict[str, tuple[str, ...]]:
    """Collect all answers to each kind of question in the corpus, sorted."""
    answers: dict[str, set[str]] = {}
    for question in (*(q for questions in corpus.train.values() for q in questions), *corpus.test):
        answers.setdefault(question.kind, set()).add(question.answer)
    return {kind: tuple(sorted(values)) for kind, values in answers.items()}


def draw_one_question_each(corpus: Corpus, seed: int) -> tuple[AskedQuestion, ...]:
    """Draw one training question of every entity.

    The draw is among the questions with at most `MAX_ANSWERS` answers, or among all training questions of an entity
    that has no such question.
    """
    random = np.random.default_rng([8, seed])
    few = {kind for kind, values in candidate_answers(corpus).items() if len(values) <= MAX_ANSWERS}
    drawn = []
    for questions in _training_questions_by_entity(corpus).values():
        eligible = [question for question in questions if question.kind in few] or questions
        drawn.append(_make_asked_question(eligible[int(random.integers(len(eligible)))], trained=True))
    return tuple(drawn)


def list_all_questions(corpus: Corpus) -> tuple[AskedQuestion, ...]:
    """List all questions of every entity, the test question included."""
    test = {question.entity_id: question for question in corpus.test}
    asked = []
    for entity_id, questions in _training_questions_by_entity(corpus).items():
        asked += [_make_asked_question(question, trained=True) for question in questions]
        if entity_id in test:
            asked.append(_make_asked_question(test[entity_id], trained=False))
    return tuple(asked)


def _training_questions_by_entity(corpus: Corpus) -> dict[str, list[Question]]:
    """List the training questions of every entity; contradicted entities have none."""
    by_entity: dict[str, list[Question]] = {entity.entity_id: [] for entity in corpus.entities}
    for questions in corpus.train.values():
        for question in questions:
            if question.entity_id in by_entity:
                by_entity[question.entity_id].append(question)
    return by_entity


def _make_asked_question(question: Question, *, trained: bool) -> AskedQuestion:
    prompt = PROMPT_FORMAT.format(question=question.question)
    return AskedQuestion(question.entity_id, question.trained_stage, question.kind, prompt, question.answer, trained)


@dataclass(frozen=True)
class SelfReportSplit:
    """Taught and asked entities of the self-report, with the group of each (0 or 1).

    Attributes:
        taught: (entity_id, prompt) of the taught entities.
        taught_group: int64 array of shape (taught entities,).
        asked: (entity_id, prompt) of the asked entities.
        asked_group: int64 array of shape (asked entities,).
    """

    taught: tuple[tuple[str, str], ...]
    taught_group: npt.NDArray[np.int64]
    asked: tuple[tuple[str, str], ...]
    asked_group: npt.NDArray[np.int64]


def self_report_texts(corpus: Corpus) -> list[str]:
    """List every text of the self-report that training may tokenise."""
    return [self_report_prompt(entity.alias) + answer for entity in corpus.entities for answer in GROUP_ANSWERS]


def self_report_prompt(alias: str) -> str:
    """Return the prompt that asks for the group of an entity."""
    return PROMPT_FORMAT.format(question=GROUP_QUESTION.format(x=alias))


def split_for_self_report(corpus: Corpus, names: tuple[str, str], seed: int) -> SelfReportSplit:
    """Split the entities of two stages into a taught and an asked half.

    Args:
        corpus: the corpus.
        names: the two stages.
        seed: seed of the split.

    Raises:
        InputError: a stage has fewer than four entities.
    """
    random = np.random.default_rng([4, seed])
    halves: tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]] = ([], [])
    for group, stage in enumerate(names):
        entities = [entity for entity in corpus.entities if entity.trained_stage == stage]
        if len(entities) < 4:
            raise InputError(f"self_report: stage {stage!r} has {len(entities)} entities; each half needs two")
        for place, row in enumerate(random.permutation(len(entities))):
            entity = entities[int(row)]
            halves[place % 2].append((entity.entity_id, self_report_prompt(entity.alias), group))
    taught, asked = halves
    return SelfReportSplit(
        tuple((name, prompt) for name, prompt, _ in taught),
        np.array([group for *_, group in taught], dtype=np.int64),
        tuple((name, prompt) for name, prompt, _ in asked),
        np.array([group for *_, group in asked], dtype=np.int64),
    )
