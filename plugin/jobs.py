"""What the commands do: a run file captured, a store described, verified, analysed, reported, exported.

The command line (`stratalens.cli`) reads arguments, this module joins plugin,
store and analyses; each is imported when its job runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from stratalens.console import note, told_warnings
from stratalens.runfile import RunFile, StageEntry, beside, read_beside, write_run_file
from stratalens.store.errors import InputError, near
from stratalens.store.places import is_url

if TYPE_CHECKING:
    import xarray as xr

    from stratalens.recency.settings import StudySettings
    from stratalens.stages import Source, Stage


def run_stages(run: RunFile) -> list[Stage]:
    """Stages of a run file, in training order; without any, the model itself is the stage called "model"."""
    from stratalens.stages import Stage

    entries = run.stages or (StageEntry(name="model"),)
    given = [entry.order for entry in entries]
    if any(order is None for order in given) and any(order is not None for order in given):
        raise InputError("stages: give every stage an `order`, or none (they are then numbered as listed, from 0)")
    orders = [i if order is None else order for i, order in enumerate(given)]
    listed = [Stage(entry.name, order, _source(run, entry)) for entry, order in zip(entries, orders, strict=True)]
    return sorted(listed, key=lambda stage: stage.order)


def _source(run: RunFile, entry: StageEntry) -> Source:
    from stratalens.checkpoints import Checkpoint, LoraAdapter, Revision

    if entry.path is not None:
        return Checkpoint(entry.path)
    if entry.adapter is not None:
        return LoraAdapter(entry.adapter, base=run.model)
    assert run.model is not None  # the run file refuses such a stage without it
    if entry.revision is not None:
        return Revision(run.model, entry.revision)
    return Checkpoint(run.model) if Path(run.model).is_dir() else Revision(run.model, "main")


def capture_run(run: RunFile, *, resume: bool = True, force: bool = False) -> str | Path:
    """Record every stage of a run file; the complete run file is written beside the store.

    Args:
        run: the run.
        resume: False refuses a store that is there already.
        force: record even where the disk seems too small for the whole store.

    Returns:
        The store.
    """
    from stratalens.capturing import capture
    from stratalens.progress import StageLines, on_a_screen
    from stratalens.prompts import PromptTable

    table = PromptTable.read(run.prompts)
    stages = run_stages(run)
    if isinstance(run.store, Path):
        run.store.parent.mkdir(parents=True, exist_ok=True)
    # Without numbers of their own, stages are placed after the names that the store has, as a mapping's are.
    numbered = any(entry.order is not None for entry in run.stages)
    quiet_loading()
    before = _state(run.store)
    with told_warnings():
        capture(
            stages if numbered else {stage.name: stage.source for stage in stages},
            table,
            run.store,
            sites=run.sites,
            layers=run.layers,
            positions=run.positions,
            dtype=run.dtype,
            compression=run.compression,
            batch_size=run.batch_size,
            device=run.device,
            statistics=run.statistics,
            allow_same_weights=run.allow_same_weights,
            resume=resume,
            force=force,
            progress=None if on_a_screen() else StageLines([stage.name for stage in stages], note),
        )
    write_run_file(run, beside(run.store))
    if _state(run.store) == before:
        note(
            f"nothing to do: every row of every stage of {run.store} is committed "
            "(`stratalens verify` checks the bytes)"
        )
    else:
        note(f"recorded {run.store}")
    return run.store


def _state(store: str | Path) -> tuple[str, str] | None:
    """What tells whether anything was recorded; None where there is no store yet."""
    from stratalens.store.manifest import load
    from stratalens.store.metadata import ROOT
    from stratalens.store.places import storage_at

    storage = storage_at(store)
    if storage.kind() != "folder" or storage.get(ROOT) is None:
        return None
    held = load(storage)
    return held.checksum, held.commits().key


def quiet_loading() -> None:
    """No bar for each model that is loaded; those of downloads, which take minutes, stay as they are."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    silent = are_progress_bars_disabled()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if not silent:
        enable_progress_bars()


def study_settings(run_file: Path | None, preset_name: str | None, seed: int | None) -> StudySettings:
    """Settings of a study from a run file or a preset.

    Raises:
        InputError: both or neither are given, or the settings are wrong.
    """
    from stratalens.recency.presets import PRESETS, preset
    from stratalens.recency.settings import read_settings, validate

    if (run_file is None) == (preset_name is None):
        raise InputError(f"give either a run file or --preset, one of {', '.join(PRESETS)}")
    settings = read_settings(run_file) if run_file is not None else preset(str(preset_name))
    if seed is None:
        return settings
    return validate({**settings.model_dump(), "seed": seed, "seeds": ()}, "--seed")


def forecast_run(run: RunFile) -> dict[str, Any]:
    """What a capture will need: bytes, files, tokens, memory. The model is looked at, nothing is written."""
    from stratalens.forecast import forecast
    from stratalens.prompts import PromptTable

    quiet_loading()
    return forecast(
        run_stages(run),
        PromptTable.read(run.prompts),
        sites=run.sites,
        layers=run.layers,
        positions=run.positions,
        dtype=run.dtype,
        statistics=run.statistics,
    )


def verify_job(store: str, *, repair: bool) -> dict[str, Any]:
    """Verify a store with a progress bar; with `repair`, mark what is damaged as missing first."""
    from stratalens.store.verify import verify_store

    with tqdm(unit="B", unit_scale=True, desc="verify", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify_store(store, repair=repair, progress=advance)
    for line in report.repaired:
        note(line)
    return report.to_json()


def analyze_store(
    store: str,
    *,
    by: str | None,
    verbs: Sequence[str],
    site: str | None,
    backend: str,
    scheduler: str | None,
    out: Path | None,
    seed: int,
) -> Path:
    """Run the verbs on a store and write each result as a labelled zarr group.

    Returns:
        The folder with the results.
    """
    from stratalens.analyses.results import write_results
    from stratalens.analyses.suite import run_suite
    from stratalens.opening import open_store
    from stratalens.store.info import info

    ds = open_store(store)
    note_incomplete(info(store))
    with _cluster(scheduler):
        suite = run_suite(ds, by=_by(ds, store, by), verbs=verbs, site=site, backend=backend, seed=seed, tell=note)
    folder = out if out is not None else _results(store) / "latest"
    write_results(suite.results, folder)
    return folder


def note_incomplete(facts: Mapping[str, Any]) -> None:
    """Say that rows or stages which were to be recorded are not there."""
    from stratalens.store.info import state_in_words

    if not facts["complete"]:
        note(f"{facts['path']} is {state_in_words(facts)}; the capture, run again, records the rest")


def _results(store: str) -> Path:
    """Folder beside a store; for one behind a URL, in the working directory."""
    name = store.rstrip("/")
    return Path(f"{name.rsplit('/', 1)[1] if is_url(name) else name}.results")


def report_store(store: str, out: Path, *, by: str | None) -> Path:
    """Write the report of a store; analyses whose results are cached beside it are not run again."""
    from stratalens.analyses.report import report
    from stratalens.analyses.suite import VERBS, run_suite
    from stratalens.opening import open_store
    from stratalens.store.info import info

    ds, facts = open_store(store), info(store)
    note_incomplete(facts)
    suite = run_suite(ds, by=_by(ds, store, by), verbs=VERBS, tell=note)
    title = f"stratalens: {Path(store).name}"
    return report(suite.results, out, store_info=facts, notes=suite.skipped, title=title)


def explore_store(store: str, *, port: int, show: bool, told: Callable[[dict[str, str]], None] | None = None) -> None:
    """Serve the live page of a store until Ctrl-C; the store is only read. `told` is given {store, url} before."""
    from stratalens.analyses.explorer import explore
    from stratalens.analyses.explorer.serve import ADDRESS, free_port
    from stratalens.opening import open_store

    ds, port = open_store(store), free_port(port)

    def tell(message: str) -> None:
        note(message)
        if told is not None:
            told({"store": store, "url": f"http://{ADDRESS}:{port}"})

    with suppress(KeyboardInterrupt):
        explore(ds, port, show=show, tell=tell)
    note("the explorer has ended")


def _by(ds: xr.Dataset, store: str, by: str | None) -> str:
    """The label column: the one given, else that of the run file beside the store, else trained_stage."""
    run = None if by else read_beside(store)
    chosen = by or (run.by if run is not None else "trained_stage")
    columns = [str(name) for name, coord in ds.coords.items() if coord.dims == ("entity",) and name != "entity"]
    if chosen not in columns:
        raise InputError(f"--by {chosen!r} is not a label column of {store}; {near(chosen, columns)}")
    return chosen


def _cluster(scheduler: str | None) -> Any:
    if scheduler is None:
        return nullcontext()
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--scheduler needs dask's cluster part: pip install 'stratalens[cluster]'") from error
    try:
        return Client(scheduler, timeout="10s")  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(f"no dask scheduler answers at {scheduler!r} ({error}); give its tcp://host:port") from error


def export_site(store: str, *, site: str, layer: int | None, target: Path) -> None:
    """Write one site at one layer, all stages, as .npy or .safetensors.

    Raises:
        InputError: unknown site, layer or file type; rows that were not recorded are an error of the store.
    """
    from stratalens.store.export import export_array

    export_array(store, site=site, layer=layer, target=target)
