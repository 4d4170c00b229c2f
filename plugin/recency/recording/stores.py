"""Recording a study: every stage in one store; the last one once more, at more tokens and templates, in another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stratalens as sl
from stratalens.recency.corpus.contradictions import Contradicted, conflict_prompts
from stratalens.recency.corpus.entities import Corpus
from stratalens.recency.settings import StudySettings
from stratalens.recency.watch import Watch
from stratalens.stages import Stage

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
    return {name: checkpoints[name] for name in ends}


def main_recording(settings: StudySettings) -> dict[str, Any]:
    """What `stratalens.capture` is told for the store of all stages."""
    return settings.record.model_dump(include={"sites", "positions", "dtype", "statistics"})


def last_recording(settings: StudySettings) -> dict[str, Any]:
    """What it is told for the store of the last stage; losses and norms are in the other one."""
    assert settings.record.last is not None
    return {**settings.record.last.model_dump(include={"sites", "positions", "dtype"}), "statistics": False}


def record_stages(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], path: Path, watch: Watch
) -> xr.Dataset:
    """Record every stage on the prompts of `record.templates`."""
    stages = recorded_stages(settings, checkpoints)
    names = list(stages)

    def report_rows(stage: str, done: int, total: int) -> None:
        watch.tell(f"{stage}: {done} of {total} prompts", names.index(stage) * total + done, len(names) * total)

    table = sl.PromptTable.from_dataframe(corpus.prompts())
    return sl.capture(stages, table, path, device=settings.device, progress=report_rows, **main_recording(settings))


def record_last(
    settings: StudySettings, corpus: Corpus, checkpoints: Mapping[str, Path], path: Path, watch: Watch
) -> xr.Dataset | None:
    """Record the last stage at `record.last`; None where that is not wanted."""
    if settings.record.last is None:
        return None
    final = settings.stage_names[-1]

    def report_rows(stage: str, done: int, total: int) -> None:
        watch.tell(f"{stage}, more tokens and templates: {done} of {total} prompts", done, total)

    frame = corpus.prompts(settings.record.last.templates).drop(columns="answer")
    return sl.capture(
        [Stage(final, settings.stages, checkpoints[final])],
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
    table = sl.PromptTable.from_dataframe(conflict_prompts(entities))
    options = conflict_recording(settings)
    return sl.capture(dict(checkpoints), table, path, device=settings.device, progress=False, **options)
