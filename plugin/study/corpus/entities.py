"""Entities of a study: generated, or read from your own table.

A table has one row an entity. Column `entity` holds its unique name. Optional
columns are `alias` (the name for the model; drawn otherwise) and
`trained_stage` (your own partition; drawn by seed otherwise). All other columns
are attributes. Attributes with a question template become questions; the rest
are labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stratalens.plugin.prompts.files import read_frame
from stratalens.plugin.study.config import templates
from stratalens.store.errors import InputError, suggest
from stratalens.store.format.schema import RESERVED_NAMES

# Names that the store, the prompt table and the files of the corpus use.
RESERVED_COLUMNS = RESERVED_NAMES | {
    *("prompt", "prompt_id", "entity_id", "answer", "half", "template"),
    *("test_kind", "kind", "question", "text"),
}
SPECIAL_COLUMNS = ("entity", "alias", "trained_stage")


@dataclass(frozen=True)
class EntityPool:
    """Entities with their attributes, in the order of the table or of the draw.

    Attributes:
        attributes: attributes of each entity, as text.
        questions: question templates of every attribute that a question asks for.
        answer: the attribute that is the answer to the recorded prompts.
        names: names of the entities in the table; None for generated ones.
        aliases: names for the model, if the table has them.
        stages: the partition, if the table has one.
        source: path of the table; None for generated entities.
    """

    attributes: tuple[dict[str, str], ...]
    questions: Mapping[str, tuple[str, ...]]
    answer: str
    names: tuple[str, ...] | None = None
    aliases: tuple[str, ...] | None = None
    stages: tuple[str, ...] | None = None
    source: str | None = None

    def __len__(self) -> int:
        return len(self.attributes)

    def take(self, rows: Sequence[int]) -> EntityPool:
        """Select entities by row."""

        def select(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[row] for row in rows)

        return replace(
            self,
            attributes=tuple(self.attributes[row] for row in rows),
            names=select(self.names),
            aliases=select(self.aliases),
            stages=select(self.stages),
        )


def generate_entities(number: int, random: np.random.Generator) -> EntityPool:
    """Generate entities with random attributes; no draw depends on a stage."""
    return EntityPool(tuple(_draw_attributes(random) for _ in range(number)), templates.QUESTIONS, "occupation")


def _draw_value(weights: Mapping[str, int], random: np.random.Generator) -> str:
    p = np.array(list(weights.values()), dtype=float)
    return list(weights)[int(random.choice(len(p), p=p / p.sum()))]


def _draw_attributes(random: np.random.Generator) -> dict[str, str]:
    born = int(random.integers(*templates.BIRTH_YEARS))
    return {
        "born": str(born),
        "died": str(born + int(random.integers(*templates.LIFE_YEARS))),
        "region": _draw_value(templates.REGIONS, random),
        "occupation": _draw_value(templates.OCCUPATIONS, random),
        "nationality": _draw_value(templates.NATIONALITIES, random),
        "gender": _draw_value(templates.GENDERS, random),
    }


def read_entities(
    path: str | Path, questions: Mapping[str, Sequence[str]] | None = None, answer: str | None = None
) -> EntityPool:
    """Read a table of entities (csv, tsv, jsonl, parquet).

    Args:
        path: the table.
        questions: question templates by column, each with "{x}" for the name. Columns named as the built-in kinds of
            question (born, died, region, occupation, nationality, gender) have templates already.
        answer: the column whose value is the answer to the recorded prompts; None takes occupation, else the first
            column with a question.

    Raises:
        InputError: the file does not exist; a column is missing, repeated, reserved or nested; a field is empty; an
            entity is repeated; no column has a question; a question template has no column.
    """
    frame = read_frame(path)
    columns = [str(name) for name in frame.columns]
    if "entity" not in columns:
        raise InputError(
            f"{path}: no column 'entity' with the name of each entity; {suggest('entity', columns)}. "
            "Rename one of them."
        )
    if len(frame) == 0:
        raise InputError(f"{path} has a header and no rows; give one row for every entity")
    attributes = [name for name in columns if name not in SPECIAL_COLUMNS]
    for name in attributes:
        if name in RESERVED_COLUMNS or name.endswith(("_start", "_end")):
            raise InputError(f"{path}: the column name {name!r} is used by prompt tables or the store; rename it")
    question_templates = _question_templates(path, attributes, questions or {})
    text = {name: _as_text(path, frame[name], name) for name in columns}
    for name in ("entity", "alias"):
        if name in text:
            _check_unique(path, text[name], name)
    if answer is None:
        answer = "occupation" if "occupation" in question_templates else next(iter(question_templates))
    if answer not in question_templates:
        raise InputError(f"entities.answer: no question asks for {answer!r}; {suggest(answer, question_templates)}")
    return EntityPool(
        tuple({name: text[name][row] for name in attributes} for row in range(len(frame))),
        question_templates,
        answer,
        names=tuple(text["entity"]),
        aliases=tuple(text["alias"]) if "alias" in text else None,
        stages=tuple(text["trained_stage"]) if "trained_stage" in text else None,
        source=str(path),
    )


def choose_entities(pool: EntityPool, stages: Sequence[str], per_stage: int, random: np.random.Generator) -> EntityPool:
    """Choose random entities of a table, in the order of the table.

    Args:
        pool: the entities of the table.
        stages: names of the stages.
        per_stage: entities of each stage.
        random: generator of the choice.

    Raises:
        InputError: there are too few entities, or the table names an unknown stage.
    """
    if pool.stages is None:
        total = per_stage * len(stages)
        if len(pool) < total:
            raise InputError(
                f"{pool.source} has {len(pool)} entities; {len(stages)} stages of {per_stage} need {total}. "
                f"Set entities_per_stage to at most {len(pool) // len(stages)}."
            )
        return pool.take(sorted(random.permutation(len(pool))[:total].tolist()))
    for name in dict.fromkeys(pool.stages):
        if name not in stages:
            raise InputError(f"{pool.source}: trained_stage {name!r} is no stage; {suggest(name, stages)}")
    chosen: list[npt.NDArray[np.int64]] = []
    for stage in stages:
        rows = np.flatnonzero(np.array(pool.stages) == stage)
        if len(rows) < per_stage:
            raise InputError(
                f"{pool.source}: stage {stage!r} has {len(rows)} entities, entities_per_stage is {per_stage}. "
                "All stages have the same size: set entities_per_stage to the size of the smallest stage."
            )
        chosen.append(random.permutation(rows)[:per_stage])
    return pool.take(sorted(np.concatenate(chosen).tolist()))


def _question_templates(
    path: str | Path, attributes: Sequence[str], questions: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the question templates of the attributes: your own, else built-in."""
    for name, phrases in questions.items():
        if name not in attributes:
            raise InputError(f"entities.questions: {path} has no column {name!r}; {suggest(name, attributes)}")
        for phrase in phrases:
            if phrase.count("{x}") != 1 or phrase.count("{") != 1 or phrase.count("}") != 1:
                raise InputError(
                    f"entities.questions.{name}: {phrase!r} must hold {{x}} once, in the place of the entity's name, "
                    "such as 'When was {x} born?'"
                )
        if not phrases:
            raise InputError(
                f"entities.questions.{name}: no question template; give at least one such as 'When was {{x}} born?'"
            )
    known = {**templates.QUESTIONS, **{name: tuple(phrases) for name, phrases in questions.items()}}
    chosen = {name: known[name] for name in attributes if name in known}
    if not chosen:
        raise InputError(
            f"{path}: no question asks for its columns ({', '.join(attributes) or 'there are no attributes'}). "
            f"Name them {', '.join(templates.QUESTIONS)}, or set entities.questions, such as "
            "{born: ['When was {x} born?']}"
        )
    return chosen


def _as_text(path: str | Path, column: pd.Series[Any], name: str) -> list[str]:
    """Return the values of a column as single lines of text."""
    values = []
    for row, value in enumerate(column.tolist(), 1):
        place = f"{path}, row {row}, column {name!r}"
        if value is None or value is pd.NA or value != value or not str(value).strip():
            raise InputError(
                f"{place}: empty. Every entity needs every attribute: fill the field, or leave out the row or the "
                "column."
            )
        if isinstance(value, dict | list):
            raise InputError(f"{place}: {value!r} is no single value; give text or a number")
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if "\n" in text:
            raise InputError(f"{place}: {text!r} has a line break; give one line")
        values.append(text)
    return values


def _check_unique(path: str | Path, values: Sequence[str], name: str) -> None:
    first: dict[str, int] = {}
    for row, value in enumerate(values, 1):
        if value in first:
            raise InputError(
                f"{path}: {name} {value!r} is in rows {first[value]} and {row}. Give one row an entity, so that no two "
                "stages share it"
            )
        first[value] = row
