"""How far a recording is: rows done, rows a second and time left, for a terminal, a notebook or a function."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        visible = False if callable(shown) else is_interactive() if shown is None else shown
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
            self._say(f"{head}: {done} of {total} rows, done in {format_duration(now - self._began)}")
        elif now - self._told >= self._every:
            self._told = now
            left = (now - self._began) / (done - self._before) * (total - done)
            where = "" if stage == self._stages[-1] else " for this stage"
            self._say(f"{head}: {done} of {total} rows; about {format_duration(left)} left{where}")


def format_duration(seconds: float) -> str:
    """Seconds in words.

    >>> format_duration(4.2), format_duration(75), format_duration(600)
    ('4 s', '1 min 15 s', '10 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min" if minutes >= 10 or not rest else f"{minutes} min {rest} s"


def is_interactive() -> bool:
    """Whether somebody watches standard error: a terminal, or a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def wrap_message(text: str) -> str:
    """What is about to be said on standard error: in a pipe as it is, on a terminal in lines that fit it.

    What goes on from a line is set two blanks deeper than the line itself.
    """
    if not sys.stderr.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    return "\n".join(_filled(line, width) for line in text.split("\n"))


def _filled(line: str, width: int) -> str:
    """One line, as several.

    >>> print(_filled("  no space left on the disk (runs/a-long/name.zarr)", 30))
      no space left on the disk
        (runs/a-long/name.zarr)
    """
    deeper = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, width, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False)


class PhaseProgress:
    """Progress of a run in named phases.

    Args:
        shares: phase -> its usual share of the whole time, in order; only the
            estimate of the time left comes from them.
        quiet: say nothing (times are still kept).
    """

    def __init__(self, shares: Mapping[str, float], quiet: bool = False) -> None:
        self.shares = dict(shares)
        self.quiet = quiet
        self.seconds: dict[str, float] = {}
        self._phase = ""
        self._began = 0.0
        self._told = 0.0
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    @contextmanager
    def phase(self, name: str, what: str) -> Iterator[None]:
        """One phase; says what it is about, and how long it took."""
        self._phase, self._began, self._told, self._first = name, time.monotonic(), 0.0, None
        place = list(self.shares).index(name) + 1
        self.say(f"[{place}/{len(self.shares)}] {what}")
        yield
        self.seconds[name] = time.monotonic() - self._began
        self.say(f"[{place}/{len(self.shares)}] {name}: done in {format_duration(self.seconds[name])}")

    def update(self, what: str, done: float, total: float) -> None:
        """How far the phase is; at most one line every few seconds, and one at its end.

        Another total, or less done than before, begins another count within the phase.
        """
        now = time.monotonic()
        if self._first is None or total != self._last[1] or done < self._last[0]:
            self._first = (now, done)  # what was there before, from an earlier run, takes no time now
        self._last = (done, total)
        if done < total and now - self._told < 5:
            return
        self._told = now
        began, before = self._first
        line = f"      {what}"
        if done > before:
            each = (now - began) / (done - before)
            left = each * (total - done)
            whole = max(each * total, now - self._began + left)
            later = list(self.shares)[list(self.shares).index(self._phase) + 1 :]
            left += whole * sum(self.shares[name] for name in later) / self.shares[self._phase]
            line += f"; about {format_duration(left)} left in all"
        self.say(line)

    def say(self, line: str) -> None:
        """One line, now; folded between words where a terminal is too narrow for it."""
        if not self.quiet:
            print(wrap_message(line), file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def quiet_bars() -> Iterator[None]:
    """No progress bars of transformers inside; as they were afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def quiet_loading() -> None:
    """No bar for each model that is loaded; those of downloads, which take minutes, stay as they are."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    silent = are_progress_bars_disabled()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if not silent:
        enable_progress_bars()
