"""Contradictions: the same entities are taught one answer in an earlier stage and another one in a later.

These entities are no part of the stages that the other numbers are about: they
come on top, and are recorded in a store of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratalens.plugin.study.config import templates as texts
from stratalens.plugin.study.config.settings import ConflictSettings
from stratalens.plugin.study.corpus.corpus import Corpus, Question
from stratalens.plugin.study.corpus.names import AliasKind, draw_aliases
from stratalens.store.errors import InputError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ContradictedEntity:
    """An entity with two answers to one question."""

    entity_id: str
    alias: str
    question: str
    answers: tuple[str, str]  # the earlier, the later


def add_contradictions(
    corpus: Corpus, own: ConflictSettings | None, tokenizer: PreTrainedTokenizerBase, aliases: AliasKind, seed: int
) -> tuple[Corpus, tuple[ContradictedEntity, ...]]:
    """The corpus with contradicted entities in two of its stages, and these entities; as it was without the setting.

    Raises:
        InputError: the attribute has fewer than two values, or is not asked for.
    """
    if own is None:
        return corpus, ()
    asked: dict[str, list[str]] = dict(corpus.settings["questions"])  # type: ignore[call-overload]
    kind = own.attribute or corpus.answer
    if kind not in asked:
        raise InputError(f"conflict.attribute: {kind!r} is not asked for; {suggest(kind, asked)}")
    values = sorted({entity.attributes[kind] for entity in corpus.entities})
    if len(values) < 2:
        raise InputError(f"conflict.attribute: all entities have the same {kind!r} ({values[0]!r}); give another")
    random = np.random.default_rng([7, seed])
    taken = {entity.alias for entity in corpus.entities}
    drawn, _ = draw_aliases(tokenizer, aliases, own.entities + len(taken), corpus.alias_tokens, random)
    free = [alias for alias in drawn if alias not in taken][: own.entities]
    found = []
    for number, alias in enumerate(free):
        first, second = random.choice(len(values), size=2, replace=False)
        question = asked[kind][0].format(x=alias)
        found.append(ContradictedEntity(f"c{number:05d}", alias, question, (values[first], values[second])))
    train = dict(corpus.train)
    for stage, which in zip(own.stages or (corpus.stages[0], corpus.stages[-1]), (0, 1), strict=True):
        more = [Question(c.entity_id, stage, kind, c.question, c.answers[which]) for c in found]
        train[stage] = (*train[stage], *more)
    return replace(corpus, train=train), tuple(found)


def conflict_prompts(entities: tuple[ContradictedEntity, ...]) -> pd.DataFrame:
    """Three rows an entity: the question with either answer behind it, and a question never seen in training."""
    rows = []
    for c in entities:
        asked = texts.PROMPT_FORMAT.format(question=c.question)
        unseen = texts.PROMPT_FORMAT.format(question=texts.TEMPLATES["who"].format(x=c.alias))
        for which, prompt, answer in (
            ("first", asked, c.answers[0]),
            ("second", asked, c.answers[1]),
            ("unseen", unseen, c.answers[1]),
        ):
            row = {"prompt_id": f"{c.entity_id}-{which}", "prompt": prompt, "answer": f" {answer}", "which": which}
            rows.append({**row, "entity": c.alias, "entity_id": c.entity_id})
    return pd.DataFrame(rows)
