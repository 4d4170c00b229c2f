"""Threads that read: their number, and their errors."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from stratalens.store import threads


def test_threads_help_where_cores_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """All readers of a process share one thread a core; child processes get no helper threads."""
    monkeypatch.setattr(threads, "cores", lambda: 3)

    def used(tasks: int, high_latency: bool = False) -> int:
        names: set[str] = set()
        gate = threading.Barrier(min(tasks, 16 if high_latency else 3), timeout=20)

        def task() -> None:
            names.add(threading.current_thread().name)
            if gate.n_waiting < gate.parties and not gate.broken:
                gate.wait()

        threads.run_tasks([task] * gate.parties, high_latency=high_latency)
        return len(names)

    assert used(3) == 3
    assert used(16, high_latency=True) == 16
    alone: list[str] = []
    monkeypatch.setattr(threads.multiprocessing, "parent_process", lambda: object())
    threads.run_tasks([lambda: alone.append(threading.current_thread().name)] * 5)
    assert set(alone) == {threading.current_thread().name}


def test_an_error_in_a_helper_comes_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    done: list[int] = []

    def task(number: int) -> None:
        if number == 3:
            raise ValueError("the third")
        done.append(number)

    with pytest.raises(ValueError, match="the third"):
        threads.run_tasks([partial(task, n) for n in range(200)])
    assert threads._reading == 0
