"""Questions and outcomes of the interventions of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import stratalens as sl
from stratalens.plugin.interventions.outcomes import OutcomeBatch
from stratalens.plugin.study.config.templates import GROUP_ANSWERS, PROMPT_FORMAT
from stratalens.plugin.study.corpus.conflicts import ContradictedEntity
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.questions import SelfReportSplit


class LetterLogOdds:
    """Outcome: log odds of the letter of the later group after the prompt, or of that of the true group.

    Args:
        letters: token ids of the two letters.
        true: whether the sign says how right the answer is.
    """

    def __init__(self, letters: tuple[int, int], true: bool) -> None:
        self.letters, self.true = letters, true
        self.__name__ = "log odds of the true group" if true else "log odds of the later group"

    def __call__(self, logits: torch.Tensor, batch: OutcomeBatch) -> torch.Tensor:
        """Read the logits at the last token of every prompt."""
        rows = torch.arange(len(batch.rows), device=logits.device)
        last = logits[rows, torch.from_numpy(batch.lengths - 1).to(logits.device)].float()
        odds = last[:, self.letters[1]] - last[:, self.letters[0]]
        if not self.true:
            return odds
        group = np.asarray(batch.table.labels()["group"])[batch.rows].astype(int)
        return odds * torch.from_numpy(2 * group - 1).to(odds)


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


def _letter_ids(model: Path, prompt: str) -> tuple[int, int] | None:
    """Token ids of the two letters after the prompts; None if a letter is more than one token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    start = len(tokenizer(prompt)["input_ids"])
    tails = [tokenizer(prompt + answer)["input_ids"][start:] for answer in GROUP_ANSWERS]
    if [len(tail) for tail in tails] != [1, 1]:
        return None
    return int(tails[0][0]), int(tails[1][0])


def letter_odds(model: Path, rows: Sequence[Mapping[str, Any]], *, true: bool) -> tuple[sl.PromptTable, Any]:
    """Make the table and the outcome of the self-report: log odds of the later, or of the true, letter.

    Letters of one token are read off one forward pass. Others need one for each letter.
    """
    frame = pd.DataFrame(rows)
    answer = frame["group"] if true else pd.Series(1, index=frame.index)
    frame["answer"], frame["other_answer"] = ([GROUP_ANSWERS[i] for i in side] for side in (answer, 1 - answer))
    letters = _letter_ids(model, str(frame["prompt"].iloc[0]))
    outcome = "answer_difference" if letters is None else LetterLogOdds(letters, true)
    return sl.PromptTable.from_dataframe(frame), outcome
