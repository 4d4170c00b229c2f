"""The draw of a corpus: a pool of entities, their partition into stages, and the questions of each.

No draw depends on a stage. A random permutation splits the pool of entities into stages, so stages differ only by
chance and by the order of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from stratalens.plugin.study.config.settings import MEAN_LIMIT, SHARE_LIMIT
from stratalens.plugin.study.config.templates import QUESTIONS, TEMPLATES
from stratalens.plugin.study.corpus import balance
from stratalens.plugin.study.corpus.corpus import Corpus, Entity, Question
from stratalens.plugin.study.corpus.entities import EntityPool, choose_entities, generate_entities
from stratalens.plugin.study.corpus.names import AliasKind, draw_aliases
from stratalens.store.errors import InputError


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
    templates: Sequence[str] = tuple(TEMPLATES),
    pool: EntityPool | None = None,
    mean_limit: float = MEAN_LIMIT,
    share_limit: float = SHARE_LIMIT,
    force: bool = False,
) -> Corpus:
    """Draw a corpus; equal arguments give an equal corpus.

    Args:
        tokenizer: determines the token count of an alias.
        stages: names of the training stages, in training order.
        entities_per_stage: entities in each of the disjoint stages.
        seed: seed of the partition into stages, of questions and paraphrases,
            and (unless `pool_seed` is set) of the entities.
        pool_seed: seed of the entities alone; with it, `seed` only changes
            the partition of the same entities.
        aliases: "letters" (five random letters in <|...|>) or "natural"
            (adjective, adjective, noun).
        alias_tokens: tokens of an alias, leading space included; None takes
            the most frequent count of the tokenizer.
        paraphrases: question templates in use for every kind (1 to 3).
        train_questions: questions that training uses for every entity (1 to
            6); one of the others is its test question.
        templates: names of the recorded prompt templates.
        pool: your own entities instead of generated ones; `pool_seed` (or
            `seed`) chooses among them if there are more than needed.
        mean_limit: largest standardised mean difference between stages of
            your own entities.
        share_limit: largest difference of shares between them.
        force: accept any difference.

    Raises:
        InputError: an argument is out of range, no alias has `alias_tokens`,
            there are too few entities, or the stages differ.
    """
    if len(set(stages)) != len(stages) or not stages:
        raise InputError(f"stages={list(stages)!r}: give at least one name, each once")
    questions = QUESTIONS if pool is None else pool.questions
    kinds = tuple(questions)
    for name, value, limit in (
        ("train_questions", train_questions, len(kinds)),
        ("paraphrases", paraphrases, min(len(phrases) for phrases in questions.values())),
        ("entities_per_stage", entities_per_stage, 10**6),
    ):
        if not 1 <= value <= limit:
            raise InputError(f"{name}={value}: give 1 to {limit}")
    total = entities_per_stage * len(stages)
    pool_random = np.random.default_rng([1, seed if pool_seed is None else pool_seed])
    names: Sequence[str] | None = None
    token_count: int | None = None
    if pool is None or pool.aliases is None:
        names, token_count = draw_aliases(tokenizer, aliases, total, alias_tokens, pool_random)
    if pool is None:
        pool = generate_entities(total, pool_random)
    else:
        pool = choose_entities(pool, stages, entities_per_stage, pool_random)
    covariates: dict[str, list[str]] = {
        kind: [attributes[kind] for attributes in pool.attributes] for kind in pool.attributes[0]
    }
    if names is None:
        names = pool.aliases or ()
        encoded = tokenizer([" " + name for name in names], add_special_tokens=False)["input_ids"]
        covariates["tokens of the alias"] = [str(len(ids)) for ids in encoded]
        counts = {len(ids) for ids in encoded}
        token_count = counts.pop() if len(counts) == 1 else None

    random = np.random.default_rng([2, seed])
    partition = np.repeat(np.arange(len(stages)), entities_per_stage)[random.permutation(total)]
    compared = balance.Covariates(covariates)
    if pool.stages is not None:
        partition = np.array([list(stages).index(name) for name in pool.stages])
    elif pool.source is not None and not force:
        retry_random = np.random.default_rng([3, seed])
        partition = balance.draw_balanced_partition(
            compared, partition, len(stages), retry_random, mean_limit, share_limit
        )
    differences = compared.compare(partition, stages)
    if pool.source is not None:
        shuffled = pool.stages is None
        balance.check_balance(differences, mean_limit, share_limit, force=force, shuffled=shuffled)

    entities: list[Entity] = []
    train: dict[str, list[Question]] = {stage: [] for stage in stages}
    test: list[Question] = []
    for number in range(total):
        stage = stages[partition[number]]
        order = [kinds[kind] for kind in random.permutation(len(kinds))]
        test_kind = order[-1] if train_questions < len(kinds) else order[0]
        identifier = f"e{number:05d}" if pool.names is None else pool.names[number]
        entity = Entity(identifier, names[number], stage, pool.attributes[number], test_kind)
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
        "aliases": aliases if pool.aliases is None else "own",
        "alias_tokens": token_count,
        "paraphrases": paraphrases,
        "train_questions": train_questions,
        "templates": list(templates),
        "source": pool.source,
        "questions": {kind: list(phrases) for kind, phrases in questions.items()},
    }
    return Corpus(
        tuple(entities),
        {stage: tuple(asked) for stage, asked in train.items()},
        tuple(test),
        tuple(templates),
        token_count,
        pool.answer,
        differences,
        settings,
    )


def _make_question(entity: Entity, kind: str, template: str) -> Question:
    question = template.format(x=entity.alias)
    return Question(entity.entity_id, entity.trained_stage, kind, question, entity.attributes[kind])
