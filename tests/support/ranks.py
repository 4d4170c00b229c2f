"""A real capture by one process, and by several processes at once into one store.

`python -m support.ranks FOLDER SIZE ...` writes `1.zarr`, one `SIZE.zarr` for each size, and the progress reports of
every process in `progress.json`. One process imports torch and forks the others, which start at the same time.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch

from stratalens.plugin.capture.run import capture
from support.models import TwoLayers, run_two_layers, table, tokenizer

ROWS = 22


def record(path: Path, rank: tuple[int, int] = (0, 1)) -> list[tuple[str, int, int]]:
    """Record two stages with statistics in blocks of 4 rows; return the progress reports."""
    reports: list[tuple[str, int, int]] = []
    capture(
        {"a": TwoLayers(0), "b": TwoLayers(1)},
        table(ROWS),
        path,
        sites=("layers.{layer}.hook_state",),
        positions=("last", "-2"),
        tokenizer=tokenizer(),
        forward=run_two_layers,
        block_size=4,
        rank=rank,
        progress=lambda *report: reports.append(report),
    )
    return reports


def run_ranks(folder: Path, size: int) -> list[list[tuple[str, int, int]]]:
    """Fork `size` processes, wait for them, and return the progress reports of each."""
    children = []
    for number in range(size):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            reports = record(folder / f"{size}.zarr", (number, size))
            (folder / f"progress-{size}-{number}").write_text(json.dumps(reports))
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"rank {number} of {size}: {error!r}\n")
            os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * size
    return [json.loads((folder / f"progress-{size}-{number}").read_text()) for number in range(size)]


def main(folder: Path, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    # The parent forks before it runs torch itself, whose threads a fork would not copy.
    reports = {size: run_ranks(folder, size) for size in sizes}
    (folder / "progress.json").write_text(json.dumps(reports))
    record(folder / "1.zarr")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
