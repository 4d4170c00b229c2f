"""Progress bars, progress lines, durations and wrapped messages on standard error."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from stratalens.analyses.sweep.progress_bar import tqdm
from stratalens.plugin.compat import hide_gguf_progress
from stratalens.store.display import in_notebook

ProgressFunction = Callable[[str, int, int], None]


class Progress:
    """Progress of one stage: rows done, rows per second and time left.

    Args:
        stage: name of the stage.
        done: rows that earlier runs recorded.
        total: rows of the stage.
        shown: True or False shows or hides a bar on standard error; None shows it on a terminal
            and in a notebook. A function gets (stage, done, total) instead, once before the first
            batch and then after every batch.
    """

    def __init__(self, stage: str, done: int, total: int, shown: bool | ProgressFunction | None) -> None:
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
        """Count newly recorded rows."""
        self.done += rows
        self._bar.update(rows)
        if self._report is not None:
            self._report(self.stage, self.done, self.total)

    def __enter__(self) -> Self:
        if self._report is not None:
            self._report(self.stage, self.done, self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


SECONDS_BETWEEN_LINES = 10.0


class StageLines:
    """A progress function for logs and pipes.

    It prints a line at the start and end of a stage, and one every few seconds.

    Args:
        stages: names of all stages in the order of recording.
        say: function that prints a line.

    Example:
        >>> times = iter([0.0, 30.0, 60.0])
        >>> report = StageLines(["base", "week1"], print)
        >>> report.clock = lambda: next(times)
        >>> report("base", 9000, 9000)
        base (1 of 2): complete, skipped
        >>> report("week1", 0, 9000)
        week1 (2 of 2): 0 of 9000 rows
        >>> report("week1", 4500, 9000)
        week1 (2 of 2): 4500 of 9000 rows; about 30 s left
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, stages: Sequence[str], say: Callable[[str], None]) -> None:
        self._stages, self._say = list(stages), say
        self._stage = ""
        self._start_time = self._last_line_time = 0.0
        self._start_rows = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report the rows done of a stage."""
        now = self.clock()
        head = f"{stage} ({self._stages.index(stage) + 1} of {len(self._stages)})"
        if stage != self._stage:
            self._stage, self._start_rows = stage, done
            self._start_time = self._last_line_time = now
            self._say(f"{head}: complete, skipped" if done == total else f"{head}: {done} of {total} rows")
        elif done == total:
            self._say(f"{head}: {done} of {total} rows, done in {format_duration(now - self._start_time)}")
        elif now - self._last_line_time >= SECONDS_BETWEEN_LINES:
            self._last_line_time = now
            left = (now - self._start_time) / (done - self._start_rows) * (total - done)
            scope = "" if stage == self._stages[-1] else " for this stage"
            self._say(f"{head}: {done} of {total} rows; about {format_duration(left)} left{scope}")


def format_duration(seconds: float) -> str:
    """Format seconds as words.

    >>> format_duration(4.2), format_duration(75), format_duration(600)
    ('4 s', '1 min 15 s', '10 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min" if minutes >= 10 or not rest else f"{minutes} min {rest} s"


def is_interactive() -> bool:
    """Return whether a person watches standard error: on a terminal or in a notebook."""
    return sys.stderr.isatty() or in_notebook()


def wrap_message(text: str) -> str:
    """Wrap a message to the width of the terminal; leave it unchanged in a pipe.

    The continuation of a line is indented two spaces deeper than the line itself.
    """
    if not sys.stderr.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    return "\n".join(_wrap_line(line, width) for line in text.split("\n"))


def _wrap_line(line: str, width: int) -> str:
    """Wrap one line.

    >>> print(_wrap_line("  no space left on the disk (runs/a-long/name.zarr)", 30))
      no space left on the disk
        (runs/a-long/name.zarr)
    """
    deeper = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, width, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False)


REUSED_PACE = 0.1  # a phase this much faster than the slowest one has reused its results


class PhaseProgress:
    """Progress of a run in named phases.

    Args:
        shares: phase -> its usual share of the total time, in order. Only the
            estimate of the time left uses them.
        quiet: print nothing; times are still measured.
    """

    def __init__(self, shares: Mapping[str, float], quiet: bool = False) -> None:
        self.shares = dict(shares)
        self.quiet = quiet
        self.seconds: dict[str, float] = {}
        self._phase = ""
        self._phase_start = 0.0
        self._last_line_time = 0.0
        self._count_start: tuple[float, float] | None = None  # time and units done
        self._last_count = (0.0, 0.0)  # units done and total

    @contextmanager
    def phase(self, name: str, description: str) -> Iterator[None]:
        """Run one phase; print its description at the start and its duration at the end."""
        self._phase, self._phase_start, self._last_line_time = name, time.monotonic(), 0.0
        self._count_start = None
        head = f"[{list(self.shares).index(name) + 1}/{len(self.shares)}]"
        self.say(f"{head} {description}")
        yield
        self.seconds[name] = time.monotonic() - self._phase_start
        self.say(f"{head} {name}: done in {format_duration(self.seconds[name])}")

    def update(self, description: str, done: float, total: float) -> None:
        """Print the progress of the phase: at most one line every few seconds, and one at its end.

        Another total, or less done than before, starts another count within the phase.
        """
        now = time.monotonic()
        last_done, last_total = self._last_count
        if self._count_start is None or total != last_total or done < last_done:
            # Units that an earlier run has done take no time now.
            self._count_start = (now, done)
        self._last_count = (done, total)
        if done < total and now - self._last_line_time < 5:
            return
        self._last_line_time = now
        start_time, start_done = self._count_start
        line = f"      {description}"
        if done > start_done:
            seconds_per_unit = (now - start_time) / (done - start_done)
            left = self._seconds_left(
                now - self._phase_start, seconds_per_unit * total, seconds_per_unit * (total - done)
            )
            line += f"; about {format_duration(left)} left in all"
        self.say(line)

    def _seconds_left(self, elapsed: float, counted: float, count_left: float) -> float:
        """Estimate the time left from this count, and from the earlier phases by their shares.

        The earlier phases also say how long this phase takes, because another count may follow in it.

        Args:
            elapsed: seconds since the start of the phase.
            counted: seconds of the whole count.
            count_left: seconds of the rest of the count.
        """
        share = self.shares[self._phase]
        counted = max(counted, elapsed + count_left)
        paces = {name: seconds / self.shares[name] for name, seconds in self.seconds.items()}
        slowest = max([counted / share, *paces.values()])
        # A phase whose results come from an earlier run says nothing about the others.
        measured = [name for name, pace in paces.items() if pace > REUSED_PACE * slowest]
        seconds, shares = sum(self.seconds[name] for name in measured), sum(self.shares[name] for name in measured)
        expected = share * seconds / shares if shares >= share else 0.0  # a short phase says little about a long one
        phase = max(counted, expected)
        phases = list(self.shares)
        later = sum(self.shares[name] for name in phases[phases.index(self._phase) + 1 :])
        return phase - elapsed + later * (seconds + phase) / (shares + share)

    def say(self, line: str) -> None:
        """Print one line at once, wrapped to the width of the terminal."""
        if not self.quiet:
            print(wrap_message(line), file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def suppress_progress_bars(*, downloads: bool = True) -> Iterator[None]:
    """Hide the progress bars of Transformers inside; restore them afterwards.

    Args:
        downloads: also hide the bars of downloads. Downloads may take minutes, loading takes seconds.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    loading_shown, downloads_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads_shown and not downloads:
        enable_progress_bars()  # Transformers disables those of downloads with its own
    try:
        with hide_gguf_progress():
            yield
    finally:
        if loading_shown:
            logging.enable_progress_bar()
        (enable_progress_bars if downloads_shown else disable_progress_bars)()
