"""The corpus of the study: entities, the partition into stages, and what is asked; how it is written to be looked at.

Drawing one is `drawing`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from stratalens.plugin.study.config import templates as texts
from stratalens.store.errors import InputError, suggest


@dataclass(frozen=True)
class Entity:
    """One entity: known to the model by alias only."""

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
    alias_tokens: int | None  # None: aliases of one's own, of different counts
    answer: str = "occupation"  # the attribute that recorded prompts are scored on
    balance: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the training stages, in training order."""
        return tuple(self.train)

    def prompts(self, templates: Sequence[str] | None = None) -> pd.DataFrame:
        """The recording prompts as a prompt table: one row for every entity and template.

        `half` tells the entities of the earlier stages from those of the later
        ones. The attributes come along as label columns; `answer` is one of them
        (the occupation of made-up people), so that `answer_loss` says how well
        the fact is known.

        Raises:
            InputError: an unknown template.
        """
        chosen = self.templates if templates is None else tuple(templates)
        for name in chosen:
            if name not in texts.TEMPLATES:
                raise InputError(f"Unknown template {name!r}: {suggest(name, texts.TEMPLATES)}")
        rows = [
            {
                "prompt_id": f"{entity.entity_id}-{name}",
                "prompt": texts.PROMPT_FORMAT.format(question=texts.TEMPLATES[name].format(x=entity.alias)),
                "entity": entity.alias,
                "entity_id": entity.entity_id,
                "answer": f" {entity.attributes[self.answer]}",
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
        """Write entities, questions and prompts to be looked at: JSON lines, entities and balance as csv too."""
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
        _write_json_lines(folder / "entities.jsonl", entities)
        pd.DataFrame(entities).to_csv(folder / "entities.csv", index=False)
        self.balance.to_csv(folder / "balance.csv", index=False)
        for stage, questions in self.train.items():
            _write_json_lines(folder / f"train-{stage}.jsonl", [_question_row(q) for q in questions])
        _write_json_lines(folder / "test.jsonl", [_question_row(q) for q in self.test])
        prompts = self.prompts()
        rows = [dict(zip(prompts.columns, row, strict=True)) for row in prompts.itertuples(index=False)]
        _write_json_lines(folder / "prompts.jsonl", rows)
        (folder / "corpus.json").write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")


def _question_row(question: Question) -> dict[str, str]:
    return {
        "entity_id": question.entity_id,
        "trained_stage": question.trained_stage,
        "kind": question.kind,
        "question": question.question,
        "answer": question.answer,
        "text": question.text,
    }


def _write_json_lines(path: Path, rows: Sequence[dict[str, object]] | Sequence[dict[str, str]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
