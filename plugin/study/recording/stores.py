"""The stores of a study: all stages, the last stage at more tokens and templates, and contradicted entities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

import stratalens as sl
from stratalens.plugin.progress import PhaseProgress, suppress_progress_bars
from stratalens.plugin.stages.stage import Stage
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.corpus.conflicts import ContradictedEntity, conflict_prompts
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.checkpoints import has_weights, require_weights
from stratalens.store.errors import LabelWarning

STORE = "run.zarr"
LAST_STORE = "last.zarr"
CONFLICT_STORE = "conflict.zarr"


@dataclass(frozen=True)
class StorePlan:
    """What one store records.

    Attributes:
        stages: {stage: folder} of the recorded checkpoints, in order.
        prompts: the prompts.
        options: options of `stratalens.capture`.
        first: order number of the first stage.
    """

    stages: dict[str, Path]
    prompts: pd.DataFrame
    options: dict[str, Any]
    first: int = 0


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
        {name of the store: plan}: all stages on the prompts of `record.templates`, the last stage as `record.last`
        says, and contradicted entities at every checkpoint, if there are any.
    """
    record, final = settings.record, settings.stage_names[-1]
    options = record.model_dump(include={"sites", "positions", "dtype", "statistics"})
    plans = {STORE: StorePlan(recorded_stages(settings, checkpoints), corpus.prompts(), options)}
    if record.last is not None and final in checkpoints:
        options = record.last.model_dump(include={"sites", "positions", "dtype"})
        options["statistics"] = record.statistics  # for the controls
        prompts = corpus.prompts(record.last.templates).drop(columns="answer")
        plans[LAST_STORE] = StorePlan({final: checkpoints[final]}, prompts, options, first=settings.stages)
    if contradicted:
        options = {"sites": ("resid_post",), "positions": record.positions[:1], "statistics": ("answer_loss",)}
        plans[CONFLICT_STORE] = StorePlan(dict(checkpoints), conflict_prompts(contradicted), options)
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
        return sl.capture(stages, table, path, device=settings.device, progress=report_rows, **plan.options)


def _stages_to_record(plan: StorePlan, path: Path) -> list[Stage]:
    """List the stages with weights; the store must hold every other one."""
    stages = [Stage(name, order, folder) for order, (name, folder) in enumerate(plan.stages.items(), plan.first)]
    removed = {name for name, folder in plan.stages.items() if not has_weights(folder)}
    if removed:
        ds = sl.open_store(path) if path.exists() else None
        for name in removed:
            if ds is None or name not in ds.stage.values or not bool(ds.recorded.sel(stage=name).all()):
                require_weights(plan.stages[name], f"recording it in {path}")
    return [stage for stage in stages if stage.name not in removed]
