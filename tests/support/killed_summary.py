"""A summary whose process is killed at changes of the disk and after batches, and repeated until it is complete.

`python -m support.killed_summary FOLDER` writes `whole` without interruption and `run` with a kill at later and later
moments. One process imports torch and forks a child for each run.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stratalens.plugin.capture.summarize import summarize
from support.crashing_storage import forked
from support.models import TwoLayers, run_two_layers, table, tokenizer


def summarize_or_die(path: Path, moment: int) -> None:
    """Summarize in this process, which kills itself at its `moment`-th change of the disk or batch."""
    changes = itertools.count(1)

    def tick(*_: Any) -> None:
        if next(changes) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            tick()
            return change(*arguments, **options)

        return wrapper

    for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "mkdir")):
        setattr(module, name, counted(getattr(module, name)))
    summarize(
        {"a": TwoLayers(), "b": TwoLayers(1)},
        table(20),
        path,
        by="group",
        sites=("layers.{layer}.hook_state",),
        tokenizer=tokenizer(),
        forward=run_two_layers,
        batch_size=4,
        block_size=8,
        checkpoint_seconds=0,
        check=False,
        progress=tick,
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # otherwise the first collection of every child visits all objects of torch
    assert not forked(partial(summarize_or_die, folder / "whole", 0))
    moment = 1
    while forked(partial(summarize_or_die, folder / "run", moment)):
        moment += 1 + moment // 10  # every early moment, then ever fewer: a finished stage has hundreds of files
    assert moment > 10


if __name__ == "__main__":
    main(Path(sys.argv[1]))
