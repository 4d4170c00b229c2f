"""Corpus: entities, their partition into stages, the questions about them, and the recorded prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from stratalens.plugin.study.config.settings import check_template_names
from stratalens.plugin.study.config.templates import PROMPT_FORMAT, TEMPLATES, TRAINING_FORMAT
from stratalens.store.errors import InputError


@dataclass(frozen=True)
class Entity:
    """One entity; the model knows it by its alias only."""

    entity_id: str
    alias: str
    trained_stage: str
    attributes: dict[str, str]
    test_kind: str  # the kind of question that training leaves out


@dataclass(frozen=True)
class Question:
    """One question with its answer, and the text for training."""

    entity_id: str
    trained_stage: str
    kind: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """The training text."""
        return TRAINING_FORMAT.format(question=self.question, answer=self.answer)


@dataclass(frozen=True)
class Corpus:
    """Entities, training questions by stage (in training order) and test questions."""

    entities: tuple[Entity, ...]
    train: dict[str, tuple[Question, ...]]
    test: tuple[Question, ...]
    templates: tuple[str, ...]
    alias_tokens: int | None  # None: your own aliases, with different counts
    answer: str = "occupation"  # the attribute that is the answer to the recorded prompts
    balance: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the training stages, in training order."""
        return tuple(self.train)

    def prompts(self, templates: Sequence[str] | None = None) -> pd.DataFrame:
        """Build the recorded prompts as a prompt table.

        Args:
            templates: names of prompt templates; None takes those of the corpus.

        Returns:
            One row for every template and entity. `trained_stage` is an ordered category of all stages, so that a store
            of some stages knows the order of all. `half` is "early" for entities of the earlier stages, else "late".
            The attributes are label columns. `answer` is one of them (the occupation of generated entities), so that
            `answer_loss` measures how well the model knows the fact.

        Raises:
            InputError: a template is unknown.
        """
        try:
            chosen = check_template_names(self.templates if templates is None else tuple(templates))
        except ValueError as error:
            raise InputError(str(error)) from None
        rows = [
            {
                "prompt_id": f"{entity.entity_id}-{name}",
                "prompt": PROMPT_FORMAT.format(question=TEMPLATES[name].format(x=entity.alias)),
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
        frame = pd.DataFrame(rows)
        if rows:
            frame["trained_stage"] = pd.Categorical(frame["trained_stage"], self.stages, ordered=True)
        return frame

    def all_texts(self) -> list[str]:
        """List every text that training, testing or recording may tokenise."""
        questions = [question for stage in self.train.values() for question in stage]
        frame = self.prompts(tuple(TEMPLATES))
        return [question.text for question in (*questions, *self.test)] + [*frame["prompt"], *frame["answer"]]

    def write(self, folder: Path) -> None:
        """Write the corpus to a folder.

        Args:
            folder: receives entities, questions and prompts as JSON lines, entities and balance as csv, and the
                settings as JSON.
        """
        folder.mkdir(parents=True, exist_ok=True)
        entities = [
            {key: value for key, value in vars(entity).items() if key != "attributes"} | entity.attributes
            for entity in self.entities
        ]
        _write_json_lines(folder / "entities.jsonl", entities)
        pd.DataFrame(entities).to_csv(folder / "entities.csv", index=False)
        self.balance.to_csv(folder / "balance.csv", index=False)
        for stage, questions in self.train.items():
            _write_json_lines(folder / f"train-{stage}.jsonl", map(_question_row, questions))
        _write_json_lines(folder / "test.jsonl", map(_question_row, self.test))
        prompts = self.prompts()
        rows = (dict(zip(prompts.columns, row, strict=True)) for row in prompts.itertuples(index=False))
        _write_json_lines(folder / "prompts.jsonl", rows)
        (folder / "corpus.json").write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")


def _question_row(question: Question) -> dict[str, str]:
    return {**vars(question), "text": question.text}


def _write_json_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
