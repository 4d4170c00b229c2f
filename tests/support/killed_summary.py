"""A summary whose process is killed at changes of the disk and after batches, and repeated until it is complete.

`python -m support.killed_summary FOLDER` writes `whole` without interruption and `run` with a kill at every moment in
turn. One process imports torch and forks a child for each run.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stratalens.plugin.capture.summarize import summarize
from support.models import TwoLayers, run_two_layers, table, tokenizer


def run_in_child(path: Path, moment: int) -> bool:
    """Summarize in a child that kills itself at its `moment`-th change; return whether it was killed."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), f"the summary failed instead of being killed (status {status})"
        return status != 0
    try:
        changes = [0]

        def tick(*_: Any) -> None:
            changes[0] += 1
            if changes[0] == moment:
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
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # otherwise the first collection of every child visits all objects of torch
    assert not run_in_child(folder / "whole", 0)
    moment = 1
    while run_in_child(folder / "run", moment):
        moment += 1
    assert moment > 10


if __name__ == "__main__":
    main(Path(sys.argv[1]))
