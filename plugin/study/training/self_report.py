"""Self-report: can the model be taught to say when it learned an entity, also of entities it was not taught that about?

Half of the entities of two stages come with a question after their group and
the answer, the loss on the answer alone; the others are asked. Beside it, with
everything else the same: the labels shuffled among the entities that are
taught (what the fine-tuning alone does), and the same fine-tuning of the model
that was never trained on the stages (what the names alone give away).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stratalens.plugin.compat import eager_attention
from stratalens.plugin.study.config import templates as texts
from stratalens.plugin.study.config.settings import UNTRAINED, SelfReportSettings, StudySettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.questions import split
from stratalens.plugin.study.training.checkpoints import RECORD, require_weights
from stratalens.plugin.study.training.lora import current_or_new, load_stage
from stratalens.plugin.study.training.trainer import ProgressFunction, make_trainer, watcher
from stratalens.store.files import write_text_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


FILE = "self-report.json"


CONDITIONS = ("true", "shuffled", "untrained")


def self_report(
    settings: StudySettings,
    corpus: Corpus,
    checkpoints: Mapping[str, Path],
    folder: Path,
    progress: ProgressFunction | None = None,
) -> dict[str, Any]:
    """Fine-tune and ask, under each condition; what an earlier run of the same settings found is reused.

    Args:
        settings: of the whole study.
        corpus: the entities.
        checkpoints: of the stages; the last stage's and the untrained one are started from.
        folder: gets `self-report.json`, with the answer to every question; fine-tuned weights are not kept.
        progress: called after every step.

    Returns:
        What the file holds: names, n, and for each condition a list of {entity_id, group, score}; a score
        above 0 says the later group (log odds of its letter over the other).
    """
    own = settings.self_report
    assert own is not None
    stages = own.stages or (settings.stage_names[0], settings.stage_names[-1])
    last = settings.stage_names[-1]
    made_from = json.loads((checkpoints[last] / RECORD).read_text(encoding="utf-8"))["identity"]
    identity = {"checkpoint": made_from, "seed": settings.seed, **own.model_dump(mode="json"), "stages": list(stages)}
    target = folder / FILE
    if target.is_file():
        held: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        if held.get("identity") == identity:
            return held
    asked = split(corpus, stages, settings.seed)
    shuffled = np.random.default_rng([5, settings.seed]).permutation(asked.taught_group)
    conditions: dict[str, list[dict[str, Any]]] = {}
    starts = {
        "true": (last, asked.taught_group),
        "shuffled": (last, shuffled),
        "untrained": (UNTRAINED, asked.taught_group),
    }
    for number, (name, (start, groups)) in enumerate(starts.items(), 1):
        require_weights(checkpoints[start], "the self-report")
        model, tokenizer = load_stage(checkpoints[start], checkpoints[UNTRAINED])
        if settings.train.method == "lora":
            model = current_or_new(model, settings.train.lora, settings.seed, checkpoints[UNTRAINED])
        teach(model, tokenizer, asked.taught, groups, settings, own, folder / ".self-report.trainer", number, progress)
        scores = ask(model, tokenizer, [prompt for _, prompt in asked.asked])
        conditions[name] = [
            {"entity_id": entity, "group": int(group), "score": round(float(score), 5)}
            for (entity, _), group, score in zip(asked.asked, asked.asked_group, scores, strict=True)
        ]
    found = {"identity": identity, "stage": last, "groups": list(stages), "conditions": conditions}
    write_text_atomic(target, json.dumps(found, indent=1) + "\n")
    return found


def teach(
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
    """Fine-tune in place on (entity_id, prompt) with the group of each; the loss is on the answer alone."""
    changed = {"epochs": own.epochs, "learning_rate": own.learning_rate, "batch_size": own.batch_size, "save": "no"}
    how = settings.train.model_copy(update={key: value for key, value in changed.items() if value is not None})
    prompts = [prompt for _, prompt in taught]
    full = [prompt + texts.GROUP_ANSWERS[group] + "\n" for prompt, group in zip(prompts, groups, strict=True)]
    # the same seed for every condition: the same batches in the same order
    trainer = make_trainer(
        model, tokenizer, full, how, scratch, settings.seed * 1000 + 999, settings.device, prompts=prompts
    )
    trainer.add_callback(watcher(("self-report", number, len(CONDITIONS)), progress))
    try:
        with eager_attention(model):
            trainer.train()
    finally:
        model.train(False)
        shutil.rmtree(scratch, ignore_errors=True)


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Log odds of the later group's letter over the earlier one's, behind every prompt."""
    import torch

    first, second = (_letter(tokenizer, prompts[0], answer) for answer in texts.GROUP_ANSWERS)
    device = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for prompt in prompts:  # one by one: nothing is padded
            ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=device)
            logits = model(input_ids=ids).logits[0, -1].float()
            found.append(float(logits[second] - logits[first]))
    return np.array(found)


def _letter(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> int:
    before, after = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
    return int(next(b for a, b in zip([*before, None], after, strict=False) if a != b))
