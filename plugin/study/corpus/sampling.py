"""Drawing a corpus: a pool of entities, cut into stages, and the questions of each.

Every draw is independent of the stage: a pool of entities is made first, then
cut into stages by a random permutation, so stages differ by nothing but chance
and the order in which they are trained on. Words live in `texts`, people in
`people`, what they are called in `aliases`, the comparison of stages in `balance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratalens.plugin.study.config import templates as texts
from stratalens.plugin.study.config.settings import MEAN_LIMIT, SHARE_LIMIT
from stratalens.plugin.study.corpus import balance
from stratalens.plugin.study.corpus.corpus import Corpus, Entity, Question
from stratalens.plugin.study.corpus.entities import EntityPool, choose_entities, generate_entities
from stratalens.plugin.study.corpus.names import AliasKind, draw_aliases
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_corpus(
    tokenizer: PreTrainedTokenizerBase,
    *,
    stages: Sequence[str],
    entities_per_stage: int,
    seed: int,
    pool_seed: int | None = None,
    aliases: AliasKind = "letters",
    alias_tokens: int | None = None,
    paraphrases: int = 1,
    train_questions: int = 5,
    templates: Sequence[str] = tuple(texts.TEMPLATES),
    people: EntityPool | None = None,
    mean_limit: float = MEAN_LIMIT,
    share_limit: float = SHARE_LIMIT,
    force: bool = False,
) -> Corpus:
    """Draw a corpus: the same arguments give the same corpus, to the last letter.

    Args:
        tokenizer: fixes how many tokens an alias has.
        stages: names of the training stages, in training order.
        entities_per_stage: entities in each of the disjoint stages.
        seed: of the partition into stages, of questions and paraphrases, and
            (unless `pool_seed` is given) of the entities themselves.
        pool_seed: seed of the entities alone; with it, `seed` reshuffles the
            same entities over the stages.
        aliases: "letters" (five random letters in <|...|>) or "natural"
            (adjective, adjective, noun).
        alias_tokens: tokens an alias has, its leading space included; None
            takes the commonest count of the tokenizer.
        paraphrases: how many wordings of every question are in use (1 to 3).
        train_questions: questions trained on for every entity (1 to 6); of
            the others, one is its test question.
        templates: the recording templates in use.
        people: entities of one's own instead of made-up ones; if there are
            more than needed, `pool_seed` (or `seed`) says which are used.
        mean_limit: standardised mean difference between stages that people
            of one's own may have.
        share_limit: difference of shares that they may have.
        force: accept any difference.

    Raises:
        InputError: an argument out of range, no alias with `alias_tokens`,
            too few people, or stages that differ.
    """
    if len(set(stages)) != len(stages) or not stages:
        raise InputError(f"stages={list(stages)!r}: give at least one name, each once")
    questions = texts.QUESTIONS if people is None else people.questions
    kinds = tuple(questions)
    for name, value, limit in (
        ("train_questions", train_questions, len(kinds)),
        ("paraphrases", paraphrases, min(len(w) for w in questions.values())),
        ("entities_per_stage", entities_per_stage, 10**6),
    ):
        if not 1 <= value <= limit:
            raise InputError(f"{name}={value}: give 1 to {limit}")
    pool = np.random.default_rng([1, seed if pool_seed is None else pool_seed])
    total = entities_per_stage * len(stages)
    names: Sequence[str]
    count: int | None
    if people is None or people.aliases is None:
        names, count = draw_aliases(tokenizer, aliases, total, alias_tokens, pool)
        people = (
            generate_entities(total, pool)
            if people is None
            else choose_entities(people, stages, entities_per_stage, pool)
        )
    else:
        people = choose_entities(people, stages, entities_per_stage, pool)
        names, count = people.aliases or (), None

    random = np.random.default_rng([2, seed])
    stage_of = np.repeat(np.arange(len(stages)), entities_per_stage)[random.permutation(total)]
    compared: dict[str, list[str]] = {kind: [a[kind] for a in people.attributes] for kind in people.attributes[0]}
    if count is None:
        counts = [len(ids) for ids in tokenizer([" " + name for name in names], add_special_tokens=False)["input_ids"]]
        compared["tokens of the alias"] = [str(number) for number in counts]
        count = counts[0] if len(set(counts)) == 1 else None
    covariates = balance.Covariates(compared)
    if people.stages is not None:
        stage_of = np.array([list(stages).index(name) for name in people.stages])
    elif people.source is not None and not force:
        again = np.random.default_rng([3, seed])
        stage_of = balance.draw_balanced_partition(covariates, stage_of, len(stages), again, mean_limit, share_limit)
    table = covariates.compare(stage_of, stages)
    if people.source is not None:
        shuffled = people.stages is None
        balance.check_balance(table, mean_limit, share_limit, force=force, shuffled=shuffled)

    entities: list[Entity] = []
    train: dict[str, list[Question]] = {stage: [] for stage in stages}
    test: list[Question] = []
    for number in range(total):
        stage = stages[stage_of[number]]
        order = [kinds[i] for i in random.permutation(len(kinds))]
        test_kind = order[-1] if train_questions < len(kinds) else order[0]
        identifier = f"e{number:05d}" if people.names is None else people.names[number]
        entity = Entity(identifier, names[number], stage, people.attributes[number], test_kind)
        entities.append(entity)
        asked = [_make_question(entity, kind, questions[kind][int(random.integers(paraphrases))]) for kind in order]
        train[stage].extend(asked[:train_questions])
        if train_questions < len(kinds):
            test.append(asked[-1])
    settings: dict[str, object] = {
        "stages": list(stages),
        "entities_per_stage": entities_per_stage,
        "seed": seed,
        "pool_seed": pool_seed,
        "aliases": aliases if people.aliases is None else "own",
        "alias_tokens": count,
        "paraphrases": paraphrases,
        "train_questions": train_questions,
        "templates": list(templates),
        "source": people.source,
        "questions": {kind: list(wordings) for kind, wordings in questions.items()},
    }
    return Corpus(
        tuple(entities),
        {stage: tuple(asked) for stage, asked in train.items()},
        tuple(test),
        tuple(templates),
        count,
        people.answer,
        table,
        settings,
    )


def _make_question(entity: Entity, kind: str, wording: str) -> Question:
    question = wording.format(x=entity.alias)
    return Question(entity.entity_id, entity.trained_stage, kind, question, entity.attributes[kind])
