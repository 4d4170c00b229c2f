"""Self-report: fine-tuning a model to say which of two stages taught an entity.

The model learns the group of half of the entities of two stages, with the loss
on the answer alone. It is then asked about the other half. Two controls differ
in one thing each. With shuffled labels, the control shows the effect of the
fine-tuning alone. From the untrained model, it shows how much the names alone
reveal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stratalens.plugin.compat import eager_attention
from stratalens.plugin.study.config.settings import UNTRAINED, SelfReportSettings, StudySettings
from stratalens.plugin.study.config.templates import GROUP_ANSWERS
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.questions import SelfReportSplit, split_for_self_report
from stratalens.plugin.study.recording.answers import answer_log_probabilities
from stratalens.plugin.study.training.checkpoints import RECORD, require_weights
from stratalens.plugin.study.training.lora import ensure_adapter, load_stage
from stratalens.plugin.study.training.trainer import LossMonitor, ProgressFunction, make_trainer
from stratalens.store.files import write_text_atomic

SELF_REPORT_FILE = "self-report.json"
CONDITIONS = ("true", "shuffled", "untrained")


def run_self_report(
    settings: StudySettings,
    corpus: Corpus,
    checkpoints: Mapping[str, Path],
    folder: Path,
    progress: ProgressFunction | None = None,
) -> dict[str, Any]:
    """Fine-tune and ask under each condition, or reuse the result of an earlier run.

    Args:
        settings: the settings of the study.
        corpus: the entities.
        checkpoints: {stage: folder}; fine-tuning starts from the last stage and from the untrained model.
        folder: receives `self-report.json` with the answer to every question; the fine-tuned weights are removed.
        progress: called after every step.

    Returns:
        The contents of the file: identity, stage, groups, and for each condition a list of {entity_id, group, score}.
        The score is the log odds of the later group's letter over the earlier one's.
    """
    own = settings.self_report
    assert own is not None
    stages = own.stages or settings.end_stages
    last = settings.stage_names[-1]
    checkpoint_identity = json.loads((checkpoints[last] / RECORD).read_text(encoding="utf-8"))["identity"]
    identity = {
        "checkpoint": checkpoint_identity,
        "seed": settings.seed,
        **own.model_dump(mode="json"),
        "stages": list(stages),
    }
    target = folder / SELF_REPORT_FILE
    if target.is_file():
        earlier: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        if earlier.get("identity") == identity:
            return earlier
    halves = split_for_self_report(corpus, stages, settings.seed)
    conditions: dict[str, list[dict[str, Any]]] = {}
    for condition in CONDITIONS:
        model, tokenizer = teach_condition(condition, settings, halves, checkpoints, folder, progress)
        scores = group_log_odds(model, tokenizer, [prompt for _, prompt in halves.asked])
        conditions[condition] = [
            {"entity_id": entity, "group": int(group), "score": round(float(score), 5)}
            for (entity, _), group, score in zip(halves.asked, halves.asked_group, scores, strict=True)
        ]
    report = {"identity": identity, "stage": last, "groups": list(stages), "conditions": conditions}
    write_text_atomic(target, json.dumps(report, indent=1) + "\n")
    return report


def teach_condition(
    condition: str,
    settings: StudySettings,
    halves: SelfReportSplit,
    checkpoints: Mapping[str, Path],
    folder: Path,
    progress: ProgressFunction | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Fine-tune a model under one condition.

    Args:
        condition: one of `CONDITIONS`.
        settings: the settings of the study.
        halves: the taught and the asked entities.
        checkpoints: {stage: folder}.
        folder: of the run, for the files of the Trainer.
        progress: called after every step.

    Returns:
        The fine-tuned model and its tokenizer; the same in every call.
    """
    own = settings.self_report
    assert own is not None
    start = UNTRAINED if condition == "untrained" else settings.stage_names[-1]
    groups = halves.taught_group
    if condition == "shuffled":
        groups = np.random.default_rng([5, settings.seed]).permutation(groups)
    require_weights(checkpoints[start], "the self-report")
    model, tokenizer = load_stage(checkpoints[start], checkpoints[UNTRAINED])
    if settings.train.method == "lora":
        model = ensure_adapter(model, settings.train.lora, settings.seed, checkpoints[UNTRAINED])
    number = CONDITIONS.index(condition) + 1
    teach_groups(
        model, tokenizer, halves.taught, groups, settings, own, folder / ".self-report.trainer", number, progress
    )
    return model, tokenizer


def teach_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    taught: Sequence[tuple[str, str]],
    groups: npt.NDArray[np.int64],
    settings: StudySettings,
    own: SelfReportSettings,
    scratch: Path,
    number: int = 1,
    progress: ProgressFunction | None = None,
) -> None:
    """Fine-tune a model in place on groups of entities, with the loss on the answer.

    Args:
        model: the model to train.
        tokenizer: its tokenizer.
        taught: (entity_id, prompt) of the entities.
        groups: int64 array of shape (entities,), 0 or 1.
        settings: the settings of the study.
        own: its settings of the self-report.
        scratch: folder for the files of the Trainer; removed at the end.
        number: number of the condition, for progress.
        progress: called after every step.
    """
    changes = {"epochs": own.epochs, "learning_rate": own.learning_rate, "batch_size": own.batch_size, "save": "no"}
    training = settings.train.model_copy(update={key: value for key, value in changes.items() if value is not None})
    prompts = [prompt for _, prompt in taught]
    texts = [prompt + GROUP_ANSWERS[group] + "\n" for prompt, group in zip(prompts, groups, strict=True)]
    seed = settings.seed * 1000 + 999  # every condition sees the same batches in the same order
    trainer = make_trainer(model, tokenizer, texts, training, scratch, seed, settings.device, prompts=prompts)
    trainer.add_callback(LossMonitor("self-report", number, len(CONDITIONS), progress))
    try:
        with eager_attention(model):
            trainer.train()
    finally:
        model.train(False)
        shutil.rmtree(scratch, ignore_errors=True)


def group_log_odds(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Compute for each prompt the log-odds of the answer of the second group against that of the first.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: the prompts, without an answer.

    Returns:
        float64 array of shape (prompts,).
    """
    first, second = answer_log_probabilities(model, tokenizer, prompts, [a.strip() for a in GROUP_ANSWERS]).T
    return np.asarray(second - first)
