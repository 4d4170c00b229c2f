"""A sweep over revisions, killed at random requests and changes of the disk, and repeated until it is complete.

`python -m support.killed_sweep FOLDER KILLS` serves a suite of tiny models, records `whole.zarr` without interruption
and `run.zarr` with that many kills. One process imports torch and forks a child for each run, so that no run repeats
the imports; the hub runs in a process of its own.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from stratalens.plugin.hub import sweep
from stratalens.plugin.hub.checkpoint_queue import CheckpointQueue
from stratalens.plugin.hub.client import Hub
from stratalens.store.storage.disk import DiskOperations
from support.crashing_storage import forked
from support.hub import hub
from support.light_checkpoints import OPTIONS, LightCheckpoint, save_light
from support.models import table
from support.synthetic_writer import content

MODEL = "EleutherAI/pythia-tiny"
STEPS = ("step0", "step1", "step1000", "step2000")


def serve(folders: dict[str, Path], channel: Any) -> None:
    """Serve the suite until the process is ended."""
    with hub({MODEL: folders}) as (address, _):
        channel.send(address)
        channel.recv()


def record(path: Path, address: str) -> None:
    """Record all revisions."""
    sweep.sweep_hub(
        MODEL,
        "step*",
        table(12),
        path,
        hub=Hub(endpoint=address, token=False, workers=2),
        block_size=4,
        **OPTIONS,
    )


def checkpoints_on_disk(path: Path) -> int:
    """Return the number of checkpoint folders of a sweep."""
    folder = path.with_name(f"{path.name}.checkpoints")
    return sum(place.is_dir() for place in folder.glob("*/*"))


def record_or_die(path: Path, address: str, moment: int, count_file: Path | None = None) -> None:
    """Record in this process, which kills itself at its `moment`-th request or change of the store."""
    ticks = itertools.count(1)
    last = [0]

    def counted(function: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            last[0] = next(ticks)
            assert checkpoints_on_disk(path) <= 2
            if last[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapper

    for name in ("write", "rename", "unlink"):
        setattr(DiskOperations, name, counted(getattr(DiskOperations, name)))
    for name in ("take", "prefetch", "_finish_current"):
        setattr(CheckpointQueue, name, counted(getattr(CheckpointQueue, name)))
    Hub.request = counted(Hub.request)  # type: ignore[method-assign]
    record(path, address)
    if count_file is not None:
        count_file.write_text(str(last[0]))


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    constants.HF_HUB_OFFLINE = False
    sweep.Checkpoint = LightCheckpoint  # type: ignore[misc,assignment]
    folders = {step: save_light(folder / "hub" / step, n) for n, step in enumerate(STEPS)}
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(target=serve, args=(folders, there), daemon=True)
    server.start()
    address = here.recv()
    gc.freeze()
    whole, path, count_file = folder / "whole.zarr", folder / "run.zarr", folder / "changes"
    assert not forked(partial(record_or_die, whole, address, 0, count_file))
    total = int(count_file.read_text())
    generator = random.Random(0)
    killed = 0
    while killed < kills:
        if forked(partial(record_or_die, path, address, generator.randint(1, total))):
            killed += 1
        else:
            assert content(path) == content(whole)
            shutil.rmtree(path)
    assert not forked(partial(record_or_die, path, address, 0))
    assert content(path) == content(whole), "a resumed sweep has the bytes of an uninterrupted one"
    assert not path.with_name(f"{path.name}.checkpoints").exists()
    here.send("end")
    server.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
