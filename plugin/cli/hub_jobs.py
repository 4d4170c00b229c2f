"""The work of the commands about revisions on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stratalens.plugin.cli.output import emit_table, emit_text, print_status, print_warnings
from stratalens.plugin.cli.prompt_file import read_prompts
from stratalens.plugin.cli.run_file import RunFile, make_parent
from stratalens.plugin.progress import format_duration
from stratalens.store.display import human_bytes

if TYPE_CHECKING:
    from stratalens.plugin.hub.sweep import SweepJob
    from stratalens.plugin.prompts.table import PromptTable


def sweep_job(run: RunFile) -> SweepJob:
    """Return the sweep that a run file with `revisions` describes."""
    from stratalens.plugin.hub.sweep import SweepJob

    assert run.model is not None  # the run file was checked
    revisions = run.revisions if isinstance(run.revisions, str) else list(run.revisions or ())
    return SweepJob(run.model, revisions, faults=run.faults, scratch=run.scratch)


def sweep_run(run: RunFile, *, resume: bool, force: bool) -> None:
    """Record the revisions of a run file; arguments and errors are those of `capture_run`."""
    from stratalens.plugin.hub.sweep import run_sweep

    table = _read_table(run)
    make_parent(run.store)
    options = replace(run.capture_options(), resume=resume, force=force)
    with print_warnings():
        run_sweep(sweep_job(run), table, run.store, options, print_status)


def forecast_sweep(run: RunFile) -> dict[str, Any]:
    """Forecast the downloads of a run file with `revisions`; no weights are downloaded.

    Returns:
        rows, checkpoints, download_bytes, checkpoint_disk_bytes and download_seconds.
    """
    from stratalens.plugin.hub.sweep import downloads_of, forecast_downloads

    table = _read_table(run)
    inspection, revisions = sweep_job(run).inspect(print_status)
    return {"rows": len(table) * len(revisions), **forecast_downloads(downloads_of(inspection, revisions))}


def _read_table(run: RunFile) -> PromptTable:
    """Read the prompts; the chat template of a table of chats is that of the main branch."""
    from stratalens.plugin.stages.checkpoints import Revision
    from stratalens.plugin.stages.stage import Stage

    assert run.model is not None
    return read_prompts(run.prompts, [Stage("model", 0, Revision(run.model, "main"))], run.add_generation_prompt)


def run_preflight(repository: str, revisions: list[str], compare: str) -> dict[str, Any]:
    """Check revisions of a repository.

    Returns:
        repository, ok, faults, notes, a summary of the downloads, and one object for each file.
    """
    from stratalens.plugin.hub.preflight import inspect_repository
    from stratalens.plugin.hub.sweep import downloads_of, forecast_downloads

    chosen: Any = revisions[0] if len(revisions) == 1 else revisions or "step*"
    inspection = inspect_repository(repository, chosen, compare=compare, say=print_status)
    wrong = {row.revision for row in inspection.faults()}
    sound = [revision for revision in inspection.revisions if revision.name not in wrong]
    table = inspection.table()
    table["step"] = table["step"].astype(object).where(table["step"].notna(), None)
    return {
        "repository": repository,
        "ok": not wrong,
        "revisions": len(inspection.revisions),
        "faulty": [revision.name for revision in inspection.revisions if revision.name in wrong],
        "notes": list(inspection.notes),
        "sound": forecast_downloads(downloads_of(inspection, sound)),
        "files": table.to_dict("records"),
    }


def show_preflight(result: dict[str, Any]) -> None:
    """Print the faults of a preflight as a table, and a summary."""
    faults = [row for row in result["files"] if row["verdict"] != "ok"]
    if faults:
        emit_table(
            f"{result['repository']}: revisions that are not what they claim to be",
            ["revision", "verdict", "left out", "file", "reason"],
            [
                (
                    row["revision"],
                    row["verdict"],
                    "yes" if row["leave_out"] else "no",
                    row["file"],
                    " ".join(filter(None, (row["note"], row["issue"]))),
                )
                for row in faults
            ],
        )
    for note in result["notes"]:
        emit_text(f"note\t{note}")
    sound = result["sound"]
    emit_text(
        f"{'ok' if result['ok'] else 'faulty'}: {sound['checkpoints']} of {result['revisions']} revisions are sound; "
        f"{human_bytes(sound['download_bytes'])} to download, {human_bytes(sound['checkpoint_disk_bytes'])} on the "
        f"disk at most, about {format_duration(sound['download_seconds'])} of downloads at 100 Mbit/s"
    )
