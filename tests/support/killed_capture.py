"""A real capture, killed at random changes of the disk and run again until it is whole.

`python -m support.killed_capture FOLDER KILLS` leaves `whole.zarr` (uninterrupted) and `run.zarr`
(killed that many times) in the folder.
One process imports torch and forks a child for each run, so that a kill costs a capture and no imports.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratalens.plugin.capture.run import capture
from stratalens.store.reading.open import open_store
from stratalens.store.storage.disk import DiskOperations
from support.models import TwoLayers, run_two_layers, table, tokenizer
from support.synthetic_writer import committed_files, content

CHANGES = ("open", "write", "fsync", "rename", "fsync_folder", "mkdir", "unlink")


def record(path: Path) -> None:
    """Two stages of a tiny model, five blocks each."""
    capture(
        {"a": TwoLayers(0), "b": TwoLayers(1)}, table(20), path, sites=("layers.{layer}.hook_state",),
        positions=("last", "-2"), tokenizer=tokenizer(), forward=run_two_layers, block_size=4,
    )  # fmt: skip


def forked(path: Path, moment: int, counted: Path | None = None) -> bool:
    """Record in a child that kills itself at its `moment`-th change of the disk; whether it did."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), f"the capture failed instead of being killed (status {status})"
        return status != 0
    try:
        ticks = itertools.count(1)
        last = [0]

        def watched(change: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*arguments: Any) -> Any:
                last[0] = next(ticks)
                if last[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*arguments)

            return wrapper

        for name in CHANGES:
            setattr(DiskOperations, name, watched(getattr(DiskOperations, name)))
        record(path)
        if counted is not None:
            counted.write_text(str(last[0]))
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)


def shows_only_what_was_recorded(path: Path, whole: Path) -> None:
    """Every row that is shown as recorded is that of the uninterrupted store; the others are missing."""
    current, wanted = open_store(path), open_store(whole)
    for stage in current.stage.values:
        recorded = current.recorded.sel(stage=stage).values
        for name in (n for n, v in current.data_vars.items() if v.attrs.get("kind") == "site"):
            ours, theirs = (ds[name].sel(stage=stage).transpose("entity", ...).values for ds in (current, wanted))
            np.testing.assert_array_equal(ours[recorded], theirs[recorded])
            assert np.isnan(ours[~recorded]).all()


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # or every child walks through all of torch at its first collection
    whole, path, counted = folder / "whole.zarr", folder / "run.zarr", folder / "changes"
    assert not forked(whole, 0, counted)
    total = int(counted.read_text())
    generator = random.Random(0)
    killed = 0
    committed: dict[str, tuple[int, int]] = {}
    while killed < kills:
        done = not forked(path, generator.randint(1, total))
        now = committed_files(path)
        assert committed.items() <= now.items(), "a block was lost, or recorded twice"
        committed = now
        if done:
            assert content(path) == content(whole)
            shutil.rmtree(path)
            committed = {}
            continue
        killed += 1
        if (path / "zarr.json").exists():
            shows_only_what_was_recorded(path, whole)
    assert not forked(path, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
