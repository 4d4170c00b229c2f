"""Measure how long each file format takes to read a layer, an entity, a token position or a stage.

Every format stores the same float16 values: stages x layers x entities x tokens x d_model. The queries are one layer of
all entities (as a probe reads it), one entity in all layers, one token position in all layers, and one full stage.
*Warm* means that the files are in the page cache. *Cold* means that the script drops them from it before each turn; the
host of a virtual machine may still cache them. Each turn opens the files again, and only the query is timed; opening
has its own table. All formats return NumPy arrays in memory, and the script compares these arrays before it times
anything. np.memmap, safetensors and torch must copy, because an untouched memory map contains no values yet. The
baseline reads as many bytes from the beginning of flat files, sequentially, on one thread. SAELens stores Arrow
datasets of one layer each; with nnsight and run_with_cache the user chooses the format.

stratalens verifies every byte against its checksum in all rows except the one with `verify=False`. The table of files
shows which other formats do so.

    python -m benchmarks.store.query [FOLDER] [--stages 2] [--layers 30] [--entities 3072] [--rounds 4]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.document import Column, Report, Table, arguments, parse, ratios, versus
from benchmarks.harness.measure import Timing, alternate, drop_cache, fill_cache, is_installed, time_once
from benchmarks.store.formats import DTYPE, Format, Ours, OursPlain, OursUnchecked, Raw, Shape
from benchmarks.store.lmprobe_format import Lmprobe
from benchmarks.store.peer_formats import PEERS, READERS_OF_OURS

TITLE, THEME = "Reading one layer, entity, token or stage", "Store"
QUESTIONS = {
    "layer": "one layer, all entities",
    "entity": "one entity, all layers",
    "token": "one token position, all layers and entities",
    "stage": "one full stage",
}
OURS = (Ours, OursPlain, OursUnchecked)


@lru_cache(maxsize=2)
def values_of(shape: Shape, stage: int) -> np.ndarray:
    """Return normal noise of one stage, of shape (layers, entities, tokens, d_model)."""
    rng = np.random.default_rng(stage)
    return np.stack([rng.standard_normal(shape[2:], dtype=np.float32).astype(DTYPE) for _ in range(shape[1])])


def fill(kind: type[Format], folder: Path, shape: Shape, rows: int) -> Format:
    """Write all stages; a format with one file for each put gets a full stage at once, its best case."""
    files = kind(folder, shape, rows)
    files.begin()
    step = rows if issubclass(kind, Ours) else shape[2]
    for stage in range(shape[0]):
        values = values_of(shape, stage)
        for start in range(0, shape[2], step):
            files.put(stage, start, values[:, start : start + step])
    files.finish(sync=True)
    return files


def make_all(folder: Path, shape: Shape, rows: int) -> tuple[list[Format], dict[str, str]]:
    """Return all filled formats, and the reason for each missing one."""
    raw = fill(Raw, folder / "raw", shape, shape[2])
    ours = fill(Ours, folder / "ours", shape, rows)
    formats: list[Format] = [raw, ours, *(kind(ours.folder, shape, rows) for kind in OURS[1:])]
    missing = {}
    for kind in (*READERS_OF_OURS, *PEERS, Lmprobe):
        if kind.module and not is_installed(kind.module):
            missing[kind.name] = f"not installed: pip install {kind.module}"
        elif kind in READERS_OF_OURS:
            formats.append(kind(ours.folder, shape, rows))
        else:
            formats.append(fill(kind, folder / kind.__name__, shape, rows))
    return formats, missing


def ask(method: Format, question: str, shape: Shape, cold: bool, turn: list[int]) -> Timing:
    """Open, read (timed) and close; each turn reads another layer, entity, token or stage."""
    turn[0] += 1
    stage = turn[0] % shape[0]
    which = {"layer": turn[0] % shape[1], "entity": (turn[0] * 37) % shape[2], "token": turn[0] % shape[3]}
    if cold:
        drop_cache(method.folder)
    handle = method.open()
    work: Callable[[], Any] = partial(
        getattr(method, question), handle, stage, *[which[q] for q in which if q == question]
    )
    timing = time_once(work)
    method.close(handle)
    return timing


def check(methods: list[Format], shape: Shape) -> None:
    """Check that all formats return the same values."""
    asked = {"layer": (1, shape[1] // 2), "entity": (0, shape[2] - 3), "token": (1, shape[3] - 1), "stage": (0,)}
    for question, place in asked.items():
        stage = place[0] % shape[0]
        whole = values_of(shape, stage)
        right = {
            "layer": lambda v, p: v[p[1]],
            "entity": lambda v, p: v[:, p[1]],
            "token": lambda v, p: v[:, :, p[1]],
            "stage": lambda v, p: v,
        }[question](whole, place)
        for method in methods[1:]:
            handle = method.open()
            answer = getattr(method, question)(handle, stage, *place[1:])
            if not np.array_equal(answer, right):
                raise SystemExit(f"{method.name} returns other values for the query {question}")
            method.close(handle)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir(), help="on a disk")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--entities", type=int, default=3072)
    parser.add_argument("--tokens", type=int, default=2)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rows", type=int, default=1024, help="rows of a block")
    parser.add_argument("--rounds", type=int, default=4)
    options = parse(parser, quick={"layers": 8, "entities": 1024, "rows": 256, "rounds": 2})
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    packages = ("zarr", "xarray", "tensorstore", "h5py", "safetensors", "datasets", "pyarrow", "torch", "zarrs")
    try:
        with Report(__file__, options, *packages, folders=[folder]) as report:
            run(report, folder, options)
    finally:
        shutil.rmtree(folder)


def run(report: Report, folder: Path, options: argparse.Namespace) -> None:
    shape = (options.stages, options.layers, options.entities, options.tokens, options.width)
    methods, missing = make_all(folder, shape, options.rows)
    check(methods, shape)
    files = Table("files", "The files", [
        Column("name", ""), Column("size", "size", "MB"), Column("files", "files"), Column("opening", "opening", "s"),
        Column("checked", "verified on reading"),
    ], ours=[kind.name for kind in OURS])  # fmt: skip
    for method in methods[1:]:
        times = [time_once(lambda method=method: method.close(method.open())) for _ in range(3)]
        size = method.numbers()
        files.add(
            name=method.name,
            size=size["bytes"] / 1e6,
            files=size["files"],
            opening=[t.wall for t in times],
            checked=method.checksums,
        )
    report.add(files)
    counts = {
        "layer": shape[2] * shape[3] * shape[4],
        "entity": shape[1] * shape[3] * shape[4],
        "token": shape[1] * shape[2] * shape[4],
        "stage": shape[1] * shape[2] * shape[3] * shape[4],
    }
    for question, title in QUESTIONS.items():
        megabytes = counts[question] * DTYPE.itemsize / 1e6
        table = Table(question, f"{title}: {megabytes:.3g} MB", [
            Column("name", ""), Column("cold", "cold", "ms"), Column("cold_ratio", "cold, ratio"),
            Column("warm", "warm", "ms"), Column("warm_ratio", "warm, ratio"), Column("cpu", "warm, CPU", "ms"),
        ], baseline="raw file", ours=[kind.name for kind in OURS])  # fmt: skip
        results = {}
        for kind in ("cold", "warm"):
            if kind == "warm":
                fill_cache(method.folder for method in methods)
            asked = {method.name: partial(ask, method, question, shape, kind == "cold", [0]) for method in methods}
            results[kind] = alternate(asked, options.rounds * (4 if question == "entity" else 1), shuffle=True)
            table.against[kind] = versus(results[kind], table.ours)
        for method in methods:
            cold, warm = results["cold"][method.name], results["warm"][method.name]
            table.add(
                name=method.name,
                cold=[t.wall * 1e3 for t in cold],
                cold_ratio=ratios(cold, results["cold"]["raw file"]),
                warm=[t.wall * 1e3 for t in warm],
                warm_ratio=ratios(warm, results["warm"]["raw file"]),
                cpu=[t.cpu * 1e3 for t in warm],
            )
        for name, why in missing.items():
            table.add(name=name, missing=why)
        report.add(table)


if __name__ == "__main__":
    main()
