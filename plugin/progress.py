"""How far a recording is: rows done, rows a second and time left, for a terminal, a notebook or a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

ProgressFunction = Callable[[str, int, int], None]


class Progress:
    """Rows done, rows per second and time left, on standard error or through a function."""

    def __init__(self, stage: str, done: int, total: int, shown: bool | ProgressFunction | None) -> None:
        self.stage, self.done, self.total = stage, done, total
        self._report = shown if callable(shown) else None
        visible = False if callable(shown) else (sys.stderr.isatty() or _in_notebook()) if shown is None else shown
        self._bar = tqdm(
            total=total, initial=done, desc=stage, unit="row", disable=not visible, file=sys.stderr, leave=True
        )

    def advance(self, rows: int) -> None:
        """Count rows that were recorded."""
        self.done += rows
        self._bar.update(rows)
        if self._report is not None:
            self._report(self.stage, self.done, self.total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
