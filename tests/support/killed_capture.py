"""A real capture that is killed at random writes to the disk and repeated until it is complete.

`python -m support.killed_capture FOLDER KILLS` writes `whole.zarr` without interruption and `run.zarr` with that many
kills. One process imports torch and forks a child for each run, so that no run repeats the imports.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratalens.plugin.capture.run import capture
from stratalens.store.reading.open import open_store
from stratalens.store.storage.disk import DiskOperations
from support.crashing_storage import forked
from support.models import TwoLayers, run_two_layers, table, tokenizer
from support.synthetic_writer import committed_files, content

CHANGES = ("open", "write", "fsync", "rename", "fsync_folder", "mkdir", "unlink")


def record(path: Path) -> None:
    """Record two stages of a tiny model with five blocks each."""
    capture(
        {"a": TwoLayers(0), "b": TwoLayers(1)},
        table(20),
        path,
        sites=("layers.{layer}.hook_state",),
        positions=("last", "-2"),
        tokenizer=tokenizer(),
        forward=run_two_layers,
        block_size=4,
    )


def record_or_die(path: Path, moment: int, count_file: Path | None = None) -> None:
    """Record in this process, which kills itself at its `moment`-th change of the disk."""
    ticks = itertools.count(1)
    last = [0]

    def counted_change(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            last[0] = next(ticks)
            if last[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments)

        return wrapper

    for name in CHANGES:
        setattr(DiskOperations, name, counted_change(getattr(DiskOperations, name)))
    record(path)
    if count_file is not None:
        count_file.write_text(str(last[0]))


def shows_only_what_was_recorded(path: Path, whole: Path) -> None:
    """Check that recorded rows equal those of the complete store and that all others are NaN."""
    current, expected = open_store(path), open_store(whole)
    for stage in current.stage.values:
        recorded = current.recorded.sel(stage=stage).values
        for name in (n for n, v in current.data_vars.items() if v.attrs.get("kind") == "site"):
            values, reference = (
                ds[name].sel(stage=stage).transpose("entity", ...).values for ds in (current, expected)
            )
            np.testing.assert_array_equal(values[recorded], reference[recorded])
            assert np.isnan(values[~recorded]).all()


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # otherwise the first collection of every child visits all objects of torch
    whole, path, count_file = folder / "whole.zarr", folder / "run.zarr", folder / "changes"
    assert not forked(partial(record_or_die, whole, 0, count_file))
    total = int(count_file.read_text())
    generator = random.Random(0)
    killed = 0
    committed: dict[str, tuple[int, int]] = {}
    while killed < kills:
        complete = not forked(partial(record_or_die, path, generator.randint(1, total)))
        committed_now = committed_files(path)
        assert committed.items() <= committed_now.items(), "a block was lost, or recorded twice"
        committed = committed_now
        if complete:
            assert content(path) == content(whole)
            shutil.rmtree(path)
            committed = {}
            continue
        killed += 1
        if (path / "zarr.json").exists():
            shows_only_what_was_recorded(path, whole)
    assert not forked(partial(record_or_die, path, 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
