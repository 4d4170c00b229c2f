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

from stratalens.plugin.cli.output import print_status
from stratalens.plugin.cli.run_file import read_run_file_of
from stratalens.store.errors import InputError, suggest
from stratalens.store.storage.resolve import is_url

if TYPE_CHECKING:
    import xarray as xr


def verify_job(store: str, *, repair: bool) -> dict[str, Any]:
    """Verify a store with a progress bar.

    Args:
        store: path or URL of the store.
        repair: mark damaged shards as missing first.

    Returns:
        The `VerifyReport` as a dict.
    """
    from stratalens.store.integrity.verify import verify_store

    with tqdm(unit="B", unit_scale=True, desc="verify", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify_store(store, repair=repair, progress=advance)
    for line in report.repaired:
        print_status(line)
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
    """Run analyses on a store and write each result as a labelled zarr group.

    Returns:
        The folder with the results.
    """
    from stratalens.analyses.accessor import open_store
    from stratalens.analyses.results import write_results
    from stratalens.analyses.suite import run_suite
    from stratalens.store.state.info import info

    ds = open_store(store)
    note_incomplete(info(store))
    with _cluster(scheduler):
        suite = run_suite(
            ds, by=_by(ds, store, by), verbs=verbs, site=site, backend=backend, seed=seed, tell=print_status
        )
    folder = out if out is not None else _results(store) / "latest"
    write_results(suite.results, folder)
    return folder


def note_incomplete(facts: Mapping[str, Any]) -> None:
    """Print a note when planned rows or stages are missing."""
    from stratalens.store.state.info import state_in_words

    if not facts["complete"]:
        print_status(f"{facts['path']} is {state_in_words(facts)}; run the capture again to record the rest")


def _results(store: str) -> Path:
    """Return the results folder: next to the store, or in the working directory if the store is a URL."""
    name = store.rstrip("/")
    return Path(f"{name.rsplit('/', 1)[1] if is_url(name) else name}.results")


def report_store(store: str, out: Path, *, by: str | None) -> Path:
    """Write the report of a store; reuse analyses whose results are cached next to it."""
    from stratalens.analyses.accessor import open_store
    from stratalens.analyses.report.report import report
    from stratalens.analyses.suite import VERBS, run_suite
    from stratalens.store.state.info import info

    ds, facts = open_store(store), info(store)
    note_incomplete(facts)
    suite = run_suite(ds, by=_by(ds, store, by), verbs=VERBS, tell=print_status)
    title = f"stratalens: {Path(store).name}"
    return report(suite.results, out, store_info=facts, notes=suite.skipped, title=title)


def explore_store(
    store: str, *, port: int, show: bool, on_start: Callable[[dict[str, str]], None] | None = None
) -> None:
    """Serve the live page of a store until Ctrl-C.

    The page reads the store and never writes to it.

    Args:
        store: path or URL of the store.
        port: port on 127.0.0.1; 0 takes any free one.
        show: open the page in the system's browser.
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
        explore(ds, port, show=show, tell=announce)
    print_status("the explorer has ended")


def _by(ds: xr.Dataset, store: str, by: str | None) -> str:
    """Return the label column: the argument, else that of the run file next to the store, else trained_stage."""
    run = None if by else read_run_file_of(store)
    chosen = by or (run.by if run is not None else "trained_stage")
    columns = [str(name) for name, coord in ds.coords.items() if coord.dims == ("entity",) and name != "entity"]
    if chosen not in columns:
        raise InputError(f"--by {chosen!r} is not a label column of {store}; {suggest(chosen, columns)}")
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
