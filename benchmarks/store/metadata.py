"""Measure how opening, info, verify and relabel grow with rows, stages, label columns and the length of prompt ids.

A store of one layer and one number a row holds almost nothing but metadata. Four axes grow, each to a size that few
stores reach: a million rows in 200 stages, 200 stages, 10,000 label columns, and prompt ids of a megabyte. Each store
has its own process. The *metadata* job is what `verify` does before it reads data: documents, labels, history, commit
records and unused files. *relabel* replaces one column, *relabel all* every one. *repr* is the text of the opened
dataset. Peak memory is the rise above that of the process when it has imported everything. The exponent is the slope
of a least-squares line through log(CPU seconds) over log(size).

    python -m benchmarks.store.metadata [FOLDER] [--parts 4 2 1] [--axes rows stages columns ids]
"""

from __future__ import annotations

import argparse
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

TITLE, THEME = "Metadata of large stores", "Growth"
AXES: dict[str, dict[str, int]] = {  # the full size of each axis; the axis of the same name is divided
    "rows": {"rows": 1_000_000, "stages": 200, "columns": 1, "ids": 10},
    "stages": {"rows": 10_000, "stages": 200, "columns": 1, "ids": 10},
    "columns": {"rows": 20, "stages": 2, "columns": 10_000, "ids": 10},
    "ids": {"rows": 50, "stages": 2, "columns": 1, "ids": 1_000_000},
}
JOBS = ("create", "record", "open", "labels", "info", "metadata", "verify", "relabel", "relabel all", "repr")


def memory(key: str) -> float:
    """Return the current ("VmRSS") or the highest ("VmHWM") resident memory in MiB."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


def labels(rows: int, columns: int, ids: int) -> dict[str, Any]:
    """Return label columns; prompt ids have `ids` characters."""
    names = np.array([str(row).rjust(ids, "x") for row in range(rows)], dtype=object)
    few = np.array([f"e{row % 1000}" for row in range(rows)], dtype=object)
    return {"entity": names, "entity_id": few, **{f"label{n}": few for n in range(columns)}}


def jobs(path: Path, rows: int, stages: int, columns: int, ids: int) -> dict[str, Callable[[], object]]:
    """Return the jobs on one store; the first two write it."""
    from stratalens.store import ActivationWriter, create, info, open_store, relabel, verify_store
    from stratalens.store.format.schema import site_variable
    from stratalens.store.integrity.verify import check_metadata
    from stratalens.store.storage.resolve import storage_at

    table = labels(rows, columns, ids)
    site = site_variable("resid_post", ["d_model"], [1], "float32", "blocks.{layer}.hook_out")
    values = np.random.default_rng(0).standard_normal((1, rows, 1, 1), dtype=np.float32)

    def record() -> None:
        with ActivationWriter(path) as writer:
            for order in range(stages):
                with writer.stage(f"s{order}", order=order, fingerprint=f"f{order}") as stage:
                    for block in stage.pending():
                        buffer = stage.buffer(block)
                        buffer.write("resid_post", block.rows, values[:, block.start : block.stop])
                        stage.submit(buffer)

    def read_labels() -> int:
        ds = open_store(path)
        return sum(ds[name].values.size for name in ("entity", "entity_id"))

    return {
        "create": lambda: create(path, entities=table, layers=[0], tokens=["last"], variables=[site]),
        "record": record,
        "open": lambda: open_store(path),
        "labels": read_labels,
        "info": lambda: info(path),
        "metadata": lambda: check_metadata(storage_at(path)),
        "verify": lambda: verify_store(path),
        "relabel": lambda: relabel(path, {"entity": table["entity"], "label0": table["entity_id"][::-1]}),
        "relabel all": lambda: relabel(
            path, {name: column if name == "entity" else column[::-1] for name, column in table.items()}
        ),
        "repr": lambda: repr(open_store(path)),
    }


def child(folder: Path, sizes: dict[str, int]) -> None:
    """Run all jobs on one store; print the measurements as one JSON line."""
    for job in jobs(folder / "first.zarr", 10, 1, 1, 10).values():
        job()  # imports of the first use
    work = jobs(folder / "run.zarr", **sizes)
    ready = memory("VmRSS")
    answer: dict[str, Any] = {}
    for name, job in work.items():
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        took = time_once(job)
        answer[name] = {"wall": took.wall, "cpu": took.cpu, "peak": memory("VmHWM") - ready}
    files = [path for path in (folder / "run.zarr").rglob("*") if path.is_file()]
    answer |= {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
    print(json.dumps(answer))


def measure(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Run the jobs of one store in a process of its own; the store is removed afterwards."""
    home = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", module_of(__file__), str(home), "--child", json.dumps(sizes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    finally:
        shutil.rmtree(home)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--parts", type=int, nargs="+", default=[4, 2, 1], help="the full size is divided by these")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parse(parser, quick={"parts": [200, 100]})
    if options.child:
        child(Path(options.folder), options.child)
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        with Report(__file__, options, "xarray", "zarr", folders=[folder]) as report:
            run(report, folder, options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Measure every axis and add the tables of exponents, of the full sizes and of files."""
    parts = sorted(options.parts, reverse=True)
    slopes = Table("exponents", "Exponents of CPU seconds", [
        Column("job", ""), *(Column(axis, f"with {axis}") for axis in options.axes),
    ])  # fmt: skip
    largest = Table("largest", "CPU seconds and peak memory at the largest size", [
        Column("job", ""), *(c for axis in options.axes for c in (
            Column(axis, axis, "s"), Column(f"{axis}_peak", f"{axis}, peak", "MiB"))),
    ])  # fmt: skip
    files = Table("files", "Stores, files and bytes", [
        Column("axis", ""), *(Column(key, key) for key in ("rows", "stages", "columns")),
        Column("ids", "characters of a prompt id"), Column("files", "files"), Column("megabytes", "size", "MB"),
    ])  # fmt: skip
    results: dict[str, list[dict[str, Any]]] = {}
    for axis in options.axes:
        plans = [{**AXES[axis], axis: AXES[axis][axis] // part} for part in parts]
        results[axis] = [measure(folder, sizes) for sizes in plans]
        for sizes, result in zip(plans, results[axis], strict=True):
            files.add(axis=axis, **sizes, files=result["files"], megabytes=result["bytes"] / 1e6)
    for job in JOBS:
        seconds = {axis: [result[job]["cpu"] for result in results[axis]] for axis in options.axes}
        fits = {axis: -float(np.polyfit(np.log(parts), np.log(s), 1)[0]) for axis, s in seconds.items()}
        slopes.add(job=job, **fits)
        peaks = {f"{axis}_peak": results[axis][-1][job]["peak"] for axis in options.axes}
        largest.add(job=job, **{axis: s[-1] for axis, s in seconds.items()}, **peaks)
        if job != "repr":
            report.target(f"largest exponent of {job}, CPU seconds", max(fits.values()), at_most=1.1)
    for table in (slopes, largest, files):
        report.add(table)
    report.note("The text of the dataset is made by xarray.")


if __name__ == "__main__":
    main()
