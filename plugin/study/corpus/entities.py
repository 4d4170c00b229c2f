"""The entities that a study is about: made up, or read from a table of one's own.

A table has one row an entity: `entity` (its name, unique), attribute columns,
and, where wanted, `alias` (what the model shall call it; drawn otherwise) and
`trained_stage` (a partition of one's own; shuffled by seed otherwise).
Attributes with a wording become questions, all others are labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stratalens.plugin.prompts.files import read_frame
from stratalens.plugin.study.config import templates as texts
from stratalens.store.errors import InputError, suggest

# What the prompt table and the store call things of their own.
RESERVED_COLUMNS = frozenset({
    "prompt", "prompt_id", "entity_id", "answer", "half", "template", "stage", "stage_order", "layer", "token",
    "test_kind", "kind", "question", "text", "recorded", "exposure", "weights_fingerprint", "percentile", "d_model",
    "head",
})  # fmt: skip


SPECIAL_COLUMNS = ("entity", "alias", "trained_stage")


@dataclass(frozen=True)
class EntityPool:
    """Entities with their attributes, in the order in which they were given or drawn.

    Attributes:
        attributes: of each entity, as text.
        questions: wordings of every attribute that is asked for.
        answer: the attribute whose value the recorded prompts are scored on.
        names: what the entities are called outside, where they come from a table.
        aliases: what the model shall call them, where the table says so.
        stages: the partition, where the table has one.
        source: the table.
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
        """Some of them."""

        def chosen(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[row] for row in rows)

        return EntityPool(
            tuple(self.attributes[row] for row in rows),
            self.questions,
            self.answer,
            chosen(self.names),
            chosen(self.aliases),
            chosen(self.stages),
            self.source,
        )


def generate_entities(number: int, random: np.random.Generator) -> EntityPool:
    """People that never were; a stage never enters a draw."""
    return EntityPool(tuple(_draw_attributes(random) for _ in range(number)), texts.QUESTIONS, "occupation")


def _draw_value(weights: dict[str, int], random: np.random.Generator) -> str:
    p = np.array(list(weights.values()), dtype=float)
    return list(weights)[int(random.choice(len(p), p=p / p.sum()))]


def _draw_attributes(random: np.random.Generator) -> dict[str, str]:
    born = int(random.integers(*texts.BIRTH_YEARS))
    return {
        "born": str(born),
        "died": str(born + int(random.integers(*texts.LIFE_YEARS))),
        "region": _draw_value(texts.REGIONS, random),
        "occupation": _draw_value(texts.OCCUPATIONS, random),
        "nationality": _draw_value(texts.NATIONALITIES, random),
        "gender": _draw_value(texts.GENDERS, random),
    }


def read_entities(
    path: str | Path, questions: Mapping[str, Sequence[str]] | None = None, answer: str | None = None
) -> EntityPool:
    """Read a table of entities (csv, tsv, jsonl, parquet).

    Args:
        path: the table.
        questions: wordings by column, each with "{x}" where the name belongs; columns called as in
            `texts.QUESTIONS` have wordings of their own.
        answer: the column whose value recorded prompts are scored on; None takes occupation, else the first asked.

    Raises:
        InputError: no such file; a column that is missing, doubled, reserved or nested; an empty field; an entity
            given twice; no column that could be asked; wordings for a column that is not there.
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
    wordings = _question_templates(path, attributes, questions or {})
    text = {name: _as_text(path, frame[name], name) for name in columns}
    for name in ("entity", "alias"):
        if name in text:
            _check_unique(path, text[name], name)
    scored = answer or ("occupation" if "occupation" in wordings else next(iter(wordings)))
    if scored not in wordings:
        raise InputError(f"entities.answer: {scored!r} is not asked for; {suggest(scored, wordings)}")
    return EntityPool(
        tuple({name: text[name][row] for name in attributes} for row in range(len(frame))),
        wordings,
        scored,
        names=tuple(text["entity"]),
        aliases=tuple(text["alias"]) if "alias" in text else None,
        stages=tuple(text["trained_stage"]) if "trained_stage" in text else None,
        source=str(path),
    )


def choose_entities(
    people: EntityPool, stages: Sequence[str], per_stage: int, random: np.random.Generator
) -> EntityPool:
    """As many of one's own people as are needed, at random, in their order in the table.

    Raises:
        InputError: there are too few, or the table names a stage that there is not.
    """
    if people.stages is None:
        if len(people) < per_stage * len(stages):
            raise InputError(
                f"{people.source} has {len(people)} entities, {len(stages)} stages of {per_stage} need "
                f"{per_stage * len(stages)}. Give entities_per_stage at most {len(people) // len(stages)}."
            )
        rows = random.permutation(len(people))[: per_stage * len(stages)]
        return people.take(sorted(int(row) for row in rows))
    picked: list[npt.NDArray[np.int64]] = []
    for name in dict.fromkeys(people.stages):
        if name not in stages:
            raise InputError(f"{people.source}: trained_stage {name!r} is no stage; {suggest(name, stages)}")
    for stage in stages:
        mine = np.array([row for row, name in enumerate(people.stages) if name == stage], dtype=np.int64)
        if len(mine) < per_stage:
            raise InputError(
                f"{people.source}: stage {stage!r} has {len(mine)} entities, entities_per_stage is {per_stage}. "
                "Groups are cut to equal size: give the size of the smallest stage."
            )
        picked.append(random.permutation(mine)[:per_stage])
    return people.take(sorted(int(row) for row in np.concatenate(picked)))


def _question_templates(
    path: str | Path, attributes: Sequence[str], given: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    for name, phrases in given.items():
        if name not in attributes:
            raise InputError(f"entities.questions: {path} has no column {name!r}; {suggest(name, attributes)}")
        for phrase in phrases:
            if phrase.count("{x}") != 1 or phrase.count("{") != 1 or phrase.count("}") != 1:
                raise InputError(
                    f"entities.questions.{name}: {phrase!r} must hold {{x}} once, where the name of the entity "
                    "belongs, such as 'When was {x} born?'"
                )
        if not phrases:
            raise InputError(f"entities.questions.{name}: no wording; give at least one such as 'When was {{x}} born?'")
    known = {**texts.QUESTIONS, **{name: tuple(phrases) for name, phrases in given.items()}}
    found = {name: known[name] for name in attributes if name in known}
    if not found:
        raise InputError(
            f"{path}: nothing can be asked about its columns ({', '.join(attributes) or 'there are no attributes'}). "
            f"Call them {', '.join(texts.QUESTIONS)}, or give entities.questions, such as "
            "{born: ['When was {x} born?']}"
        )
    return found


def _as_text(path: str | Path, column: pd.Series[Any], name: str) -> list[str]:
    values = []
    for row, value in enumerate(column.tolist(), 1):
        if value is None or value is pd.NA or value != value or not str(value).strip():
            raise InputError(
                f"{path}, row {row}, column {name!r}: empty. Every entity needs every attribute: fill the field, or "
                "leave out the row or the column."
            )
        if isinstance(value, dict | list):
            raise InputError(f"{path}, row {row}, column {name!r}: {value!r} is no single value; give text or a number")
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if "\n" in text:
            raise InputError(f"{path}, row {row}, column {name!r}: {text!r} has a line break; give one line")
        values.append(text)
    return values


def _check_unique(path: str | Path, values: Sequence[str], name: str) -> None:
    first: dict[str, int] = {}
    for row, value in enumerate(values, 1):
        if value in first:
            raise InputError(
                f"{path}: {name} {value!r} is in rows {first[value]} and {row}; an entity has one row, so that no two "
                "stages can share it"
            )
        first[value] = row
