"""The work of the commands that start from a run file: capture, forecast and study.

Each library is imported when its command runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.cli.output import print_status, print_warnings
from stratalens.plugin.cli.prompt_file import read_prompts
from stratalens.plugin.cli.run_file import RunFile, StageEntry, make_parent, run_file_of, write_run_file
from stratalens.plugin.progress import suppress_progress_bars
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from stratalens.plugin.check.report import CheckReport
    from stratalens.plugin.stages.stage import Source, Stage
    from stratalens.plugin.study.config.settings import StudySettings


def run_stages(run: RunFile) -> list[Stage]:
    """Return the stages of a run file in training order.

    A run file without stages has one, called "model": the model itself.

    Raises:
        InputError: some stages have an `order` and others do not.
    """
    from stratalens.plugin.stages.stage import Stage

    entries = run.stages or (StageEntry(name="model"),)
    numbers = [entry.order for entry in entries]
    if None in numbers and set(numbers) != {None}:
        unnumbered = next(entry.name for entry in entries if entry.order is None)
        raise InputError(
            f"stage {unnumbered!r} has no `order`, but other stages have one. Give every stage an `order`, or give "
            "none; stages without it are numbered in the listed order, from 0"
        )
    orders = [i if number is None else number for i, number in enumerate(numbers)]
    listed = [Stage(entry.name, order, _source(run, entry)) for entry, order in zip(entries, orders, strict=True)]
    return sorted(listed, key=lambda stage: stage.order)


def _source(run: RunFile, entry: StageEntry) -> Source:
    from stratalens.plugin.stages.checkpoints import Checkpoint, LoraAdapter, Revision

    if entry.path is not None:
        return Checkpoint(entry.path, model_kwargs=run.model_kwargs)
    if entry.adapter is not None:
        return LoraAdapter(entry.adapter, base=run.model)
    assert run.model is not None  # RunFile refuses a stage without a path if there is no model
    if entry.revision is not None:
        return Revision(run.model, entry.revision, model_kwargs=run.model_kwargs)
    if Path(run.model).is_dir():
        return Checkpoint(run.model, model_kwargs=run.model_kwargs)
    return Revision(run.model, "main", model_kwargs=run.model_kwargs)


def capture_run(run: RunFile, *, resume: bool = True, force: bool = False) -> str | Path:
    """Record every stage of a run file, and write the complete run file next to the store.

    Args:
        run: settings of the run.
        resume: False refuses a store that exists already.
        force: record even if the disk seems too small for the whole store.

    Returns:
        Path or URL of the store.

    Raises:
        InputError: the table, the stages or the settings are wrong.
        StoreExistsError: the store exists and `resume` is False.
    """
    before = _state(run.store)
    if run.revisions is not None:
        from stratalens.plugin.cli.hub_jobs import sweep_run

        sweep_run(run, resume=resume, force=force)
    else:
        _record_stages(run, resume=resume, force=force)
    write_run_file(run, run_file_of(run.store))
    if _state(run.store) == before:
        print_status(
            f"nothing to do: every row of every stage of {run.store} is committed "
            "(`stratalens verify` checks the bytes)"
        )
    else:
        print_status(f"recorded {run.store}")
    return run.store


def _record_stages(run: RunFile, *, resume: bool, force: bool) -> None:
    from stratalens.plugin.capture.run import capture_stages
    from stratalens.plugin.progress import StageLines, is_interactive

    stages = run_stages(run)
    table = read_prompts(run.prompts, stages, run.add_generation_prompt)
    make_parent(run.store)
    # A mapping has no numbers: the capture then places new stages by name among those of the store.
    has_numbers = any(entry.order is not None for entry in run.stages)
    progress = None if is_interactive() else StageLines([stage.name for stage in stages], print_status)
    with suppress_progress_bars(downloads=False), print_warnings():
        capture_stages(
            stages if has_numbers else {stage.name: stage.source for stage in stages},
            table,
            run.store,
            replace(run.capture_options(), resume=resume, force=force, progress=progress),
        )


def check_model(model: str, prompts: Path | None, device: str | None) -> CheckReport:
    """Load a model and check its hooks.

    Args:
        model: checkpoint folder, or name on the Hugging Face Hub.
        prompts: file of a prompt table, or None.
        device: device of the model, or None.
    """
    from stratalens.plugin.check.check import check
    from stratalens.plugin.stages.checkpoints import Checkpoint, Revision
    from stratalens.plugin.stages.stage import Stage, loaded_model

    stage = Stage("model", 0, Checkpoint(Path(model)) if Path(model).is_dir() else Revision(model, "main"))
    table = read_prompts(prompts, [stage]) if prompts is not None else None
    with suppress_progress_bars(downloads=False), loaded_model(stage, None, device) as loaded:
        return check(loaded, table)


def _state(store: str | Path) -> tuple[str, str] | None:
    """Return a value that changes when a row is recorded, or None if there is no store yet."""
    from stratalens.store.format.metadata import ROOT
    from stratalens.store.state.manifest import load
    from stratalens.store.storage.resolve import storage_at

    storage = storage_at(store)
    if storage.kind() != "folder" or storage.get(ROOT) is None:
        return None
    state = load(storage)
    return state.checksum, state.commits().key


def study_settings(run_file: Path | None, preset_name: str | None, seed: int | None) -> StudySettings:
    """Return the settings of a study from a run file or a preset.

    Args:
        run_file: YAML file with the settings, or None.
        preset_name: name of a preset, or None.
        seed: replaces the seed of the settings, unless it is None.

    Raises:
        InputError: both a run file and a preset, or neither; or the settings are wrong.
    """
    from stratalens.plugin.study.config.presets import PRESETS, get_preset
    from stratalens.plugin.study.config.settings import read_settings, validate_settings

    if (run_file is None) == (preset_name is None):
        raise InputError(f"give either a run file or --preset, one of {', '.join(PRESETS)}")
    settings = read_settings(run_file) if run_file is not None else get_preset(str(preset_name))
    if seed is None:
        return settings
    return validate_settings({**settings.model_dump(), "seed": seed, "seeds": ()}, "--seed")


def forecast_run(run: RunFile) -> dict[str, Any]:
    """Forecast the bytes, files, tokens, memory and time of a capture.

    The forecast loads the model and writes nothing. With `revisions`, it forecasts the downloads and loads nothing.
    """
    if run.revisions is not None:
        from stratalens.plugin.cli.hub_jobs import forecast_sweep

        return forecast_sweep(run)
    from stratalens.plugin.capture.forecast import forecast_capture

    # The forecast runs on this machine, which may not have the device of the run.
    options = replace(run.capture_options(), device=None)
    stages = run_stages(run)
    with suppress_progress_bars(downloads=False):
        return forecast_capture(stages, read_prompts(run.prompts, stages, run.add_generation_prompt), options)
