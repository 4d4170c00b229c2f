"""Which of two groups an entity was learned in: the question for the self-report, who is taught and who is asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stratalens.recency.corpus import texts
from stratalens.recency.corpus.entities import Corpus
from stratalens.store.errors import InputError


@dataclass(frozen=True)
class Asked:
    """The entities that are taught and those that are asked, with the group of each (0 or 1)."""

    names: tuple[str, str]
    taught: tuple[tuple[str, str], ...]  # (entity_id, prompt)
    taught_group: npt.NDArray[np.int64]
    asked: tuple[tuple[str, str], ...]
    asked_group: npt.NDArray[np.int64]


def question_texts(corpus: Corpus) -> list[str]:
    """Every text of this part, for a vocabulary that is cut to what is in use."""
    prompts = [group_prompt(entity.alias) for entity in corpus.entities]
    return [prompt + answer for prompt in prompts for answer in texts.GROUP_ANSWERS]


def group_prompt(alias: str) -> str:
    """The question after the group of an entity."""
    return texts.PROMPT_FORMAT.format(question=texts.GROUP_QUESTION.format(x=alias))


def split(corpus: Corpus, names: tuple[str, str], seed: int) -> Asked:
    """Half of the entities of each of two stages to be taught, the others to be asked."""
    random = np.random.default_rng([4, seed])
    halves: tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]] = ([], [])
    for group, stage in enumerate(names):
        mine = [entity for entity in corpus.entities if entity.trained_stage == stage]
        if len(mine) < 4:
            raise InputError(f"self_report: stage {stage!r} has {len(mine)} entities, two for each half are needed")
        for place, row in enumerate(random.permutation(len(mine))):
            entity = mine[int(row)]
            halves[place % 2].append((entity.entity_id, group_prompt(entity.alias), group))
    taught, asked = halves
    return Asked(
        names,
        tuple((name, prompt) for name, prompt, _ in taught),
        np.array([group for *_, group in taught], dtype=np.int64),
        tuple((name, prompt) for name, prompt, _ in asked),
        np.array([group for *_, group in asked], dtype=np.int64),
    )
