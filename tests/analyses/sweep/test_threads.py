"""The limit on BLAS threads: overlapping blocks share the smallest one, and the last block restores the original."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import xarray as xr
from threadpoolctl import ThreadpoolController

from stratalens.analyses.data.slabs import Slab
from stratalens.analyses.sweep import threads
from stratalens.analyses.sweep.run import run_slabs
from support.planted import planted


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()]


@pytest.fixture(autouse=True)
def four_threads() -> object:
    """BLAS starts with four threads, whatever the environment says."""
    with ThreadpoolController().limit(limits=4, user_api="blas"):
        yield


def test_overlapping_blocks_share_the_smallest_limit() -> None:
    limit = threads.BlasLimit()
    with limit.at_most(3):
        assert set(blas_threads()) == {3}
        with limit.at_most():
            assert set(blas_threads()) == {3}, "a block without a number takes the limit in force"
        with limit.at_most(2):
            assert set(blas_threads()) == {2}
        assert set(blas_threads()) == {3}
    assert set(blas_threads()) == {4}
    with limit.at_most():
        assert set(blas_threads()) == {1}, "without a limit in force it is one thread"


def test_a_block_of_another_thread_keeps_its_limit() -> None:
    limit = threads.BlasLimit()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with limit.at_most(2):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with limit.at_most(1):
        thread.start()
        entered.wait(10)
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {2}
    leave.set()
    thread.join()
    assert set(blas_threads()) == {4}


def test_an_error_restores_the_original_numbers() -> None:
    limit = threads.BlasLimit()
    with pytest.raises(ZeroDivisionError), limit.at_most(1):
        _ = 1 // 0
    assert set(blas_threads()) == {4}


def test_a_sweep_gives_idle_cores_to_blas_and_restores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = threads.BlasLimit()
    monkeypatch.setattr(threads, "blas_limit", limit)
    monkeypatch.setattr("stratalens.analyses.sweep.run.cores", lambda: 6)
    seen = []

    def function(slab: Slab) -> xr.Dataset:
        seen.extend(blas_threads())
        return xr.Dataset({"n": np.int64(len(slab.rows))})

    run_slabs(planted(stages=2, layers=1), function, workers=2, progress=False)
    assert set(seen) == {3}
    assert set(blas_threads()) == {4}
    seen.clear()
    run_slabs(planted(stages=2, layers=1), function, scheduler="synchronous", progress=False)
    assert set(seen) == {1}
