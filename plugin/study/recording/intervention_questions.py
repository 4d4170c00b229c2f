"""Questions of the interventions of a study, each with two answers.

The outcome is the log probability of the first answer minus that of the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import stratalens as sl
from stratalens.plugin.study.config.templates import GROUP_ANSWERS, PROMPT_FORMAT
from stratalens.plugin.study.corpus.conflicts import ContradictedEntity
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.questions import SelfReportSplit


def group_rows(halves: SelfReportSplit, corpus: Corpus, *, asked: bool) -> list[dict[str, Any]]:
    """Make the rows of the questions of the self-report about one half of the entities."""
    aliases = {entity.entity_id: entity.alias for entity in corpus.entities}
    pairs, groups = (halves.asked, halves.asked_group) if asked else (halves.taught, halves.taught_group)
    return [
        {"prompt_id": name, "prompt": prompt, "entity": aliases[name], "entity_id": name, "group": int(group)}
        for (name, prompt), group in zip(pairs, groups, strict=True)
    ]


def contradiction_table(contradicted: Sequence[ContradictedEntity]) -> sl.PromptTable:
    """Make the table of the trained question of every contradicted entity, with both answers."""
    rows = [
        {
            "prompt_id": entity.entity_id,
            "prompt": PROMPT_FORMAT.format(question=entity.question),
            "entity": entity.alias,
            "entity_id": entity.entity_id,
            "answer": f" {entity.answers[1]}",
            "other_answer": f" {entity.answers[0]}",
        }
        for entity in contradicted
    ]
    return sl.PromptTable.from_dataframe(pd.DataFrame(rows))


def letter_table(rows: Sequence[Mapping[str, Any]], *, true: bool) -> sl.PromptTable:
    """Make the table whose answer is the letter of the later group, or that of the true one, against the other letter.

    Args:
        rows: result of `group_rows`.
        true: whether the answer is the letter of the true group.
    """
    frame = pd.DataFrame(rows)
    answer = frame["group"] if true else pd.Series(1, index=frame.index)
    frame["answer"], frame["other_answer"] = ([GROUP_ANSWERS[i] for i in side] for side in (answer, 1 - answer))
    return sl.PromptTable.from_dataframe(frame)
