"""The stores of a study.

run.zarr has all stages, of a sample of the entities if the settings say so; ends.zarr then has the untrained and the
last stage of all entities. last.zarr has the last stage at more tokens and templates, conflict.zarr contradicted
entities.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import stratalens as sl
from stratalens.plugin.progress import PhaseProgress, suppress_progress_bars
from stratalens.plugin.stages.stage import Stage
from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.corpus.conflicts import ContradictedEntity, conflict_prompts
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.checkpoints import has_weights, require_weights
from stratalens.store.errors import LabelWarning

STORE = "run.zarr"
ENDS_STORE = "ends.zarr"
LAST_STORE = "last.zarr"
CONFLICT_STORE = "conflict.zarr"


@dataclass(frozen=True)
class StorePlan:
    """What one store records.

    Attributes:
        stages: {stage: folder} of the recorded checkpoints, in order.
        prompts: the prompts.
        options: options of `stratalens.capture`.
        run: names of all checkpoints so far, in order.
    """

    stages: dict[str, Path]
    prompts: pd.DataFrame
    options: dict[str, Any]
    run: tuple[str, ...]


def sample_prompts(prompts: pd.DataFrame, entities: int | None) -> pd.DataFrame:
    """Select the prompts of the first entities of each stage; their partition into stages is random.

    Args:
        prompts: prompts with the columns trained_stage and entity_id.
        entities: number of entities of each stage; None takes all.

    Example:
        >>> frame = pd.DataFrame({"trained_stage": ["s1", "s1", "s2"], "entity_id": ["a", "b", "c"]})
        >>> sample_prompts(frame, 1)["entity_id"].tolist()
        ['a', 'c']
    """
    if entities is None:
        return prompts
    first = prompts.drop_duplicates("entity_id").groupby("trained_stage", sort=False, observed=True).head(entities)
    return prompts[prompts["entity_id"].isin(first["entity_id"])].reset_index(drop=True)


def recorded_stages(settings: StudySettings, checkpoints: Mapping[str, Path]) -> dict[str, Path]:
    """Select the checkpoints for the store of all stages, in order."""
    if settings.record.stages == "all":
        return dict(checkpoints)
    ends = (next(iter(checkpoints)), settings.stage_names[-1])
    return {name: checkpoints[name] for name in ends if name in checkpoints}


def plan_stores(
    settings: StudySettings,
    corpus: Corpus,
    contradicted: tuple[ContradictedEntity, ...],
    checkpoints: Mapping[str, Path],
) -> dict[str, StorePlan]:
    """Plan the stores of the checkpoints so far.

    Args:
        settings: the settings of the study.
        corpus: the corpus.
        contradicted: the contradicted entities.
        checkpoints: {stage: folder} of all checkpoints so far, in order.

    Returns:
        {name of the store: plan}: all stages on the prompts of `record.templates`, the ends on those of all entities
        if `record.sample` leaves some out, the last stage as `record.last` says, and contradicted entities at every
        checkpoint, if there are any.
    """
    record, final, run = settings.record, settings.stage_names[-1], tuple(checkpoints)
    options = record.model_dump(include={"sites", "positions", "dtype", "statistics"})
    prompts = corpus.prompts()
    sample = sample_prompts(prompts, record.sample)
    plans = {STORE: StorePlan(recorded_stages(settings, checkpoints), sample, options, run)}
    if len(sample) < len(prompts):
        ends = {name: checkpoints[name] for name in (UNTRAINED, final) if name in checkpoints}
        plans[ENDS_STORE] = StorePlan(ends, prompts, options, run)
    if record.last is not None and final in checkpoints:
        options = record.last.model_dump(include={"sites", "positions", "dtype"})
        options["statistics"] = record.statistics  # for the controls
        prompts = corpus.prompts(record.last.templates).drop(columns="answer")
        plans[LAST_STORE] = StorePlan({final: checkpoints[final]}, prompts, options, run)
    if contradicted:
        options = {"sites": ("resid_post",), "positions": record.positions[:1], "statistics": ("answer_loss",)}
        plans[CONFLICT_STORE] = StorePlan(dict(checkpoints), conflict_prompts(contradicted), options, run)
    return plans


def record_store(plan: StorePlan, path: Path, settings: StudySettings, progress: PhaseProgress) -> xr.Dataset:
    """Record the stages of a store that have weights, or only open it if there is none to record.

    The table names stages that the store does not hold (yet); the warning about them is suppressed.

    Args:
        plan: what the store records.
        path: the store.
        settings: the settings of the study.
        progress: shows the number of prompts done.

    Returns:
        The store, opened.

    Raises:
        InputError: an incompletely recorded stage has no weights any more.
    """
    stages = _stages_to_record(plan, path)
    if not stages:
        return sl.open_store(path)
    names = [stage.name for stage in stages]

    def report_rows(stage: str, done: int, total: int) -> None:
        described = f"{stage} in {path.name}: {done} of {total} prompts"
        progress.update(described, names.index(stage) * total + done, len(names) * total)

    table = sl.PromptTable.from_dataframe(plan.prompts)
    with warnings.catch_warnings(), suppress_progress_bars():
        warnings.simplefilter("ignore", LabelWarning)
        options: dict[str, Any] = {
            "device": settings.device,
            "prepend_bos": prepend_bos_of(stages[0].source),
            **plan.options,
        }
        if options["statistics"] is True and not path.exists():  # a store that exists goes on with what it records
            options["statistics"] = "all"  # the loss over the prompt is one of the sets of statistics
        return sl.capture(stages, table, path, progress=report_rows, **options)


def prepend_bos_of(folder: Path) -> bool | None:
    """Return True if the tokenizer of a checkpoint has a BOS token: studies record prompts with BOS in front.

    The published results were recorded so. Training and answers use the tokenizer alone, which may add no BOS.
    """
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return True if settings.get("bos_token") else None


def _stages_to_record(plan: StorePlan, path: Path) -> list[Stage]:
    """List the stages with weights, numbered as in the run; stages of the store keep their numbers.

    Raises:
        InputError: an incompletely recorded stage has no weights any more.
    """
    ds = sl.open_store(path) if path.exists() else None
    stored = {} if ds is None else dict(zip(ds.stage.values.tolist(), ds.stage_order.values.tolist(), strict=True))
    stages = [Stage(name, stored.get(name, plan.run.index(name)), folder) for name, folder in plan.stages.items()]
    removed = {name for name, folder in plan.stages.items() if not has_weights(folder)}
    for name in removed:
        if ds is None or name not in ds.stage.values or not bool(ds.recorded.sel(stage=name).all()):
            require_weights(plan.stages[name], f"recording it in {path}")
    return [stage for stage in stages if stage.name not in removed]


def with_order_of_run(ds: xr.Dataset, stages: Sequence[str]) -> xr.Dataset:
    """Give a store of some stages the training order of all stages of its run.

    Stores number their stages, and know nothing of stages that they do not hold. A run that records only some stages
    (`record: {stages: ends}`) knows all of them.

    Args:
        ds: the store.
        stages: all stages of the run, in order.

    Returns:
        The Dataset with `stage_order` and `exposure` on the scale of the run; unchanged if it holds every stage that
        trained a row.
    """
    recorded, trained = ds.stage.values.tolist(), ds.trained_stage.values.tolist()
    if set(trained) <= set(recorded):
        return ds
    order = {name: number for number, name in enumerate(stages)}
    own = np.array([order[name] for name in recorded])
    since = (own[:, None] - np.array([order[name] for name in trained])[None]).astype(np.float32)
    exposure = xr.Variable(("stage", "entity"), since, ds["exposure"].attrs)
    return ds.assign_coords(stage_order=("stage", own)).assign(exposure=exposure)
