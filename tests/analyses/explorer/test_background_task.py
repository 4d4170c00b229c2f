"""Background work: order, progress, cancellation between two steps, failures."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stratalens.analyses.explorer.background_task import BackgroundTask, Progress
from stratalens.store.errors import InputError


def run(keys: list[int], task: Any) -> tuple[dict[int, Any], list[Progress], BackgroundTask]:
    results: dict[int, Any] = {}
    reported: list[Progress] = []
    background = BackgroundTask(keys, task, results.__setitem__, reported.append).start()
    background.join(30)
    return results, reported, background


def test_all_tasks_in_order() -> None:
    results, reported, background = run([3, 1, 2], lambda k: k * 10)
    assert list(results.items()) == [(3, 30), (1, 10), (2, 20)]
    assert [(p.state, p.done) for p in reported] == [("running", 1), ("running", 2), ("done", 3)]
    assert not background.running


def test_cancelled_between_two_tasks_keeps_what_is_done() -> None:
    results: dict[int, int] = {}
    reported: list[Progress] = []
    started, proceed = threading.Event(), threading.Event()

    def task(key: int) -> int:
        started.set()
        proceed.wait(30)
        return key

    background = BackgroundTask([1, 2, 3], task, results.__setitem__, reported.append).start()
    assert started.wait(30)
    background.cancel()
    proceed.set()
    background.join(30)
    assert results == {1: 1}
    assert reported[-1] == Progress("cancelled", 1, 3)


def test_what_is_refused_is_the_message_and_a_defect_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(key: int) -> int:
        raise InputError("two groups are needed")

    assert run([1, 2], refused)[1] == [Progress("failed", 0, 2, "two groups are needed")]
    reported = run([1], lambda key: 1 // 0)[1]
    assert reported[-1].state == "failed"
    assert "ZeroDivisionError" in reported[-1].error
    assert "Traceback" in capsys.readouterr().err
