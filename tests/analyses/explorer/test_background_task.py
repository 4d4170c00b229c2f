"""Background work: order, progress, cancellation, failures."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from stratalens.analyses.centroids.centroids import project
from stratalens.analyses.data.cancellation import AnalysisCancelled, cancel_when, raise_if_cancelled
from stratalens.analyses.explorer.background_task import BackgroundTask, Progress
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.sweep.run import sweep
from stratalens.store import open_store
from stratalens.store.errors import InputError
from support.stores import make_store


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
    assert [p.seconds_left is None for p in reported] == [False, False, True]
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


def test_cancelled_inside_a_step(tmp_path: Path) -> None:
    """A step ends at the next check of the analysis itself, in the threads of the sweep too."""
    ds = open_store(make_store(tmp_path / "run.zarr", 3, 1, 40, ("last",), 8))
    reported: list[Progress] = []
    fits: list[int] = []

    def counted(x: Any) -> Any:
        fits.append(1)
        if len(fits) > 1:  # after the first slab
            background.cancel()
            raise_if_cancelled()
        return x.mean("entity")

    background = BackgroundTask([1], lambda key: sweep(ds, counted, compute=True, workers=1), fail, reported.append)
    background.start().join(60)
    assert reported == [Progress("cancelled", 0, 1)]
    assert len(fits) == 2


@pytest.mark.parametrize(
    "analysis",
    [
        lambda ds: probe(ds, pairs="all", permutations=500, progress=False),
        lambda ds: probe(ds, pairs="all", method="lda", permutations=500, progress=False),
        lambda ds: project(ds, permutations=2000, bootstrap=2000, progress=False),
    ],
)
def test_the_analyses_check_often(tmp_path: Path, analysis: Any) -> None:
    ds = open_store(make_store(tmp_path / "run.zarr", 4, 1, 90, ("last",), 16, planted=1.0))
    checks: list[int] = []

    def count_checks() -> bool:
        checks.append(1)
        return len(checks) > 30

    with cancel_when(count_checks), pytest.raises(AnalysisCancelled):
        analysis(ds.sel(stage=["s3"]))
    assert len(checks) == 31


def fail(key: int, result: Any) -> None:
    raise AssertionError("no result")


def test_what_is_refused_is_the_message_and_a_defect_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(key: int) -> int:
        raise InputError("two groups are needed")

    assert run([1, 2], refused)[1] == [Progress("failed", 0, 2, "two groups are needed")]
    reported = run([1], lambda key: 1 // 0)[1]
    assert reported[-1].state == "failed"
    assert "ZeroDivisionError" in reported[-1].error
    assert "Traceback" in capsys.readouterr().err
