"""Progress of a job whose steps have known relative durations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Steps:
    """Reports each step, its number, and about how long the rest will take.

    Args:
        durations: relative duration of each step, in order.
        print_line: called with one line a step.
    """

    def __init__(self, durations: Mapping[str, float], print_line: Callable[[str], None]) -> None:
        self.durations, self.print_line = dict(durations), print_line
        self.start_time = time.monotonic()

    def start(self, name: str, description: str) -> None:
        """Report that a step starts."""
        names = list(self.durations)
        index = names.index(name)
        done = sum(self.durations[n] for n in names[:index])
        left = ""
        if done:
            seconds = (time.monotonic() - self.start_time) / done * (sum(self.durations.values()) - done)
            left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {max(1, seconds):.0f} s left"
        self.print_line(f"[{index + 1} of {len(names)}{left}] {description}")
