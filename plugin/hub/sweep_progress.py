"""Lines about a sweep: the checkpoint, its rows, and the time left for all checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from stratalens.plugin.progress import (
    SECONDS_BETWEEN_LINES,
    ProgressFunction,
    format_duration,
    is_interactive,
    wrap_message,
)

Say = Callable[[str], None]


def line_printer(progress: Any) -> Say:
    """Return a function that prints lines to standard error, or one that prints nothing.

    Args:
        progress: True prints, None prints on a terminal and in a notebook.
    """
    if progress is True or (progress is None and is_interactive()):
        return _print_line
    return _print_nothing


def _print_line(line: str) -> None:
    print(wrap_message(line), file=sys.stderr, flush=True)  # noqa: T201


def _print_nothing(line: str) -> None:
    """Print nothing."""


class SweepProgress:
    """A progress function for a sweep. The time left includes downloads.

    Args:
        stages: the stages that this call records, in order.
        say: prints a line.
        other: a further progress function, or None.
        on_start: called with each stage when its first batch is about to run.

    Example:
        >>> times = iter([0.0, 40.0, 60.0, 60.0])
        >>> report = SweepProgress(["step1", "step2"], print, clock=lambda: next(times))
        >>> report("step1", 0, 900)
        step1 (1 of 2): 0 of 900 rows
        >>> report("step1", 900, 900)
        step1 (1 of 2): recorded; about 1 min left in all
    """

    def __init__(
        self,
        stages: Sequence[str],
        say: Say,
        other: ProgressFunction | None = None,
        on_start: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._say, self._other, self._on_start = list(stages), say, other, on_start
        self._clock = clock
        self._start = self._last_line = clock()
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report the rows done of a stage."""
        if self._other is not None:
            self._other(stage, done, total)
        place = self._stages.index(stage)
        head = f"{stage} ({place + 1} of {len(self._stages)})"
        now = self._clock()
        if stage != self._stage:
            self._stage, self._last_line = stage, now
            self._say(f"{head}: {done} of {total} rows")
            if self._on_start is not None:
                self._on_start(stage)
        elif done == total:
            self._say(f"{head}: recorded{self._left(now, place + 1)}")
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._say(f"{head}: {done} of {total} rows{self._left(now, place + done / total)}")

    def _left(self, now: float, checkpoints: float) -> str:
        """Return the time left, from the time that the checkpoints so far took."""
        left = len(self._stages) - checkpoints
        if left <= 0 or checkpoints <= 0:
            return ""
        return f"; about {format_duration((now - self._start) / checkpoints * left)} left in all"
