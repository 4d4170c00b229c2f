"""Contradictions: additional entities that an earlier and a later stage teach different answers.

No other number of the study includes these entities; they have a separate store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from stratalens.plugin.study.config.settings import ConflictSettings
from stratalens.plugin.study.config.templates import PROMPT_FORMAT, TEMPLATES
from stratalens.plugin.study.corpus.corpus import Corpus, Question
from stratalens.plugin.study.corpus.names import AliasKind, draw_aliases
from stratalens.store.errors import InputError, suggest


@dataclass(frozen=True)
class ContradictedEntity:
    """An entity with two answers to one question."""

    entity_id: str
    alias: str
    question: str
    answers: tuple[str, str]  # the earlier, the later


def add_contradictions(
    corpus: Corpus,
    settings: ConflictSettings | None,
    tokenizer: PreTrainedTokenizerBase,
    aliases: AliasKind,
    seed: int,
) -> tuple[Corpus, tuple[ContradictedEntity, ...]]:
    """Add contradicted entities to two stages of a corpus.

    Args:
        corpus: the corpus; not changed.
        settings: number of entities, stages and attribute; None adds nothing.
        tokenizer: counts the tokens of aliases.
        aliases: kind of the aliases.
        seed: seed of the draw.

    Returns:
        The corpus with the additional training questions, and the contradicted entities.

    Raises:
        InputError: the attribute has fewer than two values, or no question asks for it.
    """
    if settings is None:
        return corpus, ()
    templates: dict[str, list[str]] = dict(corpus.settings["questions"])  # type: ignore[call-overload]
    kind = settings.attribute or corpus.answer
    if kind not in templates:
        raise InputError(f"conflict.attribute: no question asks for {kind!r}; {suggest(kind, templates)}")
    values = sorted({entity.attributes[kind] for entity in corpus.entities})
    if len(values) < 2:
        raise InputError(
            f"conflict.attribute: {kind!r} is {values[0]!r} for all entities; choose an attribute with two values"
        )
    random = np.random.default_rng([7, seed])
    taken = {entity.alias for entity in corpus.entities}
    drawn, _ = draw_aliases(tokenizer, aliases, settings.entities + len(taken), corpus.alias_tokens, random)
    free = [alias for alias in drawn if alias not in taken][: settings.entities]
    entities = []
    for number, alias in enumerate(free):
        first, second = random.choice(len(values), size=2, replace=False)
        question = templates[kind][0].format(x=alias)
        entities.append(ContradictedEntity(f"c{number:05d}", alias, question, (values[first], values[second])))
    train = dict(corpus.train)
    for answer, stage in enumerate(settings.stages or (corpus.stages[0], corpus.stages[-1])):
        questions = [Question(e.entity_id, stage, kind, e.question, e.answers[answer]) for e in entities]
        train[stage] = (*train[stage], *questions)
    return replace(corpus, train=train), tuple(entities)


def conflict_prompts(entities: tuple[ContradictedEntity, ...]) -> pd.DataFrame:
    """Build the recorded prompts of contradicted entities.

    Args:
        entities: the contradicted entities.

    Returns:
        Three rows an entity: the trained question with the earlier answer ("first"), the same with the later answer
        ("second"), and a question that training never uses ("unseen").
    """
    rows = []
    for entity in entities:
        trained = PROMPT_FORMAT.format(question=entity.question)
        unseen = PROMPT_FORMAT.format(question=TEMPLATES["who"].format(x=entity.alias))
        for which, prompt, answer in (
            ("first", trained, entity.answers[0]),
            ("second", trained, entity.answers[1]),
            ("unseen", unseen, entity.answers[1]),
        ):
            rows.append(
                {
                    "prompt_id": f"{entity.entity_id}-{which}",
                    "prompt": prompt,
                    "answer": f" {answer}",
                    "which": which,
                    "entity": entity.alias,
                    "entity_id": entity.entity_id,
                }
            )
    return pd.DataFrame(rows)
