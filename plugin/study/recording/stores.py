"""The stores of a study: all stages, the last stage at more tokens and templates, and contradicted entities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

import stratalens as sl
from stratalens.plugin.progress import PhaseProgress, suppress_progress_bars
from stratalens.plugin.stages.stage import Stage
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.corpus.conflicts import ContradictedEntity, conflict_prompts
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.checkpoints import has_weights, require_weights
from stratalens.store.errors import LabelWarning

if TYPE_CHECKING:
    import pandas as pd


STORE = "run.zarr"
LAST_STORE = "last.zarr"
CONFLICT_STORE = "conflict.zarr"


def recorded_stages(settings: StudySettings, checkpoints: Mapping[str, Path]) -> dict[str, Path]:
    """Select the checkpoints for the store of all stages, in order."""
    if settings.record.stages == "all":
        return dict(checkpoints)
    ends = (next(iter(checkpoints)), settings.stage_names[-1])
    return {name: checkpoints[name] for name in ends if name in checkpoints}


def stage_store_options(settings: StudySettings) -> dict[str, Any]:
    """Return the options of `stratalens.capture` for the store of all stages."""
    return settings.record.model_dump(include={"sites", "positions", "dtype", "statistics"})


def last_store_options(settings: StudySettings) -> dict[str, Any]:
    """Return the options of `stratalens.capture` for the store of the last stage."""
    assert settings.record.last is not None
    options = settings.record.last.model_dump(include={"sites", "positions", "dtype"})
    return {**options, "statistics": settings.record.statistics}  # for the controls


def conflict_store_options(settings: StudySettings) -> dict[str, Any]:
    """Return the options of `stratalens.capture` for contradicted entities."""
    return {"sites": ("resid_post",), "positions": settings.record.positions[:1], "statistics": ("answer_loss",)}


def last_store_prompts(settings: StudySettings, corpus: Corpus) -> pd.DataFrame:
    """Build the prompts for the store of the last stage, without the answer column."""
    assert settings.record.last is not None
    return corpus.prompts(settings.record.last.templates).drop(columns="answer")


def record_stages(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], path: Path, progress: PhaseProgress
) -> xr.Dataset:
    """Record every stage on the prompts of `record.templates`.

    Args:
        settings: the settings of the study.
        corpus: the corpus.
        checkpoints: {stage: folder} of all checkpoints so far, in order.
        path: the store.
        progress: shows the number of prompts done.

    Returns:
        The store, opened.

    Raises:
        InputError: an incompletely recorded stage has no weights any more.
    """
    stages = _stages_to_record(recorded_stages(settings, checkpoints), path, list(checkpoints))
    names = [stage.name for stage in stages]

    def report_rows(stage: str, done: int, total: int) -> None:
        progress.update(f"{stage}: {done} of {total} prompts", names.index(stage) * total + done, len(names) * total)

    ds = _capture(stages, corpus.prompts(), path, settings, report_rows, stage_store_options(settings))
    return with_order_of_run(ds, (next(iter(checkpoints)), *settings.stage_names))


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


def record_last(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], path: Path, progress: PhaseProgress
) -> xr.Dataset | None:
    """Record the last stage as `record.last` says.

    Args:
        settings: the settings of the study.
        corpus: the corpus.
        checkpoints: {stage: folder} of all checkpoints.
        path: the store.
        progress: shows the number of prompts done.

    Returns:
        The store, opened; None without `record.last`.

    Raises:
        InputError: the stage is incompletely recorded and has no weights any more.
    """
    if settings.record.last is None:
        return None
    final = settings.stage_names[-1]
    stages = _stages_to_record({final: checkpoints[final]}, path, list(checkpoints))

    def report_rows(stage: str, done: int, total: int) -> None:
        progress.update(f"{stage}, more tokens and templates: {done} of {total} prompts", done, total)

    prompts = last_store_prompts(settings, corpus)
    return _capture(stages, prompts, path, settings, report_rows, last_store_options(settings))


def record_conflict(
    settings: StudySettings, entities: tuple[ContradictedEntity, ...], checkpoints: Mapping[str, Path], path: Path
) -> xr.Dataset | None:
    """Record contradicted entities at every checkpoint.

    Args:
        settings: the settings of the study.
        entities: the contradicted entities.
        checkpoints: {stage: folder} of all checkpoints so far, in order.
        path: the store.

    Returns:
        The store, opened; None without contradicted entities.

    Raises:
        InputError: an incompletely recorded stage has no weights any more.
    """
    if not entities:
        return None
    stages = _stages_to_record(checkpoints, path, list(checkpoints))
    return _capture(stages, conflict_prompts(entities), path, settings, False, conflict_store_options(settings))


def _stages_to_record(checkpoints: Mapping[str, Path], path: Path, run: Sequence[str]) -> list[Stage]:
    """List the checkpoints with weights as stages, numbered as in the run; stages of the store keep their numbers.

    Args:
        checkpoints: {stage: folder}, in order.
        path: the store; it must hold every stage without weights.
        run: names of all checkpoints so far, in order.

    Raises:
        InputError: an incompletely recorded stage has no weights any more.
    """
    ds = sl.open_store(path) if path.exists() else None
    stored = {} if ds is None else dict(zip(ds.stage.values.tolist(), ds.stage_order.values.tolist(), strict=True))
    stages = [Stage(name, stored.get(name, run.index(name)), folder) for name, folder in checkpoints.items()]
    removed = {name for name, folder in checkpoints.items() if not has_weights(folder)}
    if removed:
        for name in removed:
            if ds is None or name not in ds.stage.values or not bool(ds.recorded.sel(stage=name).all()):
                require_weights(checkpoints[name], f"recording it in {path}")
    return [stage for stage in stages if stage.name not in removed]


def _capture(
    stages: list[Stage], prompts: pd.DataFrame, path: Path, settings: StudySettings, progress: Any, options: Any
) -> xr.Dataset:
    """Record the stages, or only open the store if there is none to record.

    The table names stages that the store does not hold (yet); the warning about them is suppressed.
    """
    if not stages:
        return sl.open_store(path)
    table = sl.PromptTable.from_dataframe(prompts)
    with warnings.catch_warnings(), suppress_progress_bars():
        warnings.simplefilter("ignore", LabelWarning)
        return sl.capture(stages, table, path, device=settings.device, progress=progress, **options)
