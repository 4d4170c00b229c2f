"""What a model answers at every checkpoint: which of all possible answers is the likeliest, and is it the true one?

One file a checkpoint, so that a run goes on where it stopped; how likely an
answer is, is measured in `likelihoods`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratalens.recency.corpus.entities import Corpus
from stratalens.recency.corpus.questions import Asked, candidates, every_one, one_each
from stratalens.recency.recording.likelihoods import answer_log_probabilities
from stratalens.recency.settings import StudySettings
from stratalens.recency.training.checkpoints import RECORD, load_checkpoint, require_weights
from stratalens.recency.watch import Watch
from stratalens.store.atomic import write_text

FOLDER = "answers"
COLUMNS = ["stage", "entity_id", "trained_stage", "kind", "trained", "answer", "said", "right", "answer_loss"]


def questions_of(settings: StudySettings, corpus: Corpus) -> tuple[Asked, ...]:
    """What is asked; nothing where the settings say none."""
    if settings.record.answers == "none":
        return ()
    return one_each(corpus, settings.seed) if settings.record.answers == "one" else every_one(corpus)


def ask_checkpoints(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], folder: Path, watch: Watch
) -> pd.DataFrame:
    """Ask every checkpoint; what an earlier run asked is reused.

    Args:
        settings: of the study.
        corpus: whom it is about.
        checkpoints: to be asked, in order.
        folder: gets a json file for each.
        watch: told how far it is.

    Returns:
        One row for every checkpoint and question, in that order: stage, entity_id, trained_stage, kind, trained
        (whether this question was answered in training), answer, said (the likeliest of all answers to this kind of
        question), right, answer_loss (minus the log probability of the true answer, nats).
    """
    asked, values = questions_of(settings, corpus), candidates(corpus)
    frames = []
    for number, (stage, checkpoint) in enumerate(checkpoints.items() if asked else ()):
        identity = {"checkpoint": _trained_as(checkpoint), "questions": _digest(asked, values)}
        target = folder / f"{stage}.json"
        held = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        if held.get("identity") != identity:
            watch.tell(f"{stage}: asking {len(asked)} questions", number, len(checkpoints))
            held = {"identity": identity, **_ask(settings, checkpoint, asked, values)}
            folder.mkdir(parents=True, exist_ok=True)
            write_text(target, json.dumps(held) + "\n")
        frame = pd.DataFrame([vars(question) for question in asked])
        frame["stage"], frame["said"], frame["answer_loss"] = stage, held["said"], held["answer_loss"]
        frame["right"] = frame["said"] == frame["answer"]
        frames.append(frame[COLUMNS])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _ask(
    settings: StudySettings, checkpoint: Path, asked: tuple[Asked, ...], values: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    import torch

    require_weights(checkpoint, "asking it for answers")
    model, tokenizer = load_checkpoint(checkpoint)
    model.train(False)
    model.to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type, unused-ignore]
    said = np.empty(len(asked), dtype=object)
    loss = np.empty(len(asked))
    for kind in dict.fromkeys(question.kind for question in asked):
        rows = np.array([row for row, question in enumerate(asked) if question.kind == kind])
        logs = answer_log_probabilities(model, tokenizer, [asked[row].prompt for row in rows], values[kind])
        true = [values[kind].index(asked[row].answer) for row in rows]
        said[rows] = np.asarray(values[kind], dtype=object)[logs.argmax(axis=1)]
        loss[rows] = -logs[np.arange(len(rows)), true]
    return {"said": said.tolist(), "answer_loss": [round(float(value), 6) for value in loss]}


def _trained_as(checkpoint: Path) -> dict[str, Any]:
    record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    return {name: record[name] for name in ("identity", "stage")}


def _digest(asked: tuple[Asked, ...], values: Mapping[str, tuple[str, ...]]) -> str:
    told = json.dumps([[vars(question) for question in asked], values], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
