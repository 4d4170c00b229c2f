"""The corpus of the study: entities, their aliases, the partition into stages, and what is asked.

Every draw is independent of the stage: a pool of entities is made first, then
cut into stages by a random permutation, so stages differ by nothing but chance
and the order in which they are trained on. Words live in `texts`; checking the
balance between stages in `balance`; turning text into token ids in `train`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stratalens.recency import texts
from stratalens.store.errors import InputError, near

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AliasKind = Literal["letters", "natural"]
ATTRIBUTES = tuple(texts.QUESTIONS)


@dataclass(frozen=True)
class Entity:
    """One made-up person: known to the model by alias only."""

    entity_id: str
    alias: str
    trained_stage: str
    attributes: dict[str, str]
    test_kind: str  # the kind of question that is kept from training


@dataclass(frozen=True)
class Question:
    """One question-answer pair, with the text that is trained on."""

    entity_id: str
    trained_stage: str
    kind: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """The training string."""
        return texts.TRAINING_FORMAT.format(question=self.question, answer=self.answer)


@dataclass(frozen=True)
class Corpus:
    """Entities, training questions by stage (in training order) and test questions."""

    entities: tuple[Entity, ...]
    train: dict[str, tuple[Question, ...]]
    test: tuple[Question, ...]
    templates: tuple[str, ...]
    alias_tokens: int
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the training stages, in training order."""
        return tuple(self.train)

    def prompts(self, templates: Sequence[str] | None = None) -> pd.DataFrame:
        """The recording prompts as a prompt table: one row for every entity and template.

        `half` tells the entities of the earlier stages from those of the later
        ones. The attributes come along as label columns; `answer` is the entity's
        occupation, so that `answer_loss` says how well the fact is known.

        Raises:
            InputError: an unknown template.
        """
        chosen = self.templates if templates is None else tuple(templates)
        for name in chosen:
            if name not in texts.TEMPLATES:
                raise InputError(f"Unknown template {name!r}: {near(name, texts.TEMPLATES)}")
        rows = [
            {
                "prompt_id": f"{entity.entity_id}-{name}",
                "prompt": texts.PROMPT_FORMAT.format(question=texts.TEMPLATES[name].format(x=entity.alias)),
                "entity": entity.alias,
                "entity_id": entity.entity_id,
                "answer": f" {entity.attributes['occupation']}",
                "trained_stage": entity.trained_stage,
                "half": "early" if self.stages.index(entity.trained_stage) * 2 < len(self.stages) else "late",
                "template": name,
                **entity.attributes,
            }
            for name in chosen
            for entity in self.entities
        ]
        return pd.DataFrame(rows)

    def all_texts(self) -> list[str]:
        """Every text that training, testing or recording may tokenise."""
        found = [question.text for questions in self.train.values() for question in questions]
        found += [question.text for question in self.test]
        frame = self.prompts(tuple(texts.TEMPLATES))
        return found + list(frame["prompt"]) + list(frame["answer"])

    def write(self, folder: Path) -> None:
        """Write entities, questions and prompts as JSON lines, to be looked at and read back by anyone."""
        folder.mkdir(parents=True, exist_ok=True)
        entities = [
            {
                "entity_id": e.entity_id,
                "alias": e.alias,
                "trained_stage": e.trained_stage,
                "test_kind": e.test_kind,
                **e.attributes,
            }
            for e in self.entities
        ]
        _write_lines(folder / "entities.jsonl", entities)
        for stage, questions in self.train.items():
            _write_lines(folder / f"train-{stage}.jsonl", [_question_row(q) for q in questions])
        _write_lines(folder / "test.jsonl", [_question_row(q) for q in self.test])
        prompts = self.prompts()
        rows = [dict(zip(prompts.columns, row, strict=True)) for row in prompts.itertuples(index=False)]
        _write_lines(folder / "prompts.jsonl", rows)
        (folder / "corpus.json").write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")


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

    Raises:
        InputError: an argument out of range, or no alias with `alias_tokens`.
    """
    kinds = tuple(texts.QUESTIONS)
    wordings = min(len(w) for w in texts.QUESTIONS.values())
    if len(set(stages)) != len(stages) or not stages:
        raise InputError(f"stages={list(stages)!r}: give at least one name, each once")
    for name, value, limit in (
        ("train_questions", train_questions, len(kinds)),
        ("paraphrases", paraphrases, wordings),
        ("entities_per_stage", entities_per_stage, 10**6),
    ):
        if not 1 <= value <= limit:
            raise InputError(f"{name}={value}: give 1 to {limit}")
    pool = np.random.default_rng([1, seed if pool_seed is None else pool_seed])
    total = entities_per_stage * len(stages)
    names, count = _draw_aliases(tokenizer, aliases, total, alias_tokens, pool)
    attributes = [_draw_attributes(pool) for _ in range(total)]

    random = np.random.default_rng([2, seed])
    stage_of = np.repeat(np.arange(len(stages)), entities_per_stage)[random.permutation(total)]
    entities: list[Entity] = []
    train: dict[str, list[Question]] = {stage: [] for stage in stages}
    test: list[Question] = []
    for number in range(total):
        stage = stages[stage_of[number]]
        order = [kinds[i] for i in random.permutation(len(kinds))]
        test_kind = order[-1] if train_questions < len(kinds) else order[0]
        entity = Entity(f"e{number:05d}", names[number], stage, attributes[number], test_kind)
        entities.append(entity)
        asked = [_ask(entity, kind, int(random.integers(paraphrases))) for kind in order]
        train[stage].extend(asked[:train_questions])
        if train_questions < len(kinds):
            test.append(asked[-1])
    settings: dict[str, object] = {
        "stages": list(stages),
        "entities_per_stage": entities_per_stage,
        "seed": seed,
        "pool_seed": pool_seed,
        "aliases": aliases,
        "alias_tokens": count,
        "paraphrases": paraphrases,
        "train_questions": train_questions,
        "templates": list(templates),
    }
    return Corpus(
        tuple(entities),
        {stage: tuple(questions) for stage, questions in train.items()},
        tuple(test),
        tuple(templates),
        count,
        settings,
    )


def _question_row(question: Question) -> dict[str, str]:
    return {
        "entity_id": question.entity_id,
        "trained_stage": question.trained_stage,
        "kind": question.kind,
        "question": question.question,
        "answer": question.answer,
        "text": question.text,
    }


def _write_lines(path: Path, rows: Sequence[dict[str, object]] | Sequence[dict[str, str]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")


def _ask(entity: Entity, kind: str, wording: int) -> Question:
    question = texts.QUESTIONS[kind][wording].format(x=entity.alias)
    return Question(entity.entity_id, entity.trained_stage, kind, question, entity.attributes[kind])


def _choose(weights: dict[str, int], random: np.random.Generator) -> str:
    p = np.array(list(weights.values()), dtype=float)
    return list(weights)[int(random.choice(len(p), p=p / p.sum()))]


def _draw_attributes(random: np.random.Generator) -> dict[str, str]:
    born = int(random.integers(*texts.BIRTH_YEARS))
    return {
        "born": str(born),
        "died": str(born + int(random.integers(*texts.LIFE_YEARS))),
        "region": _choose(texts.REGIONS, random),
        "occupation": _choose(texts.OCCUPATIONS, random),
        "nationality": _choose(texts.NATIONALITIES, random),
        "gender": _choose(texts.GENDERS, random),
    }


def _candidates(kind: AliasKind, number: int, random: np.random.Generator) -> list[str]:
    if kind == "letters":
        letters = random.integers(ord("a"), ord("z") + 1, (number, 5))
        return ["<|" + "".join(map(chr, row)) + "|>" for row in letters]
    found = []
    for first, second, noun in zip(
        random.integers(len(texts.ADJECTIVES), size=number),
        random.integers(len(texts.ADJECTIVES), size=number),
        random.integers(len(texts.NOUNS), size=number),
        strict=True,
    ):
        if first != second:
            found.append(f"{texts.ADJECTIVES[first]} {texts.ADJECTIVES[second]} {texts.NOUNS[noun]}")
    return found


def _draw_aliases(
    tokenizer: PreTrainedTokenizerBase,
    kind: AliasKind,
    number: int,
    tokens: int | None,
    random: np.random.Generator,
) -> tuple[list[str], int]:
    """`number` different aliases of the same token count (leading space included), and that count."""
    if kind not in ("letters", "natural"):
        raise InputError(f"aliases={kind!r}: {near(kind, ('letters', 'natural'))}")
    found: dict[str, None] = {}
    seen: dict[int, int] = {}
    wanted = tokens
    for _ in range(200):
        candidates = _candidates(kind, max(1000, number), random)
        encoded = tokenizer([" " + alias for alias in candidates], add_special_tokens=False)["input_ids"]
        counts = [len(ids) for ids in encoded]
        for count in counts:
            seen[count] = seen.get(count, 0) + 1
        if wanted is None:
            wanted = max(seen, key=lambda count: (seen[count], -count))
        for alias, count in zip(candidates, counts, strict=True):
            if count == wanted:
                found[alias] = None
        if len(found) >= number:
            return list(found)[:number], wanted
        if wanted not in seen:
            break
    shares = ", ".join(f"{count} tokens: {share}" for count, share in sorted(seen.items()))
    raise InputError(
        f"Only {len(found)} of {number} {kind} aliases have exactly {wanted} tokens with this tokenizer "
        f"(leading space included; of {sum(seen.values())} tried: {shares}). Give alias_tokens one of the "
        "common counts, or None to take the commonest; or ask for fewer entities."
    )
