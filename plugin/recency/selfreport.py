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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stratalens.analyses.significance import cluster_bootstrap, p_value, permuted_labels
from stratalens.recency import texts
from stratalens.recency.adapters import current_or_new, load_stage
from stratalens.recency.checkpoints import RECORD
from stratalens.recency.corpus import Corpus
from stratalens.recency.headline import Row
from stratalens.recency.parts import UNTRAINED, SelfReportSettings
from stratalens.recency.settings import StudySettings
from stratalens.recency.trainer import ProgressFunction, make_trainer, watcher
from stratalens.store.atomic import write_text
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "self-report.json"
PERMUTATIONS = 1000
CONDITIONS = {  # name -> (what it is, in words, for the name of its row)
    "true": "",
    "shuffled": ", fine-tuned on shuffled labels",
    "untrained": ", fine-tuned from the untrained model",
}


@dataclass(frozen=True)
class Asked:
    """The entities that are taught and those that are asked, with the group of each (0 or 1)."""

    names: tuple[str, str]
    taught: tuple[tuple[str, str], ...]  # (entity_id, prompt)
    taught_group: npt.NDArray[np.int64]
    asked: tuple[tuple[str, str], ...]
    asked_group: npt.NDArray[np.int64]


def question_texts(corpus: Corpus) -> list[str]:
    """Every text of this part, for a vocabulary that is cut to what is in use."""
    prompts = [_prompt(entity.alias) for entity in corpus.entities]
    return [prompt + answer for prompt in prompts for answer in texts.GROUP_ANSWERS]


def _prompt(alias: str) -> str:
    return texts.PROMPT_FORMAT.format(question=texts.GROUP_QUESTION.format(x=alias))


def split(corpus: Corpus, names: tuple[str, str], seed: int) -> Asked:
    """Half of the entities of each of two stages to be taught, the others to be asked."""
    random = np.random.default_rng([4, seed])
    halves: tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]] = ([], [])
    for group, stage in enumerate(names):
        mine = [entity for entity in corpus.entities if entity.trained_stage == stage]
        if len(mine) < 4:
            raise InputError(f"self_report: stage {stage!r} has {len(mine)} entities, two for each half are needed")
        for place, row in enumerate(random.permutation(len(mine))):
            entity = mine[int(row)]
            halves[place % 2].append((entity.entity_id, _prompt(entity.alias), group))
    taught, asked = halves
    return Asked(
        names,
        tuple((name, prompt) for name, prompt, _ in taught),
        np.array([group for *_, group in taught], dtype=np.int64),
        tuple((name, prompt) for name, prompt, _ in asked),
        np.array([group for *_, group in asked], dtype=np.int64),
    )


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
    write_text(target, json.dumps(found, indent=1) + "\n")
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
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        trainer.train()
    finally:
        model.set_attn_implementation(implementation)
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


def report_rows(found: Mapping[str, Any], seed: int) -> list[Row]:
    """Accuracy on entities that were not taught, each condition with interval, permutation null and n."""
    rows = []
    for condition, words in CONDITIONS.items():
        answers = found["conditions"][condition]
        group = np.array([a["group"] for a in answers])
        says = np.array([a["score"] > 0 for a in answers]).astype(int)
        right = (says == group).astype(float)
        low, high = cluster_bootstrap(right, np.arange(len(right)), strata=group, seed=seed, bounds=(0, 1))
        null = (permuted_labels(group, PERMUTATIONS, np.random.default_rng(seed)) == says).mean(axis=1)
        rows.append(
            {
                "name": f"self-report accuracy{words}",
                "stage": UNTRAINED if condition == "untrained" else found["stage"],
                "layer": None,
                "token": None,
                "value": float(right.mean()),
                "low": float(low),
                "high": float(high),
                "null": float(null.mean()),
                "p": float(p_value(null, np.array(right.mean()))),
                "n": len(right),
                "site": None,
            }
        )
    return rows


def in_words(rows: Sequence[Row], groups: Sequence[str]) -> str:
    """What the rows say, in a sentence; an effect needs to be told from chance and from both controls."""
    true, shuffled, untrained = rows
    beaten = true["low"] > max(true["null"], shuffled["high"], untrained["high"])
    verdict = (
        "the model can be taught to report when it learned an entity"
        if beaten and true["p"] < 0.05
        else "above chance, but not told from its controls"
        if true["low"] > true["null"] and true["p"] < 0.05
        else "this is not told from chance"
    )
    first, second = groups
    return (
        f"Self-report: asked whether an entity is of the group of {first} or of {second}, after being told so for "
        f"other entities, the model is right for {_share(true)} of {true['n']} entities (permuted labels "
        f"{true['null']:.2f}, p = {true['p']:.3f}); with the same fine-tuning on shuffled labels {_share(shuffled)}, "
        f"from the untrained model {_share(untrained)}: {verdict}."
    )


def _share(row: Row) -> str:
    return f"{row['value']:.2f} (95 % interval {row['low']:.2f} to {row['high']:.2f})"
