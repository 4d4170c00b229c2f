"""Work on demand: in order, with progress, cancelled between two tasks, its failures told."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stratalens.analyses.explorer.app import explain
from stratalens.analyses.explorer.background_task import Job, Progress
from stratalens.store.errors import InputError


def run(keys: list[int], task: Any) -> tuple[dict[int, Any], list[Progress], Job]:
    kept: dict[int, Any] = {}
    told: list[Progress] = []
    job = Job(keys, task, kept.__setitem__, told.append).start()
    job.join(30)
    return kept, told, job


def test_all_tasks_in_order() -> None:
    kept, told, job = run([3, 1, 2], lambda k: k * 10)
    assert list(kept.items()) == [(3, 30), (1, 10), (2, 20)]
    assert [(p.state, p.done) for p in told] == [("running", 1), ("running", 2), ("done", 3)]
    assert not job.running


def test_cancelled_between_two_tasks_keeps_what_is_done() -> None:
    kept: dict[int, int] = {}
    told: list[Progress] = []
    begun, go = threading.Event(), threading.Event()

    def task(key: int) -> int:
        begun.set()
        go.wait(30)
        return key

    job = Job([1, 2, 3], task, kept.__setitem__, told.append).start()
    assert begun.wait(30)
    job.cancel()
    go.set()
    job.join(30)
    assert kept == {1: 1}
    assert told[-1] == Progress("cancelled", 1, 3)


def test_what_is_refused_is_the_message_and_a_defect_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(key: int) -> int:
        raise InputError("two groups are needed")

    assert run([1, 2], refused)[1] == [Progress("failed", 0, 2, "two groups are needed")]
    told = run([1], lambda key: 1 // 0)[1]
    assert told[-1].state == "failed"
    assert "ZeroDivisionError" in told[-1].error
    assert "Traceback" in capsys.readouterr().err


def test_every_error_has_words_for_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install 'stratalens[explore]'" in explain(ImportError("no", name="datashader"))
    assert "Permission denied (x.zarr)" in explain(PermissionError(13, "Permission denied", "x.zarr"))
    assert "defect of stratalens (KeyError" in explain(KeyError("a"))
    assert "KeyError" in capsys.readouterr().err
