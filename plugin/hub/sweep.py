"""sweep_hub(): record a suite of checkpoints on the hub, one after the other, without filling the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from huggingface_hub import constants
from torch import nn

from stratalens.analyses.accessor import open_store
from stratalens.plugin.capture.options import CaptureOptions
from stratalens.plugin.capture.run import capture_stages
from stratalens.plugin.capture.store_defaults import existing_store
from stratalens.plugin.hub.checkpoint_queue import CheckpointQueue, Download
from stratalens.plugin.hub.client import Hub
from stratalens.plugin.hub.preflight import FileRow, Inspection, inspect_repository
from stratalens.plugin.hub.recorded_weights import complete_stages, note_weights
from stratalens.plugin.hub.revisions import HubRevision, Revisions, read_revision
from stratalens.plugin.hub.sweep_progress import Say, SweepProgress, line_printer
from stratalens.plugin.progress import format_duration, suppress_progress_bars
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.checkpoints import Checkpoint
from stratalens.plugin.stages.stage import Stage, resolve_stage_order
from stratalens.store.display import human_bytes
from stratalens.store.errors import InputError, StoreExistsError, suggest
from stratalens.store.files import user_path
from stratalens.store.format.layout import forecast as store_forecast
from stratalens.store.state.manifest import StageEntry, load
from stratalens.store.storage.resolve import is_url, storage_at

Faults = Literal["raise", "skip_known", "skip", "record"]
FAULTS = ("raise", "skip_known", "skip", "record")
_SHOWN = 10  # faults in one message
FORECAST_SPEED = 12.5e6  # bytes per second (100 Mbit/s) of the forecast, before anything was downloaded


def sweep_hub(
    repository: str,
    revisions: Revisions,
    table: PromptTable,
    path: str | os.PathLike[str],
    *,
    faults: Faults = "raise",
    compare: Literal["all", "selected"] = "all",
    scratch: str | os.PathLike[str] | None = None,
    hub: Hub | None = None,
    progress: Any = None,
    **options: Any,
) -> xr.Dataset:
    """Record revisions of a model on the Hugging Face hub: download, record and delete one after the other.

    `preflight` runs first, so that a revision that is not what it claims to be is named before any weights move. Then
    the next checkpoint downloads while this one is recorded. At most two are on the disk, and one where the disk has no
    room for two. A killed sweep resumes when you repeat the call: complete stages are compared with the hashes on the
    hub and are not downloaded again.

    Args:
        repository: name of the model on the hub, such as "EleutherAI/pythia-70m".
        revisions: a pattern such as "step*"; "log:16" for 16 revisions at about equal distances of the logarithm of
            their step; or a list of names and patterns. Each is a stage of the store, in the order of training; a slash
            in its name becomes a dash.
        table: the prompts.
        path: folder or fsspec URL of the store.
        faults: what to do with revisions that `preflight` finds wrong. "raise" refuses the sweep and names them;
            "skip_known" leaves out those whose fault is a known one of a public suite, and refuses others; "skip"
            leaves out all of them; "record" records everything that can be loaded, wrong or not.
        compare: "all" compares the revisions with all others of the same run, "selected" with each other, in fewer
            requests.
        scratch: folder for the checkpoints; None takes a folder next to the store.
        hub: how to reach the hub; None takes the settings of huggingface_hub.
        progress: True, False, a function as for `capture`, or None for lines on a terminal and in a notebook.
        **options: the options of `capture` (sites, layers, positions, dtype, batch_size, statistics, ...), without
            `rank`.

    Returns:
        The store as a lazy Dataset.

    Raises:
        InputError: there is no such repository, it is gated, nothing matches, revisions are faulty, or an option is
            invalid.
        MismatchError: the hub has other weights for a recorded stage now, or a stage does not fit the store.
        NoSpaceError: the disk has no room for a checkpoint.
        UnreachableError: the hub did not answer at any attempt.

    Example:
        >>> ds = sl.sweep_hub(
        ...     "EleutherAI/pythia-70m", "log:16", table, "pythia.zarr", faults="skip_known", positions=("last",)
        ... )  # doctest: +SKIP
    """
    capture_options = _capture_options(options)
    job = SweepJob(repository, revisions, faults, compare, scratch, hub or Hub())
    return run_sweep(job, table, path, replace(capture_options, progress=progress), line_printer(progress))


@dataclass(frozen=True)
class SweepJob:
    """What a sweep records; `sweep_hub` documents each field."""

    repository: str
    revisions: Revisions
    faults: str = "raise"
    compare: str = "all"
    scratch: str | os.PathLike[str] | None = None
    hub: Hub = field(default_factory=Hub)

    def inspect(self, say: Say) -> tuple[Inspection, list[HubRevision]]:
        """Check the revisions, and return those to record.

        Raises:
            InputError: a revision is faulty and `faults` does not say to skip it, or no revision is left.
        """
        if self.faults not in FAULTS:
            raise InputError(f"faults={self.faults!r}: {suggest(str(self.faults), FAULTS)}")
        inspection = inspect_repository(self.repository, self.revisions, compare=self.compare, hub=self.hub, say=say)
        for note in inspection.notes:
            say(f"{self.repository}: {note}")
        return inspection, sound_revisions(inspection, self.faults, say)


def _capture_options(options: Mapping[str, Any]) -> CaptureOptions:
    valid = [f.name for f in fields(CaptureOptions) if f.name not in ("rank", "progress")]
    for name in options:
        if name not in valid:
            raise InputError(f"sweep_hub has no option {name!r}: {suggest(name, valid, limit=20)}")
    return CaptureOptions(**options)


def sound_revisions(inspection: Inspection, faults: str, say: Say) -> list[HubRevision]:
    """Return the revisions that a sweep records, in training order; arguments and errors are those of `SweepJob`."""
    for row in inspection.rows:
        if row.leave_out and row.revision not in inspection.files:
            say(f"not on the hub: {row.note}")
    rows = inspection.faults()
    if faults == "record":
        wrong = inspection.not_loadable()
    else:
        stopping = [row for row in rows if faults == "raise" or (faults == "skip_known" and not row.known)]
        if stopping:
            raise InputError(_faults_message(inspection, stopping))
        wrong = {row.revision for row in rows}
    for row in rows:
        action = "left out" if row.revision in wrong else "recorded although it is faulty"
        say(f"{row.revision} is {action}: {row.note}{f' ({row.issue})' if row.issue else ''}")
    left = [revision for revision in inspection.revisions if revision.name not in wrong]
    if not left:
        raise InputError(
            f"none of the {len(inspection.revisions)} chosen revisions of {inspection.repository} can be recorded with "
            f"faults={faults!r}. sl.preflight lists the reasons. Choose other revisions."
        )
    return left


def _faults_message(inspection: Inspection, rows: Sequence[FileRow]) -> str:
    """Write the message of a sweep that faulty revisions stop; nothing was downloaded."""
    names = list(dict.fromkeys(row.revision for row in rows))
    first = {row.revision: row for row in reversed(rows)}
    lines = [f"{name}: {row.note}{f' ({row.issue})' if row.issue else ''}" for name, row in first.items()]
    lines.sort(key=lambda line: names.index(line.partition(": ")[0]))
    more = f"\n  and {len(lines) - _SHOWN} more; sl.preflight lists all" if len(lines) > _SHOWN else ""
    count = "1 revision is" if len(names) == 1 else f"{len(names)} revisions are"
    listing = "\n  ".join(lines[:_SHOWN])
    known = " faults='skip_known' leaves out those with a known fault," if any(row.known for row in rows) else ""
    return (
        f"{count} of {inspection.repository} not what the name says; no weights were downloaded.\n  {listing}{more}\n"
        f"Choose other revisions, or pass faults= (in a run file `faults:`):{known} 'skip' leaves out all of them, and "
        "'record' records what can be loaded."
    )


def forecast_downloads(downloads: Sequence[Download]) -> dict[str, Any]:
    """Forecast the downloads of a sweep.

    Returns:
        checkpoints, download_bytes, checkpoint_disk_bytes (of the two largest neighbours) and download_seconds at
        100 Mbit/s.
    """
    sizes = [download.nbytes() for download in downloads]
    pairs = [a + b for a, b in pairwise(sizes)] or sizes
    return {
        "checkpoints": len(sizes),
        "download_bytes": sum(sizes),
        "checkpoint_disk_bytes": max(pairs, default=0),
        "download_seconds": round(sum(sizes) / FORECAST_SPEED, 1),
    }


def downloads_of(inspection: Inspection, revisions: Sequence[HubRevision]) -> list[Download]:
    """Return the downloads of revisions, in order."""
    return [Download(revision.stage, inspection.files[revision.name], inspection.main) for revision in revisions]


def run_sweep(
    job: SweepJob, table: PromptTable, path: str | os.PathLike[str], options: CaptureOptions, say: Say
) -> xr.Dataset:
    """Run a sweep; arguments, result and errors are those of `sweep_hub`."""
    if not isinstance(table, PromptTable):
        raise InputError(
            f"table is of type {type(table).__name__}. Pass PromptTable.read(file) or PromptTable.from_dataframe(df)."
        )
    if not options.resume and existing_store(path) is not None:
        raise StoreExistsError(f"{path} exists, and resume=False. Choose another path, or pass resume=True.")
    if job.faults == "record":
        options = replace(options, allow_same_weights=True)
    inspection, revisions = job.inspect(say)
    files = {revision.stage: inspection.files[revision.name] for revision in revisions}
    complete = complete_stages(path, table, options, job.repository, files)
    missing = [revision for revision in revisions if revision.stage not in complete]
    if complete:
        say(
            f"{len(complete)} of {len(revisions)} checkpoints are recorded already, and the hub still has their weights"
        )
    if not missing:
        return open_store(path)
    _Sweep(job, inspection, revisions, missing, path, options, say).run(table)
    return open_store(path)


class _Sweep:
    """The recording of the revisions that a store does not have."""

    def __init__(
        self,
        job: SweepJob,
        inspection: Inspection,
        chosen: Sequence[HubRevision],
        missing: Sequence[HubRevision],
        path: str | os.PathLike[str],
        options: CaptureOptions,
        say: Say,
    ) -> None:
        self._job, self._path, self._options, self._say = job, path, options, say
        self._chosen = chosen
        self._files = {revision.stage: inspection.files[revision.name] for revision in missing}
        self._downloads = downloads_of(inspection, missing)
        self._stages = [revision.stage for revision in missing]
        self._reserve: dict[str, int] = {}

    def run(self, table: PromptTable) -> None:
        """Record all revisions."""
        forecast = forecast_downloads(self._downloads)
        self._say(
            f"{forecast['checkpoints']} checkpoints to record: {human_bytes(forecast['download_bytes'])} to download, "
            f"{human_bytes(forecast['checkpoint_disk_bytes'])} on the disk at most, about "
            f"{format_duration(forecast['download_seconds'])} of downloads at 100 Mbit/s"
        )
        folder = scratch_folder(self._path, self._job.scratch, self._job.repository)
        stages = self._capture_stages()
        with ExitStack() as stack:
            stack.enter_context(suppress_progress_bars())  # downloads run during the recording
            self._queue = stack.enter_context(
                CheckpointQueue(
                    self._job.hub, self._job.repository, folder, self._downloads, self._note_used, self._say
                )
            )
            other = self._options.progress if callable(self._options.progress) else None
            progress = SweepProgress(self._stages, self._say, other, self._prefetch)
            options = replace(self._options, progress=progress)
            capture_stages(stages, table, self._path, options)

    def _capture_stages(self) -> list[Stage]:
        """Return the stages to record, with their places in training."""
        store = existing_store(self._path)
        orders = training_orders(self._chosen, store.stages if store is not None else ())
        return [Stage(stage, orders[stage], self._loader(stage)) for stage in self._stages]

    def _loader(self, stage: str) -> Any:
        """Return a function that loads the model of a stage when it is recorded."""

        def load_checkpoint() -> nn.Module:
            folder = self._queue.take(stage)
            model = Checkpoint(folder).load(self._options.tokenizer, self._options.device)
            config: Any = getattr(model, "cfg", None)
            if hasattr(config, "model_name"):
                config.model_name = self._job.repository  # the folder is gone when the provenance is read
            return model

        return load_checkpoint

    def _prefetch(self, stage: str) -> None:
        """Start the next download; the store is open and has its room."""
        self._queue.prefetch(self._store_bytes() * (len(self._stages) - self._stages.index(stage)))

    def _store_bytes(self) -> int:
        """Return the bytes of one stage in the store; 0 where the store is not on a local disk."""
        if is_url(self._path):
            return 0
        if not self._reserve:
            store = load(storage_at(self._path))
            variables = [v for group in store.groups for v in group if v.attrs.get("kind") != "flag"]
            self._reserve["bytes"] = store_forecast(
                variables,
                entities=store.entities,
                stages=1,
                layers=len(store.layers),
                tokens=len(store.tokens),
                full_sequence=store.geometry.full_sequence,
                memory_limit=self._options.memory_limit,
                block_size=store.block_size,
            ).nbytes
        return self._reserve["bytes"]

    def _note_used(self, stage: str) -> None:
        note_weights(self._path, stage, self._job.repository, self._files[stage])


def training_orders(revisions: Sequence[HubRevision], stored: Sequence[StageEntry]) -> dict[str, int]:
    """Return the place in training of every revision, by stage: its training step, unless the store counts otherwise.

    Args:
        revisions: all chosen revisions in training order.
        stored: stages of the store.

    Raises:
        InputError: the store numbers its stages otherwise, and a revision belongs between two of them.

    Example:
        >>> training_orders([read_revision("step0"), read_revision("step8")], [])
        {'step0': 0, 'step8': 8}
        >>> training_orders([read_revision("step8"), read_revision("step9")], [StageEntry("step8", 0, "")])
        {'step8': 0, 'step9': 1}
    """
    by_step = {revision.stage: revision.order or 0 for revision in revisions}
    have_steps = all(read_revision(revision.name).order is not None for revision in revisions)
    agree = all(by_step.get(entry.name, entry.order) == entry.order for entry in stored)
    if not stored or (have_steps and agree):
        return by_step
    return resolve_stage_order([Stage(name, 0, None) for name in by_step], stored, named=True)


def scratch_folder(path: str | os.PathLike[str], scratch: str | os.PathLike[str] | None, repository: str) -> Path:
    """Return the folder for the checkpoints of a sweep; it belongs to the sweep alone.

    Example:
        >>> scratch_folder("runs/pythia.zarr", None, "EleutherAI/pythia-70m").as_posix()
        'runs/pythia.zarr.checkpoints/EleutherAI--pythia-70m'
    """
    name = repository.replace("/", "--")
    if scratch is not None:
        return user_path(scratch) / f"stratalens-{name}"
    if is_url(path):
        return Path(constants.HF_HOME) / "stratalens" / name
    local = user_path(str(path).removeprefix("file://"))
    return local.with_name(f"{local.name}.checkpoints") / name
