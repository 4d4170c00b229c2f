"""The work of the commands that read a store: verify, analyze, report, explore.

Each library is imported when its command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from stratalens.plugin.cli.analysis_options import as_options
from stratalens.plugin.cli.output import print_status
from stratalens.plugin.cli.run_file import read_run_file_of
from stratalens.store.errors import InputError
from stratalens.store.storage.resolve import is_url

if TYPE_CHECKING:
    import xarray as xr

    from stratalens.analyses.suite import Suite


def verify_job(store: str, *, repair: bool) -> dict[str, Any]:
    """Verify a store, or a folder of cached results, with a progress bar.

    Args:
        store: path or URL of the store, or a folder such as run.zarr.results.
        repair: mark damaged shards as missing first.

    Returns:
        The `VerifyReport` as a dict.
    """
    from stratalens.analyses.sweep.cache_checks import is_results_folder, verify_results
    from stratalens.store.files import user_path
    from stratalens.store.integrity.verify import verify_store

    if not is_url(store) and is_results_folder(user_path(store)):
        report = verify_results(user_path(store), repair=repair)
        for line in report.repaired:
            print_status(line)
        return report.to_json()
    with tqdm(unit="B", unit_scale=True, desc="verify", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify_store(store, repair=repair, progress=advance)
    for line in report.repaired:
        print_status(line)
    return report.to_json()


def push_job(store: str, url: str, **options: Any) -> dict[str, Any]:
    """Push a store with a progress bar and return the result of `push`.

    Args:
        store: folder of the store.
        url: address of the shared copy.
        options: other arguments of `push`.
    """
    from stratalens.plugin.interop.push import push

    with tqdm(unit="B", unit_scale=True, desc="push", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        sent = push(store, url, progress=advance, **options)
    print_status(
        f"{url} has {store}: {sent['files']} of {sent['total_files']} data files were sent. Open it with "
        f'stratalens.open_store("{url}")'
    )
    return sent


def analyze_store(
    store: str,
    *,
    by: str | None,
    verbs: Sequence[str],
    scheduler: str | None,
    out: Path | None,
    **options: Any,
) -> dict[str, Any]:
    """Run analyses on a store and write each result as a labelled zarr group.

    Args:
        store: path or URL of the store.
        by: label column; None = that of the run file, else `default_label_column`.
        verbs: sets of analyses.
        scheduler: address of a dask cluster.
        out: results folder; None = STORE.results/latest.
        options: other arguments of `run_suite`; permutations = None takes the default of each analysis.

    Returns:
        The answer as `answer_table` describes it, with the entries store, folder and results.
    """
    from stratalens.analyses.accessor import open_store
    from stratalens.analyses.results import write_results
    from stratalens.plugin.cli.answer_table import answer_of
    from stratalens.store.state.info import info

    ds = open_store(store)
    note_incomplete(info(store))
    with _cluster(scheduler):
        suite = _run_suite(ds, store, by, verbs=verbs, **options)
    folder = out if out is not None else results_folder(store) / "latest"
    write_results(suite.results, folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return {"store": store, "folder": folder, "results": names, **answer_of(suite)}


def _run_suite(ds: xr.Dataset, store: str, by: str | None, permutations: int | None, **options: Any) -> Suite:
    """Run the standard analyses; messages name options of the command line."""
    from stratalens.analyses.suite import default_permutations, run_suite

    column = choose_column(ds, store, by)
    chosen = {name: options[name] for name in ("site", "order", "pairs", "folds") if name in options}
    nulls: dict[str, Any] = {"probe_permutations": default_permutations(ds, column, **chosen)}
    if permutations is not None:
        nulls = {"probe_permutations": permutations, "permutations": permutations}
    try:
        suite = run_suite(ds, by=column, tell=lambda line: print_status(as_options(line)), **nulls, **options)
    except InputError as error:
        raise InputError(as_options(str(error))) from error
    suite.skipped = [as_options(line) for line in suite.skipped]
    return suite


def note_incomplete(facts: Mapping[str, Any]) -> None:
    """Print a note when planned rows or stages are missing."""
    from stratalens.store.state.info import state_in_words

    if not facts["complete"]:
        print_status(f"{facts['path']} is {state_in_words(facts)}; run the capture again to record the rest")


def results_folder(store: str) -> Path:
    """Return the results folder: next to the store, or in the working directory if the store is a URL."""
    name = store.rstrip("/")
    return Path(f"{name.rsplit('/', 1)[1] if is_url(name) else name}.results")


def report_store(store: str, out: Path, *, by: str | None, title: str | None = None, **options: Any) -> Path:
    """Write the report of a store; reuse analyses whose results are cached next to it.

    Results of `intervene` in the results folder next to the store get a section of their own.

    Args:
        store: path or URL of the store.
        out: the page.
        by: label column; None = that of the run file, else `default_label_column`.
        title: heading of the page; None = that of the run file, else a question about the groups.
        options: other arguments of `run_suite`.
    """
    from stratalens.analyses.accessor import open_store
    from stratalens.analyses.directions.effect_files import read_effects
    from stratalens.analyses.report.report import report
    from stratalens.store.state.info import info

    ds, facts = open_store(store), info(store)
    note_incomplete(facts)
    suite = _run_suite(ds, store, by, **options)
    run = read_run_file_of(store)
    if run is not None:
        title = title or run.title
        model = run.model or _common_folder([stage.path for stage in run.stages])
        facts = facts | ({"model": model} if model else {})  # the store names the model of its last stage
    results: dict[str, Any] = dict(suite.results)
    if effects := read_effects(results_folder(store)):
        results["interventions"] = effects
    return report(results, out, store_info=facts, notes=suite.skipped, title=title)


def _common_folder(paths: Sequence[Path | None]) -> str | None:
    """Return the name of the folder that holds the checkpoints of all stages; None if there is no single one.

    >>> _common_folder([Path("runs/animals/step0"), Path("runs/animals/step60")]), _common_folder([None])
    ('animals', None)
    """
    folders = {path.parent for path in paths if path is not None}
    return folders.pop().name or None if len(folders) == 1 and len(paths) > 1 else None


def explore_store(
    store: str,
    *,
    port: int,
    show: bool,
    by: str | None = None,
    seed: int | None = None,
    on_start: Callable[[dict[str, str]], None] | None = None,
) -> None:
    """Serve the live page of a store until Ctrl-C.

    The page reads the store and never writes to it.

    Args:
        store: path or URL of the store.
        port: port on 127.0.0.1; 0 takes any free one.
        show: open the page in the system's browser.
        by: label column at the start; None = that of the run file, else the most useful one.
        seed: of halves, folds and shuffles; None = that of the study whose folder has the store, else 0.
        on_start: called with {store, url} when the page is ready.
    """
    from stratalens.analyses.accessor import open_store
    from stratalens.analyses.explorer import explore
    from stratalens.analyses.explorer.server import ADDRESS, free_port

    ds, port = open_store(store), free_port(port)

    def announce(message: str) -> None:
        print_status(message)
        if on_start is not None:
            on_start({"store": store, "url": f"http://{ADDRESS}:{port}"})

    with suppress(KeyboardInterrupt):
        explore(ds, port, show=show, by=_preferred(ds, store, by), tell=announce, **_fit_of(store, seed))
    print_status("the explorer has ended")


def _fit_of(store: str, seed: int | None) -> dict[str, Any]:
    """Return seed, C and folds of the study in whose folder the store is, so that the page repeats its report."""
    from stratalens.plugin.study.config.settings import is_study_file, read_settings

    fit: dict[str, Any] = {}
    path = Path(store).parent / "run.yaml"
    if not is_url(store) and path.is_file() and is_study_file(path):
        try:
            settings = read_settings(path)
        except InputError:  # another program's file
            return {} if seed is None else {"seed": seed}
        fit = {"seed": settings.seed, "C": settings.analysis.C, "folds": settings.analysis.folds}
        print_status(f"probes use the settings of the study: {', '.join(f'{k} {v:g}' for k, v in fit.items())}")
    return fit if seed is None else fit | {"seed": seed}


def choose_column(ds: xr.Dataset, store: str, by: str | None) -> str:
    """Return the label column: the argument, else that of the run file, else the only one with groups of entities.

    Raises:
        InputError: the column does not exist, or there is no single one to take; lists all with their groups.
    """
    from stratalens.analyses.data.label_columns import default_label_column, describe_label_columns, list_columns

    chosen = _preferred(ds, store, by)
    if chosen is not None:
        return chosen
    try:
        column = default_label_column(ds)
    except InputError as error:
        first = next((c.name for c in describe_label_columns(ds) if not c.problem), "COLUMN")
        raise InputError(f"{error}. For example: --by {first}, or `by: {first}` in the run file") from None
    if column != "trained_stage":
        others = [c for c in describe_label_columns(ds) if c.name != column]
        print_status(f"comparing the groups of {column}; --by chooses another column: {list_columns(others)}")
    return column


def _preferred(ds: xr.Dataset, store: str, by: str | None) -> str | None:
    """Return the label column of the argument or of the run file; None where neither names one.

    Raises:
        InputError: the column does not exist; lists all with their groups.
    """
    from stratalens.analyses.data.groups import label_columns
    from stratalens.analyses.data.label_columns import check_label_column

    run = None if by else read_run_file_of(store)
    chosen = by or (run.by if run is not None else None)
    if by is None and chosen == "trained_stage" and chosen not in label_columns(ds):
        return None  # a run file that names no column has this default
    if chosen is not None:
        check_label_column(ds, chosen)
    return chosen


def _cluster(scheduler: str | None) -> Any:
    if scheduler is None:
        return nullcontext()
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--scheduler needs dask distributed: pip install 'stratalens[cluster]'") from error
    try:
        return Client(scheduler, timeout="10s")  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(f"no dask scheduler answers at {scheduler!r} ({error}); give its tcp://host:port") from error
