"""Threads that help to read."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

from stratalens.store import threads


@pytest.fixture(autouse=True)
def reader_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own pool."""
    monkeypatch.setattr(threads, "reader_pool", threads.ReaderPool())


def test_threads_help_where_cores_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """All readers of a process together have one thread a core; children of multiprocessing have no helpers."""
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
    assert threads.reader_pool.active_readers == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_with_an_empty_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has neither the threads of its parent nor its lock, which another thread may hold at the fork."""
    monkeypatch.setattr(threads, "cores", lambda: 2)
    threads.run_tasks([lambda: None] * 4)
    threads.reader_pool.active_readers = 5
    with threads.reader_pool._lock:
        child = os.fork()
        if child == 0:
            done: list[int] = []
            threads.run_tasks([partial(done.append, n) for n in range(4)])
            os._exit(0 if sorted(done) == [0, 1, 2, 3] and threads.reader_pool.active_readers == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
