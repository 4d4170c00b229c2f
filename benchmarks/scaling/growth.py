"""Measure how time, memory and files grow with entities, layers and width: 1, 2, 4 and 8 times as many of one of them.

There are four jobs: recording a random model that only adds vectors (the cost of recording without computation),
reading every slab, centroids, and logistic probes of one pair. Each size has its own process. All processes wait while
one works, so that rounds alternate over the sizes. The exponent is the slope of a least-squares line through
log(seconds) over log(size), in each round. An exponent of 1 is proportional; less than 1 means that a constant cost
still matters. Peak memory is the rise above the memory of the process when it was ready. For a recording it includes
prompts, tokens and labels, up to 2 kB a prompt. For all jobs it includes two buffers or slabs, which are as wide as the
model and at most as long as a block or a few. The table of files compares the number of files and bytes with the
forecast of `stratalens.store.format.layout.forecast`.

    python -m benchmarks.scaling.growth [FOLDER] [--times 1 2 4 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.document import Column, Report, Table, arguments, parse
from benchmarks.harness.measure import module_of, scratch, time_once

TITLE, THEME = "Growth with entities, layers and width", "Growth"
BASE = {"entities": 4000, "layers": 4, "width": 256}
GROUPS, BLOCK = 3, 512
JOBS = ("capture", "read", "centroids", "probe")


class Worker:
    """A process with the data of one size that runs jobs on request."""

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        command = [sys.executable, "-m", module_of(__file__), str(folder), "--child", json.dumps(sizes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def answer(self) -> dict[str, Any]:
        """Return the next line of the process as JSON."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker process ended early")
        return json.loads(line)

    def do(self, job: str) -> dict[str, Any]:
        """Run one job; return its wall and CPU seconds and MiB."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{job}\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def memory(key: str) -> float:
    """Return the current ("VmRSS") or the highest ("VmHWM") resident memory in MiB."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


def child(folder: Path, sizes: dict[str, int]) -> None:
    """Run the jobs named on standard input; print the results to standard output."""
    from benchmarks.analyses.centroids import read
    from benchmarks.data.tiny_model import Adding, prompts, record, tokenizer
    from stratalens.analyses.centroids.centroids import centroids
    from stratalens.analyses.probes.probe import probe
    from stratalens.analyses.sweep.run import run_slabs
    from stratalens.store import info, open_store

    order = [f"s{g + 1}" for g in range(GROUPS)]
    quiet = {"cache": False, "progress": False, "workers": 1, "order": order}

    def jobs(model: Any, table: Any, path: Path) -> dict[str, Callable[[], object]]:
        """Return the four jobs on one store; the first one writes it."""

        def recorded() -> None:
            shutil.rmtree(path, ignore_errors=True)
            record(model, table, path, words, block_size=BLOCK, statistics=False)

        def site() -> Any:
            return open_store(path).state

        return {
            "capture": recorded,
            "read": lambda: run_slabs(site(), read, workers=1, progress=False),
            "centroids": lambda: centroids(site(), by="trained_stage", **quiet),
            "probe": lambda: probe(site(), target="trained_stage", pairs=[("s1", "s3")], resamples=100, **quiet),
        }

    words = tokenizer()
    for work in jobs(Adding(2, 16), prompts(60, GROUPS), folder / "first.zarr").values():
        work()  # imports of the first use
    path = folder / "run.zarr"
    known = jobs(Adding(sizes["layers"], sizes["width"]), prompts(sizes["entities"], GROUPS), path)
    with suppress(OSError):
        trim = ctypes.CDLL(None).malloc_trim
    ready = memory("VmRSS")
    print(json.dumps({"ready": ready}), flush=True)
    for line in sys.stdin:
        with suppress(NameError, AttributeError):
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        took = time_once(known[line.strip()])
        answer = {"wall": took.wall, "cpu": took.cpu, "peak": memory("VmHWM") - ready}
        if line.strip() == "capture":
            about = info(path)
            answer |= {"bytes": about["bytes"], "files": about["files"]}
            answer["all"] = sum(p.is_file() for p in path.rglob("*"))
        print(json.dumps(answer), flush=True)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Return the least-squares slope of log(seconds) over log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parse(parser, quick={"times": [1, 4], "rounds": 1, "jobs": ["capture", "read", "centroids"]})
    if options.child:
        child(Path(options.folder), options.child)
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "torch", "transformer-lens", "xarray", "scipy", folders=[folder]) as report:
            run(report, folder, options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, folder: Path, options: argparse.Namespace) -> None:
    # 1x is the same for all axes and needs one process.
    plans = {_place(axis, n): {**BASE, axis: BASE[axis] * n} for axis in BASE for n in options.times}
    workers: dict[tuple[str, int], Worker] = {}
    results: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    try:
        for place, sizes in plans.items():
            home = folder / f"{place[0]}-{place[1]}"
            home.mkdir()
            workers[place] = Worker(home, sizes)
        for worker in workers.values():
            worker.answer()  # the worker is ready
        for _ in range(options.rounds):
            for job in options.jobs:
                for place, worker in workers.items():
                    results.setdefault((*place, job), []).append(worker.do(job))
    finally:
        for worker in workers.values():
            worker.end()
    everywhere = {(a, n, j): results[(*_place(a, n), j)] for a in BASE for n in options.times for j in options.jobs}
    tables(report, options, everywhere)


def _place(axis: str, times: int) -> tuple[str, int]:
    return (axis, times) if times > 1 else ("base", 1)


def tables(
    report: Report, options: argparse.Namespace, results: dict[tuple[str, int, str], list[dict[str, Any]]]
) -> None:
    """Add the tables of exponents, of seconds and memory, and of files."""
    least, most = min(options.times), max(options.times)
    slopes = Table("exponents", "Exponents", [
        Column("name", ""), Column("axis", "with"), Column("wall", "exponent of wall seconds"),
        Column("cpu", "of CPU seconds"), Column("low", f"peak at {least}x", "MiB"),
        Column("high", f"peak at {most}x", "MiB"),
    ], note=f"1x is {BASE['entities']} entities x {BASE['layers']} layers x {BASE['width']}")  # fmt: skip
    seconds = Table("seconds", "Seconds and peak memory at every size", [
        Column("name", ""), Column("axis", "with"), Column("size", "size"), Column("wall", "wall", "s"),
        Column("cpu", "CPU", "s"), Column("peak", "peak", "MiB"),
    ])  # fmt: skip
    for job in options.jobs:
        for axis in BASE:
            runs = {n: results[axis, n, job] for n in options.times}
            fits = {
                unit: [
                    exponent(options.times, [runs[n][turn][unit] for n in options.times])
                    for turn in range(options.rounds)
                ]
                for unit in ("wall", "cpu")
            }
            peaks = {n: max(r["peak"] for r in runs[n]) for n in options.times}
            slopes.add(name=job, axis=axis, low=peaks[least], high=peaks[most], **fits)
            if axis == "layers" or (axis == "entities" and job != "probe"):  # the iterations of a fit grow too
                report.target(f"exponent of {job} with {axis}, CPU seconds", fits["cpu"], at_most=1.1)
            for n in options.times:
                cells = {unit: [r[unit] for r in runs[n]] for unit in ("wall", "cpu")}
                seconds.add(name=job, axis=axis, size=f"{n}x", peak=peaks[n], **cells)
    report.add(slopes)
    report.add(seconds)
    report.add(files(options, results))


def files(options: argparse.Namespace, results: dict[tuple[str, int, str], list[dict[str, Any]]]) -> Table:
    """Return the table of files and bytes of the store and of the forecast."""
    from stratalens.store.format.layout import forecast
    from stratalens.store.format.schema import site_variable

    table = Table("files", "Files and bytes, compared with the forecast", [
        Column("axis", ""), Column("size", "size"), Column("files", "data files"), Column("said_files", "forecast"),
        Column("all", "files with metadata and labels"), Column("megabytes", "size", "MB"),
        Column("said", "forecast", "MB"),
    ])  # fmt: skip
    for axis in BASE:
        for n in options.times:
            sizes = {**BASE, axis: BASE[axis] * n}
            site = site_variable("state", ["d_model"], [sizes["width"]], "float32", "layers.{layer}.hook_state")
            said = forecast(
                [site], entities=sizes["entities"], layers=sizes["layers"], tokens=1, stages=1, block_size=BLOCK
            )
            real = results[axis, n, "capture"][-1]
            table.add(
                axis=axis, size=f"{n}x", files=real["files"], all=real["all"], said_files=said.files,
                megabytes=real["bytes"] / 1e6, said=said.nbytes / 1e6,
            )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
