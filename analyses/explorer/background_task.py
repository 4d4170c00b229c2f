"""Background work as a list of small steps, with progress; it can be cancelled at any time."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stratalens.analyses.data.cancellation import AnalysisCancelled, cancel_when
from stratalens.store.errors import StratalensError

TaskState = Literal["running", "done", "cancelled", "failed"]


@dataclass(frozen=True)
class Progress:
    """State of a background task.

    Attributes:
        state: running | done | cancelled | failed.
        done, total: numbers of steps.
        error: message of a failure, for the page.
        seconds_left: forecast from the mean time of a step; None before the first one.
    """

    state: TaskState
    done: int
    total: int
    error: str = ""
    seconds_left: float | None = None


class BackgroundTask:
    """A thread that calls `function(key)` for every key, in order.

    A StratalensError ends the task with its message. So does any other exception, which is a defect; its
    traceback goes to standard error.

    Args:
        keys: arguments of the steps.
        function: performs one step and returns its result.
        on_result: called with (key, result) after each step, in the thread of the task.
        on_progress: called with a `Progress` after each step and at the end, in the thread of the task.
    """

    def __init__(
        self,
        keys: Sequence[Any],
        function: Callable[[Any], Any],
        on_result: Callable[[Any, Any], None],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.keys = list(keys)
        self._function, self._on_result, self._on_progress = function, on_result, on_progress
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stratalens-explorer", daemon=True)

    def start(self) -> BackgroundTask:
        """Start the thread and return at once."""
        self._thread.start()
        return self

    def cancel(self) -> None:
        """End the current step at its next check, and start no further one; results of finished steps remain."""
        self._cancelled.set()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    @property
    def running(self) -> bool:
        """Whether the thread is still running."""
        return self._thread.is_alive()

    def _run(self) -> None:
        done, total, start = 0, len(self.keys), time.monotonic()
        try:
            for key in self.keys:
                if self._cancelled.is_set():
                    raise AnalysisCancelled
                with cancel_when(self._cancelled.is_set):
                    result = self._function(key)
                self._on_result(key, result)
                done += 1
                if done < total:
                    seconds = (time.monotonic() - start) / done * (total - done)
                    self._on_progress(Progress("running", done, total, seconds_left=seconds))
        except AnalysisCancelled:
            self._on_progress(Progress("cancelled", done, total))
        except StratalensError as error:
            self._on_progress(Progress("failed", done, total, str(error)))
        except Exception as error:  # no one waits for this thread, so the page must show the error
            traceback.print_exception(error)
            self._on_progress(Progress("failed", done, total, f"{type(error).__name__}: {error}"))
        else:
            self._on_progress(Progress("done", done, total))
