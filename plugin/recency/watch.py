"""What a long run says while it goes: which step, how far, about how long still. Standard error only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from stratalens.folding import folded
from stratalens.progress import span


class Watch:
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
        self.say(f"[{place}/{len(self.shares)}] {name}: done in {span(self.seconds[name])}")

    def tell(self, what: str, done: float, total: float) -> None:
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
            line += f"; about {span(left)} left in all"
        self.say(line)

    def say(self, line: str) -> None:
        """One line, now; folded between words where a terminal is too narrow for it."""
        if not self.quiet:
            print(folded(line), file=sys.stderr, flush=True)  # noqa: T201
