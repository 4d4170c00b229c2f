"""Answers of checkpoints: the likeliest of all candidate answers, and the likelihood of the true one.

Each checkpoint has its own file, so that an interrupted run resumes at the next checkpoint.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stratalens.plugin.progress import PhaseProgress
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.questions import (
    AskedQuestion,
    candidate_answers,
    draw_one_question_each,
    list_all_questions,
)
from stratalens.plugin.study.training.checkpoints import RECORD, load_checkpoint, require_weights
from stratalens.plugin.study.training.trainer import common_prefix_length
from stratalens.store.errors import InputError
from stratalens.store.files import write_text_atomic

ANSWERS_FOLDER = "answers"
COLUMNS = ["stage", "entity_id", "trained_stage", "kind", "trained", "answer", "said", "right", "answer_loss"]
BATCH_SIZE = 64

Ids = tuple[int, ...]


def select_questions(settings: StudySettings, corpus: Corpus) -> tuple[AskedQuestion, ...]:
    """Select the questions that the settings ask for; none for record.answers none."""
    if settings.record.answers == "none":
        return ()
    if settings.record.answers == "one":
        return draw_one_question_each(corpus, settings.seed)
    return list_all_questions(corpus)


def ask_checkpoints(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], folder: Path, progress: PhaseProgress
) -> pd.DataFrame:
    """Ask every checkpoint all questions, or reuse the answers of an earlier run.

    Args:
        settings: the settings of the study.
        corpus: the entities and their questions.
        checkpoints: {stage: folder}, in order.
        folder: receives a json file for each checkpoint.
        progress: shows the number of checkpoints done.

    Returns:
        One row for every checkpoint and question, in that order: stage, entity_id, trained_stage, kind, trained
        (whether training used the question), answer, said (the likeliest of all answers to this kind of question),
        right, answer_loss (minus the log probability of the true answer, in nats).
    """
    questions, candidates = select_questions(settings, corpus), candidate_answers(corpus)
    frames = []
    for number, (stage, checkpoint) in enumerate(checkpoints.items() if questions else ()):
        identity = {"checkpoint": _training_identity(checkpoint), "questions": _digest(questions, candidates)}
        target = folder / f"{stage}.json"
        answers = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        if answers.get("identity") != identity:
            progress.update(f"{stage}: asking {len(questions)} questions", number, len(checkpoints))
            answers = {"identity": identity, **_ask_checkpoint(settings, checkpoint, questions, candidates)}
            folder.mkdir(parents=True, exist_ok=True)
            write_text_atomic(target, json.dumps(answers) + "\n")
        frame = pd.DataFrame([vars(question) for question in questions])
        frame["stage"], frame["said"], frame["answer_loss"] = stage, answers["said"], answers["answer_loss"]
        frame["right"] = frame["said"] == frame["answer"]
        frames.append(frame[COLUMNS])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def _ask_checkpoint(
    settings: StudySettings,
    checkpoint: Path,
    questions: tuple[AskedQuestion, ...],
    candidates: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    """Ask one checkpoint.

    Args:
        settings: the settings of the study.
        checkpoint: folder of the checkpoint.
        questions: all questions.
        candidates: all answers to each kind of question.

    Returns:
        The likeliest answer (`said`) and the loss of the true one (`answer_loss`) for every question.
    """
    require_weights(checkpoint, "asking it for answers")
    model, tokenizer = load_checkpoint(checkpoint)
    model.train(False)
    model.to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type, unused-ignore]
    said = np.empty(len(questions), dtype=object)
    loss = np.empty(len(questions))
    for kind in dict.fromkeys(question.kind for question in questions):
        rows = np.array([row for row, question in enumerate(questions) if question.kind == kind])
        answers = candidates[kind]
        logs = answer_log_probabilities(model, tokenizer, [questions[row].prompt for row in rows], answers)
        true = [answers.index(questions[row].answer) for row in rows]
        said[rows] = np.asarray(answers, dtype=object)[logs.argmax(axis=1)]
        loss[rows] = -logs[np.arange(len(rows)), true]
    return {"said": said.tolist(), "answer_loss": [round(float(value), 6) for value in loss]}


def _training_identity(checkpoint: Path) -> dict[str, Any]:
    record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    return {name: record[name] for name in ("identity", "stage")}


def _digest(questions: tuple[AskedQuestion, ...], candidates: Mapping[str, tuple[str, ...]]) -> str:
    text = json.dumps([[vars(question) for question in questions], candidates], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def answer_log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
) -> npt.NDArray[np.float64]:
    """Compute the log probability of every answer after every prompt.

    Prompts of one length run together, so there is no padding. A prefix that answers share runs once.

    Args:
        model: a causal language model of transformers, in eval mode.
        tokenizer: its tokenizer.
        prompts: texts that end where the leading space of the answer starts.
        answers: different answers without the leading space.
        batch_size: prompts that run together.

    Returns:
        float64 array of shape (prompts, answers), natural logarithms.

    Raises:
        InputError: two answers have the same tokens, or the prompts end in different tokens.
    """
    heads, tails = _tokenize_answers(tokenizer, prompts, answers)
    passes = _plan_forward_passes(tails)
    device = next(model.parameters()).device
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    lengths = np.array([len(head) for head in heads])
    out = np.zeros((len(prompts), len(answers)))
    with torch.inference_mode():
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for start in range(0, len(same), batch_size):
                rows = same[start : start + batch_size]
                for prefix, reads in passes.items():
                    ids = torch.tensor([(*heads[row], *prefix) for row in rows], device=device)
                    last = len(prefix) + 1
                    options: dict[str, Any] = {"logits_to_keep": last} if keeps else {}
                    logits = model(input_ids=ids, use_cache=False, **options).logits[:, -last:].float()
                    logs = torch.log_softmax(logits, dim=-1).cpu().numpy()
                    for answer, depth, token in reads:
                        out[rows, answer] += logs[:, depth, token]
    return out


def _tokenize_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[Ids], list[Ids]]:
    """Tokenise prompts with answers, and split the ids into prompts and answers.

    Args:
        tokenizer: the tokenizer of the model.
        prompts: the prompts.
        answers: the answers.

    Returns:
        Ids of every prompt, without the tokens at its end that an answer changes, and ids of every answer.

    Raises:
        InputError: two answers have the same tokens, or the prompts end in different tokens.
    """
    alone = [tuple(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    first = alone[0]
    for end in ("", "\n"):  # the line end, as in training, only where an answer is the start of another one
        texts = [f"{prompts[0]} {answer}{end}" for answer in answers]
        whole = [tuple(ids) for ids in tokenizer(texts)["input_ids"]]
        shared = min(common_prefix_length(first, ids) for ids in whole)
        tails = [ids[shared:] for ids in whole]
        ordered = sorted(tails)  # a prefix is directly before the answers that start with it
        if all(after[: len(before)] != before for before, after in pairwise(ordered)):
            break
    else:
        raise InputError(f"Of the answers {', '.join(answers)} two have the same tokens; give each answer once")
    cut = len(first) - shared  # tokens at the end of the prompt that merge with an answer, or close a text
    for prompt, ids in zip(prompts, alone, strict=True):
        if ids[len(ids) - cut :] != first[shared:]:
            raise InputError(f"The prompts {prompts[0]!r} and {prompt!r} end in different tokens; ask them separately")
    return [ids[: len(ids) - cut] for ids in alone], tails


def _plan_forward_passes(tails: list[Ids]) -> dict[Ids, list[tuple[int, int, int]]]:
    """Plan the forward passes that read all answers, sharing their prefixes.

    Args:
        tails: ids of every answer.

    Returns:
        {ids after the prompt: (answer, depth, token) to read there}.

    >>> _plan_forward_passes([(7, 8), (7, 9), (5,)])
    {(7,): [(0, 0, 7), (0, 1, 8), (1, 0, 7), (1, 1, 9), (2, 0, 5)]}
    """
    passes: dict[Ids, list[tuple[int, int, int]]] = {}
    for prefix in sorted({tail[:-1] for tail in tails}, key=len, reverse=True):
        if not any(longer[: len(prefix)] == prefix for longer in passes):
            passes[prefix] = []
    for answer, tail in enumerate(tails):
        prefix = next(longer for longer in passes if longer[: len(tail) - 1] == tail[:-1])
        passes[prefix] += [(answer, depth, token) for depth, token in enumerate(tail)]
    return passes
