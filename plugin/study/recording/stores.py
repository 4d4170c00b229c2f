"""Recording a study: every stage in one store; the last one once more, at more tokens and templates, in another."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stratalens as sl
from stratalens.plugin.stages.stage import Stage
from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.corpus.conflicts import Contradicted, conflict_prompts
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.training.checkpoints import has_weights, require_weights
from stratalens.plugin.terminal import PhaseProgress, suppress_progress_bars
from stratalens.store.errors import LabelWarning

if TYPE_CHECKING:
    import xarray as xr


STORE = "run.zarr"


LAST_STORE = "last.zarr"


CONFLICT_STORE = "conflict.zarr"


def recorded_stages(settings: StudySettings, checkpoints: Mapping[str, Path]) -> dict[str, Path]:
    """The checkpoints of the store of all stages, in order."""
    if settings.record.stages == "all":
        return dict(checkpoints)
    ends = (next(iter(checkpoints)), settings.stage_names[-1])
    return {name: checkpoints[name] for name in ends if name in checkpoints}


def _stages(checkpoints: Mapping[str, Path], path: Path, first: int = 0) -> list[Stage]:
    """The checkpoints as stages; without those whose weights were not kept, which the store holds already.

    Raises:
        InputError: the weights of one that is not wholly recorded are gone.
    """
    listed = [Stage(name, order, folder) for order, (name, folder) in enumerate(checkpoints.items(), first)]
    gone = {name for name, folder in checkpoints.items() if not has_weights(folder)}
    if gone:
        held = sl.open_store(path) if path.exists() else None
        for name in gone:
            if held is None or name not in held.stage.values or not bool(held.recorded.sel(stage=name).all()):
                require_weights(checkpoints[name], f"recording it in {path}")
    return [stage for stage in listed if stage.name not in gone]


def _capture(*arguments: Any, **options: Any) -> xr.Dataset:
    """`stratalens.capture`, for tables that name stages which are not recorded, or not yet: that is meant here."""
    with warnings.catch_warnings(), suppress_progress_bars():
        warnings.simplefilter("ignore", LabelWarning)
        return sl.capture(*arguments, **options)


def main_recording(settings: StudySettings) -> dict[str, Any]:
    """What `stratalens.capture` is told for the store of all stages."""
    return settings.record.model_dump(include={"sites", "positions", "dtype", "statistics"})


def last_recording(settings: StudySettings) -> dict[str, Any]:
    """What it is told for the store of the last stage; with losses and norms, for the controls of the claim."""
    assert settings.record.last is not None
    wanted = settings.record.last.model_dump(include={"sites", "positions", "dtype"})
    return {**wanted, "statistics": settings.record.statistics}


def record_stages(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], path: Path, watch: PhaseProgress
) -> xr.Dataset:
    """Record every stage on the prompts of `record.templates`."""
    stages = _stages(recorded_stages(settings, checkpoints), path)
    names = [stage.name for stage in stages]

    def report_rows(stage: str, done: int, total: int) -> None:
        watch.update(f"{stage}: {done} of {total} prompts", names.index(stage) * total + done, len(names) * total)

    if not stages:
        return sl.open_store(path)
    table = sl.PromptTable.from_dataframe(corpus.prompts())
    return _capture(stages, table, path, device=settings.device, progress=report_rows, **main_recording(settings))


def record_last(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], path: Path, watch: PhaseProgress
) -> xr.Dataset | None:
    """Record the last stage at `record.last`; None where that is not wanted."""
    if settings.record.last is None:
        return None
    final = settings.stage_names[-1]
    stages = _stages({final: checkpoints[final]}, path, first=settings.stages)
    if not stages:
        return sl.open_store(path)

    def report_rows(stage: str, done: int, total: int) -> None:
        watch.update(f"{stage}, more tokens and templates: {done} of {total} prompts", done, total)

    frame = corpus.prompts(settings.record.last.templates).drop(columns="answer")
    return _capture(
        stages,
        sl.PromptTable.from_dataframe(frame),
        path,
        device=settings.device,
        progress=report_rows,
        **last_recording(settings),
    )


def conflict_recording(settings: StudySettings) -> dict[str, Any]:
    """What `stratalens.capture` is told for the store of contradicted entities."""
    return {"sites": ("resid_post",), "positions": settings.record.positions[:1], "statistics": ("answer_loss",)}


def record_conflict(
    settings: StudySettings, entities: tuple[Contradicted, ...], checkpoints: Mapping[str, Path], path: Path
) -> xr.Dataset | None:
    """Record contradicted entities at every checkpoint; None where there are none."""
    if not entities:
        return None
    stages = _stages(checkpoints, path)
    if not stages:
        return sl.open_store(path)
    table = sl.PromptTable.from_dataframe(conflict_prompts(entities))
    options = conflict_recording(settings)
    return _capture(stages, table, path, device=settings.device, progress=False, **options)
