"""Work on demand: a list of small tasks in a thread of its own, with progress, and cancelled between two of them."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stratalens.store.errors import StratalensError

State = Literal["running", "done", "cancelled", "failed"]


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        state: running | done | cancelled | failed.
        done, total: tasks.
        error: why it failed, for the page.
    """

    state: State
    done: int
    total: int
    error: str = ""


class Job:
    """Runs `task(key)` for every key, in order, in one thread.

    Args:
        keys: what is to be done.
        task: does one of them and returns its result.
        keep: called with (key, result) after each, in the thread of the job.
        tell: called with a `Progress` after each and at the end, in the thread of the job.

    What the store or the analyses refuse ends the job with their message; so does any other
    exception, whose traceback goes to standard error, for it is a defect.
    """

    def __init__(
        self,
        keys: Sequence[Any],
        task: Callable[[Any], Any],
        keep: Callable[[Any, Any], None],
        tell: Callable[[Progress], None],
    ) -> None:
        self.keys = list(keys)
        self._task, self._keep, self._tell = task, keep, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stratalens-explorer", daemon=True)

    def start(self) -> Job:
        """Begin; returns at once."""
        self._thread.start()
        return self

    def cancel(self) -> None:
        """Begin no further task; what is done is kept."""
        self._stop.set()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._thread.is_alive()

    def _run(self) -> None:
        done, total = 0, len(self.keys)
        try:
            for key in self.keys:
                if self._stop.is_set():
                    self._tell(Progress("cancelled", done, total))
                    return
                self._keep(key, self._task(key))
                done += 1
                if done < total:
                    self._tell(Progress("running", done, total))
        except StratalensError as error:
            self._tell(Progress("failed", done, total, str(error)))
        except Exception as error:  # the page must say so: nobody waits for this thread
            traceback.print_exception(error)
            self._tell(Progress("failed", done, total, f"{type(error).__name__}: {error}"))
        else:
            self._tell(Progress("done", done, total))
