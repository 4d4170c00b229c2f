"""Run cells in processes, one JSON document a cell, with the time that is left; a stopped run resumes.

Not part of the suite of benchmarks: it is the command line of the scripts of this folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from benchmarks.calibration.cells import POWER, UNCLEAR, Cell, Draws, NotAvailableError, summarize
from benchmarks.harness.measure import describe, machine, versions_of

RESULTS = Path(__file__).parents[1] / "results" / "calibration"
SCRIPTS = ("probe", "projection", "controls", "verdicts")
DATASETS, QUICK_DATASETS = 400, 16
SHARE_OF_POWER = 0.25  # of the data sets: power has no aim, so it needs a less exact rate
FORMAT = 1
PACKAGES = ("stratalens", "numpy", "scipy", "scikit-learn")


def cells_of(script: str) -> list[Cell]:
    """Return the cells of a script."""
    cells: list[Cell] = importlib.import_module(f"benchmarks.calibration.{script}").CELLS
    return cells


def all_cells() -> list[tuple[str, Cell]]:
    """Return every cell with its script.

    Raises:
        ValueError: two cells have one name.
    """
    pairs = [(script, cell) for script in SCRIPTS for cell in cells_of(script)]
    names = [cell.name for _, cell in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two cells are called {', '.join(sorted(twice))}")
    return pairs


def code_digest() -> str:
    """Return a digest of the source of the analyses, which tells documents of different versions from each other."""
    import stratalens.analyses

    folder = Path(stratalens.analyses.__path__[0])
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def draw(script: str, name: str, seed: int, number: int) -> tuple[dict[str, Any], float]:
    """Analyse one batch of data sets in this process; returns arrays by measure, and seconds."""
    from stratalens.store.errors import InputError

    cell = next(cell for cell in cells_of(script) if cell.name == name)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values: Draws = cell.draw(seed, number)
    except NotAvailableError as error:
        return {"unavailable": str(error)}, 0.0
    except InputError as error:
        return {"refused": str(error)}, time.perf_counter() - start
    except Exception as error:  # one broken cell must not end a run of hours
        return {"unavailable": f"{type(error).__name__}: {error}"}, 0.0
    return dict(values), time.perf_counter() - start


def batches(cell: Cell, datasets: int) -> list[tuple[int, int]]:
    """Return (seed, number) of every batch; seeds depend on the name of the cell."""
    share = cell.share * (SHARE_OF_POWER if cell.kind == POWER else 1)
    wanted = max(1, round(datasets * share))
    first = crc32(cell.name.encode())
    return [(first + i, min(cell.batch, wanted - start)) for i, start in enumerate(range(0, wanted, cell.batch))]


def read_document(out: Path, name: str) -> dict[str, Any] | None:
    """Return the document of a cell, or None."""
    try:
        document: dict[str, Any] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if document.get("format") == FORMAT else None


class Progress:
    """Cells done, and the time that is left, from the seconds of a data set of each cell."""

    def __init__(self, work: Sequence[tuple[Cell, int]], out: Path, jobs: int) -> None:
        self.left = {cell.name: number for cell, number in work}
        self.jobs, self.start = jobs, time.perf_counter()
        self.seconds: dict[str, float] = {}  # of a data set
        for cell, _ in work:
            document = read_document(out, cell.name)
            if document and document["datasets"]:
                self.seconds[cell.name] = document["seconds"] / document["datasets"]

    def update(self, name: str, number: int, seconds: float) -> None:
        """Count a batch that is done."""
        self.left[name] -= number
        if seconds:
            self.seconds[name] = seconds / number

    def __str__(self) -> str:
        if not self.seconds:
            return "time left unknown"
        typical = float(np.mean(list(self.seconds.values())))
        left = sum(n * self.seconds.get(name, typical) for name, n in self.left.items()) / self.jobs
        return f"{(time.perf_counter() - self.start) / 60:.1f} minutes so far, about {left / 60:.1f} left"


def run(pairs: Sequence[tuple[str, Cell]], datasets: int, out: Path, jobs: int, quick: bool = False) -> list[str]:
    """Run cells and write their documents.

    Args:
        pairs: script and cell.
        datasets: data sets of a cell with share 1.
        out: folder of the documents.
        jobs: processes; 1 = this one.
        quick: mark the documents as a test run.

    Returns:
        Names of the cells that could not run.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = {"machine": machine(), "versions": versions_of(*PACKAGES), "code": code_digest()}
    counts = [(cell, sum(n for _, n in batches(cell, datasets))) for _, cell in pairs]
    progress = Progress(counts, out, jobs)
    parts: dict[str, dict[int, dict[str, Any]]] = {cell.name: {} for _, cell in pairs}
    seconds = dict.fromkeys(parts, 0.0)
    failed, done = [], 0
    tasks = [(script, cell, i, b) for script, cell in pairs for i, b in enumerate(batches(cell, datasets))]
    for script, cell, index, number, (values, took) in _results(tasks, jobs):
        parts[cell.name][index] = values
        seconds[cell.name] += took
        progress.update(cell.name, number, took)
        if progress.left[cell.name]:
            if sys.stderr.isatty():
                print(
                    f"\r  {cell.name}: {progress.left[cell.name]} data sets left; {progress}   ",
                    end="",
                    file=sys.stderr,
                )
            continue
        done += 1
        batch_values = [values for _, values in sorted(parts.pop(cell.name).items())]
        missing = next((v["unavailable"] for v in batch_values if "unavailable" in v), None)
        if missing is not None:
            failed.append(cell.name)
            words = f"not run: {missing}"
        else:
            count = sum(n for _, n in batches(cell, datasets))
            document = {
                "format": FORMAT, "name": cell.name, "script": script, "analysis": cell.analysis, "kind": cell.kind,
                "setting": cell.setting, "date": datetime.now(UTC).isoformat(timespec="seconds"), "quick": quick,
                "datasets": count, "batch": cell.batch, "seconds": round(seconds[cell.name], 1), **known,
                **_combine(cell, batch_values),
            }  # fmt: skip
            _write(out / f"{cell.name}.json", document)
            words = _words(document)
        print(f"[{done} of {len(pairs)}; {progress}] {cell.name}: {words}", flush=True)
    return failed


def _results(tasks: Sequence[tuple[str, Cell, int, tuple[int, int]]], jobs: int) -> Iterator[Any]:
    """Yield (script, cell, index, data sets, result) as batches finish; a few cells are in work at a time."""
    if jobs == 1:
        for script, cell, index, (seed, number) in tasks:
            yield script, cell, index, number, draw(script, cell.name, seed, number)
        return
    waiting = list(reversed(tasks))
    running: dict[Future[Any], tuple[str, Cell, int, int]] = {}
    # New processes, because a fork of a process with threads can block.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < 2 * jobs:
                script, cell, index, (seed, number) = waiting.pop()
                running[pool.submit(draw, script, cell.name, seed, number)] = (script, cell, index, number)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield *running.pop(future), future.result()


def _combine(cell: Cell, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join batches and summarize them; a cell that the analysis refuses has the message and no measure."""
    refusals = [part["refused"] for part in parts if "refused" in part]
    answered = [part for part in parts if "refused" not in part]
    joined: Draws = {
        name: np.concatenate([part[name] for part in answered if name in part])
        for name in dict.fromkeys(name for part in answered for name in part)
    }
    return {"measures": summarize(cell, joined), "refused": len(refusals), "refusal": refusals[0] if refusals else None}


def _write(path: Path, document: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def _words(document: dict[str, Any]) -> str:
    rates = [
        f"{row['measure']} {row['rate']:.3f} ± {row['error']:.3f}" + (f" {row['verdict']}" if row["verdict"] else "")
        for row in document["measures"]
    ]
    refused = [f"{document['refused']} batches refused: {document['refusal'][:160]}"] if document["refused"] else []
    return "; ".join([*rates, *refused]) or "nothing to report"


def choose(
    pairs: Sequence[tuple[str, Cell]], patterns: Sequence[str], out: Path, datasets: int, again: bool, unclear: bool
) -> list[tuple[str, Cell]]:
    """Return the cells to run: those that match, without those that have as many data sets already."""
    chosen = []
    for script, cell in pairs:
        if patterns and not any(fnmatch(cell.name, p) or p in cell.name for p in patterns):
            continue
        document = read_document(out, cell.name)
        if unclear and not (document and any(row["verdict"] == UNCLEAR for row in document["measures"])):
            continue
        enough = document is not None and document["datasets"] >= sum(n for _, n in batches(cell, datasets))
        if again or not enough:
            chosen.append((script, cell))
    return chosen


def main(doc: str | None, scripts: Sequence[str] = SCRIPTS) -> None:
    """Parse the command line and run the cells of some scripts."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", default=[], metavar="PATTERN", help="run cells whose name matches")
    parser.add_argument("--datasets", type=int, help=f"data sets of a cell (default {DATASETS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DATASETS} data sets, into a folder of their own")
    parser.add_argument("--again", action="store_true", help="also run cells that have enough data sets already")
    parser.add_argument("--unclear", action="store_true", help="run cells again whose verdict is unclear")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--out", type=Path, help="folder of the documents")
    parser.add_argument("--list", action="store_true", help="list the cells and run none")
    options = parser.parse_args()
    datasets = options.datasets or (QUICK_DATASETS if options.quick else DATASETS)
    out = options.out or (RESULTS.parent / "quick" / "calibration" if options.quick else RESULTS)
    pairs = [(script, cell) for script, cell in all_cells() if script in scripts]
    chosen = choose(pairs, options.cells, out, datasets, options.again, options.unclear)
    if options.list:
        for _, cell in chosen:
            print(f"{cell.name:44} {cell.kind:14} {cell.analysis}; {cell.setting}")
        return
    print(describe("scipy", "scikit-learn"))
    print(
        f"{len(chosen)} of {len(pairs)} cells to run, {datasets} data sets a cell, {options.jobs} processes", flush=True
    )
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read by the processes that start now
    failed = run(chosen, datasets, out, options.jobs, options.quick)
    if failed:
        sys.exit(f"not run: {', '.join(failed)}")
