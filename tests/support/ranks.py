"""A real capture by one process, and by several at once into one store.

`python -m support.ranks FOLDER SIZE ...` leaves `1.zarr` and `SIZE.zarr` for each size in the folder, and the progress
reports of every process in `progress.json`. One process imports torch and forks the others, which start together.
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
    """Two stages in blocks of 4 rows, statistics included; what was told of the progress."""
    told: list[tuple[str, int, int]] = []
    capture(
        {"a": TwoLayers(0), "b": TwoLayers(1)}, table(ROWS), path, sites=("layers.{layer}.hook_state",),
        positions=("last", "-2"), tokenizer=tokenizer(), forward=run_two_layers, block_size=4, rank=rank,
        progress=lambda *facts: told.append(facts),
    )  # fmt: skip
    return told


def together(folder: Path, size: int) -> list[list[tuple[str, int, int]]]:
    """Fork `size` processes, wait for all of them."""
    children = []
    for number in range(size):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            told = record(folder / f"{size}.zarr", (number, size))
            (folder / f"told-{size}-{number}").write_text(json.dumps(told))
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"rank {number} of {size}: {error!r}\n")
            os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * size
    return [json.loads((folder / f"told-{size}-{number}").read_text()) for number in range(size)]


def main(folder: Path, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    told = {size: together(folder, size) for size in sizes}  # forked before anything has run here
    (folder / "progress.json").write_text(json.dumps(told))
    record(folder / "1.zarr")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
