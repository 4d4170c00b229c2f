"""Which questions an entity is asked at every checkpoint, and the answers that each is chosen from.

Only facts that the entity was trained on say what is forgotten; its test question was never answered in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stratalens.plugin.study.config import templates as texts
from stratalens.plugin.study.corpus.corpus import Corpus, Question
from stratalens.store.errors import InputError

MAX_ANSWERS = 32  # values that an attribute may have for one question to be enough; years have more


@dataclass(frozen=True)
class AskedQuestion:
    """One question that is asked at every checkpoint.

    Attributes:
        entity_id: whom it is about.
        trained_stage: when the entity was trained on.
        kind: the attribute.
        prompt: the question as it was trained on, up to the answer.
        answer: the true one, as it was trained on.
        trained: whether this question was answered in training.
    """

    entity_id: str
    trained_stage: str
    kind: str
    prompt: str
    answer: str
    trained: bool


def candidate_answers(corpus: Corpus) -> dict[str, tuple[str, ...]]:
    """The answers to each kind of question that occur anywhere in the corpus, sorted."""
    found: dict[str, set[str]] = {}
    for question in (*(q for questions in corpus.train.values() for q in questions), *corpus.test):
        found.setdefault(question.kind, set()).add(question.answer)
    return {kind: tuple(sorted(values)) for kind, values in found.items()}


def draw_one_question_each(corpus: Corpus, seed: int) -> tuple[AskedQuestion, ...]:
    """One question of every entity, at random among those it was trained on whose attribute has few values.

    An entity without such a question (one of one's own, with years and numbers only) is asked any it was trained on.
    """
    random = np.random.default_rng([8, seed])
    few = {kind for kind, values in candidate_answers(corpus).items() if len(values) <= MAX_ANSWERS}
    own = _training_questions_by_entity(corpus)
    found = []
    for entity in corpus.entities:
        mine = [question for question in own[entity.entity_id] if question.kind in few] or own[entity.entity_id]
        found.append(_make_asked_question(mine[int(random.integers(len(mine)))], trained=True))
    return tuple(found)


def list_all_questions(corpus: Corpus) -> tuple[AskedQuestion, ...]:
    """All questions of every entity, also the one that was kept from training."""
    own = _training_questions_by_entity(corpus)
    kept = {question.entity_id: question for question in corpus.test}
    found = []
    for entity in corpus.entities:
        found += [_make_asked_question(question, trained=True) for question in own[entity.entity_id]]
        if entity.entity_id in kept:
            found.append(_make_asked_question(kept[entity.entity_id], trained=False))
    return tuple(found)


def _training_questions_by_entity(corpus: Corpus) -> dict[str, list[Question]]:
    """Training questions of the corpus' own entities, by entity; contradicted ones are none of them."""
    own: dict[str, list[Question]] = {entity.entity_id: [] for entity in corpus.entities}
    for questions in corpus.train.values():
        for question in questions:
            if question.entity_id in own:
                own[question.entity_id].append(question)
    return own


def _make_asked_question(question: Question, *, trained: bool) -> AskedQuestion:
    prompt = texts.PROMPT_FORMAT.format(question=question.question)
    return AskedQuestion(question.entity_id, question.trained_stage, question.kind, prompt, question.answer, trained)


@dataclass(frozen=True)
class SelfReportSplit:
    """The entities that are taught and those that are asked, with the group of each (0 or 1)."""

    names: tuple[str, str]
    taught: tuple[tuple[str, str], ...]  # (entity_id, prompt)
    taught_group: npt.NDArray[np.int64]
    asked: tuple[tuple[str, str], ...]
    asked_group: npt.NDArray[np.int64]


def self_report_texts(corpus: Corpus) -> list[str]:
    """Every text of this part, for a vocabulary that is cut to what is in use."""
    prompts = [self_report_prompt(entity.alias) for entity in corpus.entities]
    return [prompt + answer for prompt in prompts for answer in texts.GROUP_ANSWERS]


def self_report_prompt(alias: str) -> str:
    """The question after the group of an entity."""
    return texts.PROMPT_FORMAT.format(question=texts.GROUP_QUESTION.format(x=alias))


def split_for_self_report(corpus: Corpus, names: tuple[str, str], seed: int) -> SelfReportSplit:
    """Half of the entities of each of two stages to be taught, the others to be asked."""
    random = np.random.default_rng([4, seed])
    halves: tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]] = ([], [])
    for group, stage in enumerate(names):
        mine = [entity for entity in corpus.entities if entity.trained_stage == stage]
        if len(mine) < 4:
            raise InputError(f"self_report: stage {stage!r} has {len(mine)} entities, two for each half are needed")
        for place, row in enumerate(random.permutation(len(mine))):
            entity = mine[int(row)]
            halves[place % 2].append((entity.entity_id, self_report_prompt(entity.alias), group))
    taught, asked = halves
    return SelfReportSplit(
        names,
        tuple((name, prompt) for name, prompt, _ in taught),
        np.array([group for *_, group in taught], dtype=np.int64),
        tuple((name, prompt) for name, prompt, _ in asked),
        np.array([group for *_, group in asked], dtype=np.int64),
    )
