"""What a model answers at every checkpoint: which of all possible answers is the likeliest, and is it the true one?

One file a checkpoint, so that a run goes on where it stopped; how likely an
answer is, is measured in `likelihoods`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.questions import (
    AskedQuestion,
    candidate_answers,
    draw_one_question_each,
    list_all_questions,
)
from stratalens.plugin.study.training.checkpoints import RECORD, load_checkpoint, require_weights
from stratalens.plugin.terminal import PhaseProgress
from stratalens.store.errors import InputError
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ANSWERS_FOLDER = "answers"


COLUMNS = ["stage", "entity_id", "trained_stage", "kind", "trained", "answer", "said", "right", "answer_loss"]


def select_questions(settings: StudySettings, corpus: Corpus) -> tuple[AskedQuestion, ...]:
    """What is asked; nothing where the settings say none."""
    if settings.record.answers == "none":
        return ()
    return (
        draw_one_question_each(corpus, settings.seed)
        if settings.record.answers == "one"
        else list_all_questions(corpus)
    )


def ask_checkpoints(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], folder: Path, watch: PhaseProgress
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
    asked, values = select_questions(settings, corpus), candidate_answers(corpus)
    frames = []
    for number, (stage, checkpoint) in enumerate(checkpoints.items() if asked else ()):
        identity = {"checkpoint": _training_identity(checkpoint), "questions": _digest(asked, values)}
        target = folder / f"{stage}.json"
        held = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        if held.get("identity") != identity:
            watch.update(f"{stage}: asking {len(asked)} questions", number, len(checkpoints))
            held = {"identity": identity, **_ask_checkpoint(settings, checkpoint, asked, values)}
            folder.mkdir(parents=True, exist_ok=True)
            write_text_atomic(target, json.dumps(held) + "\n")
        frame = pd.DataFrame([vars(question) for question in asked])
        frame["stage"], frame["said"], frame["answer_loss"] = stage, held["said"], held["answer_loss"]
        frame["right"] = frame["said"] == frame["answer"]
        frames.append(frame[COLUMNS])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _ask_checkpoint(
    settings: StudySettings, checkpoint: Path, asked: tuple[AskedQuestion, ...], values: Mapping[str, tuple[str, ...]]
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


def _training_identity(checkpoint: Path) -> dict[str, Any]:
    record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    return {name: record[name] for name in ("identity", "stage")}


def _digest(asked: tuple[AskedQuestion, ...], values: Mapping[str, tuple[str, ...]]) -> str:
    told = json.dumps([[vars(question) for question in asked], values], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


Ids = tuple[int, ...]


BATCH = 64


def answer_log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = BATCH,
) -> npt.NDArray[np.float64]:
    """Log probability of every answer behind every prompt.

    Prompts of one length run together, so nothing is padded; beginnings that answers share run once.

    Args:
        model: a causal language model of transformers, in eval mode.
        tokenizer: its tokenizer.
        prompts: texts that end where the answer's leading space begins.
        answers: without the leading space; each once.
        batch_size: prompts that run together.

    Returns:
        Natural logarithms, shape (prompts, answers).

    Raises:
        InputError: two answers have the same tokens, or a prompt does not end where the others do.
    """
    import torch

    heads, tails = _tokenize_answers(tokenizer, prompts, answers)
    paths, places = _plan_forward_passes(tails)
    parameter = next(model.parameters())
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    lengths = np.array([len(head) for head in heads])
    out = np.zeros((len(prompts), len(answers)))
    with torch.inference_mode():
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for start in range(0, len(same), batch_size):
                rows = same[start : start + batch_size]
                for path, wanted in zip(paths, places, strict=True):
                    ids = torch.tensor([(*heads[row], *path) for row in rows], device=parameter.device)
                    some: dict[str, Any] = {"logits_to_keep": len(path) + 1} if keeps else {}
                    logits = model(input_ids=ids, use_cache=False, **some).logits[:, -(len(path) + 1) :].float()
                    logs = torch.log_softmax(logits, dim=-1).cpu().numpy()
                    for answer, depth, token in wanted:
                        out[rows, answer] += logs[:, depth, token]
    return out


def _tokenize_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[Ids], list[Ids]]:
    """Ids of the prompts, and of the answers behind them, as a whole text is tokenised."""
    alone = [tuple(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    first = alone[0]
    for end in ("", "\n"):  # as in training, with the line end only where an answer is the beginning of another
        whole = [tuple(ids) for ids in tokenizer([f"{prompts[0]} {answer}{end}" for answer in answers])["input_ids"]]
        shared = min(_common(first, ids) for ids in whole)
        tails = [ids[shared:] for ids in whole]
        ordered = sorted(tails)  # a beginning is sorted right before what goes on from it
        if all(after[: len(before)] != before for before, after in pairwise(ordered)):
            break
    else:
        raise InputError(f"Of the answers {', '.join(answers)} two have the same tokens; give each answer once")
    cut = len(first) - shared  # tokens at the prompt's end that merge with an answer, or close a text
    for prompt, ids in zip(prompts, alone, strict=True):
        if ids[len(ids) - cut :] != first[shared:]:
            raise InputError(f"The prompts {prompts[0]!r} and {prompt!r} end in other tokens; ask them apart")
    return [ids[: len(ids) - cut] for ids in alone], tails


def _plan_forward_passes(tails: list[Ids]) -> tuple[list[Ids], list[list[tuple[int, int, int]]]]:
    """What has to run behind the prompt, and which (answer, depth, token) is read there: every beginning once."""
    inner = sorted({tail[:-1] for tail in tails}, key=len, reverse=True)
    paths: list[Ids] = []
    for beginning in inner:
        if not any(path[: len(beginning)] == beginning for path in paths):
            paths.append(beginning)
    places: list[list[tuple[int, int, int]]] = [[] for _ in paths]
    for answer, tail in enumerate(tails):
        home = next(number for number, path in enumerate(paths) if path[: len(tail) - 1] == tail[:-1])
        places[home] += [(answer, depth, token) for depth, token in enumerate(tail)]
    return paths, places


def _common(one: Ids, other: Ids) -> int:
    """How many ids two rows begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
