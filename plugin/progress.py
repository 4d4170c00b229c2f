"""How far a recording is: rows done, rows a second and time left, for a terminal, a notebook or a function."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

ProgressFunction = Callable[[str, int, int], None]


class Progress:
    """Rows done, rows per second and time left, on standard error or through a function."""

    def __init__(self, stage: str, done: int, total: int, shown: bool | ProgressFunction | None) -> None:
        """A function is told once how far the stage is before anything is recorded now, then after every batch."""
        self.stage, self.done, self.total = stage, done, total
        self._report = shown if callable(shown) else None
        visible = False if callable(shown) else on_a_screen() if shown is None else shown
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=f"{stage} (recorded before)" if done == total else stage,
            unit="row",
            disable=not visible,
            file=sys.stderr,
            leave=True,
        )

    def advance(self, rows: int) -> None:
        """Count rows that were recorded."""
        self.done += rows
        self._bar.update(rows)
        if self._report is not None:
            self._report(self.stage, self.done, self.total)

    def __enter__(self) -> Self:
        if self._report is not None:
            self._report(self.stage, self.done, self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class StageLines:
    """A progress function for logs and pipes: a line where a stage begins and ends, and one every few seconds.

    Args:
        stages: names of all stages, in the order in which they are recorded.
        say: takes a line.
        every: seconds between two lines.
        clock: seconds from anywhere.

    >>> times = iter([0.0, 30.0, 60.0])
    >>> told = StageLines(["base", "week1"], print, clock=lambda: next(times))
    >>> told("base", 9000, 9000)
    base (1 of 2): complete, skipped
    >>> told("week1", 0, 9000)
    week1 (2 of 2): 0 of 9000 rows
    >>> told("week1", 4500, 9000)
    week1 (2 of 2): 4500 of 9000 rows; about 30 s left
    """

    def __init__(
        self,
        stages: Sequence[str],
        say: Callable[[str], None],
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._say, self._every, self._clock = list(stages), say, every, clock
        self._stage, self._began, self._before, self._told = "", 0.0, 0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """How far a stage is."""
        now = self._clock()
        head = f"{stage} ({self._stages.index(stage) + 1} of {len(self._stages)})"
        if stage != self._stage:
            self._stage, self._began, self._before, self._told = stage, now, done, now
            self._say(f"{head}: complete, skipped" if done == total else f"{head}: {done} of {total} rows")
        elif done == total:
            self._say(f"{head}: {done} of {total} rows, done in {span(now - self._began)}")
        elif now - self._told >= self._every:
            self._told = now
            left = (now - self._began) / (done - self._before) * (total - done)
            where = "" if stage == self._stages[-1] else " for this stage"
            self._say(f"{head}: {done} of {total} rows; about {span(left)} left{where}")


def span(seconds: float) -> str:
    """Seconds in words.

    >>> span(4.2), span(75), span(600)
    ('4 s', '1 min 15 s', '10 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min" if minutes >= 10 or not rest else f"{minutes} min {rest} s"


def on_a_screen() -> bool:
    """Whether somebody watches standard error: a terminal, or a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
