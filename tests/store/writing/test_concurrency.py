"""Several processes on one store: ranks that share it, writers that collide, readers while it is written."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from stratalens.store import ActivationWriter, open_store, verify_store
from stratalens.store.errors import StoreBusyError
from support import synthetic_writer
from support.paths import TESTS
from support.synthetic_writer import STAGES, content, never_shows_what_was_not_written, stream

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}


def rank(path: Path, number: int, size: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "support.synthetic_writer", str(path), "--shared", str(number), str(size)]
    return subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def test_ranks_write_one_store_together(tmp_path: Path) -> None:
    stream(tmp_path / "alone.zarr")
    path = tmp_path / "run.zarr"
    ranks = [rank(path, number, 3) for number in range(3)]
    for process in ranks:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    assert verify_store(path).ok
    assert open_store(path).recorded.values.all()
    # No writer came after them: the ranks merged the commit records of every stage themselves.
    assert sorted(p.name for p in (path / ".stratalens" / "commits").iterdir()) == ["0000.0", "0001.0", "0002.0"]
    assert content(path) == content(tmp_path / "alone.zarr")


def test_a_pool_of_processes_writes_one_store(tmp_path: Path) -> None:
    stream(tmp_path / "alone.zarr")
    path = tmp_path / "run.zarr"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job in [pool.submit(stream, path, None, (number, 2)) for number in range(2)]:
            job.result()
    assert content(path) == content(tmp_path / "alone.zarr")


def test_dask_workers_write_one_store(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    stream(tmp_path / "alone.zarr")
    path = tmp_path / "run.zarr"
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path / "d")
    )
    with cluster, distributed.Client(cluster) as client:
        workers = list(client.scheduler_info()["workers"])
        jobs = [
            client.submit(stream, path, None, (number, 2), workers=[worker], pure=False)
            for number, worker in enumerate(workers)
        ]
        client.gather(jobs)
    assert content(path) == content(tmp_path / "alone.zarr")


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    synthetic_writer.make(path)
    with ActivationWriter(path):
        for shared in (False, True):
            with pytest.raises(StoreBusyError, match=rf"being written by process {os.getpid()} on"):
                ActivationWriter(path, shared=shared)
    one, two = ActivationWriter(path, shared=True), ActivationWriter(path, shared=True)
    with one, two, pytest.raises(StoreBusyError, match="shared=True"):
        ActivationWriter(path)
    ActivationWriter(path).close()


def test_two_that_want_the_same_block(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    synthetic_writer.make(path)
    with ActivationWriter(path, shared=True) as one, ActivationWriter(path, shared=True) as two:
        first = one.stage("s0", order=0, fingerprint="f")
        second = two.stage("s0", order=0, fingerprint="f")
        block = next(first.pending())
        buffer = first.buffer(block)
        with pytest.raises(StoreBusyError, match=r"block 0 of stage 's0' .*rank, size"):
            second.buffer(block)
        buffer.discard()
        second.submit(synthetic_writer.fill_randomly(second.buffer(block), two.store, 0))
        second.close()
        first.close()
    assert open_store(path).recorded.values.sum() == len(block)


def test_locks_of_killed_writers_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    synthetic_writer.make(path)
    code = (
        "import os, signal, sys; from stratalens.store import ActivationWriter\n"
        "shared = sys.argv[2] == 'shared'\n"
        "writer = ActivationWriter(sys.argv[1], shared=shared)\n"
        "stage = writer.stage('s0', order=0, fingerprint='sha256:s0')\n"
        "buffer = stage.buffer(next(stage.pending()))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for mode in ("shared", "alone"):
        done = subprocess.run([sys.executable, "-c", code, str(path), mode], env=ENVIRONMENT, check=False)
        assert done.returncode == -signal.SIGKILL
    stream(path)
    assert open_store(path).recorded.values.all()
    assert not list((path / ".stratalens" / "claims").iterdir())


def test_readers_see_what_is_committed_and_never_write(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    synthetic_writer.make(path)
    rows_recorded: list[int] = []
    with ActivationWriter(path) as writer:
        for order, name in enumerate(STAGES):
            with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending():
                    stage.submit(synthetic_writer.fill_randomly(stage.buffer(block), writer.store, order))
                    writer.background.drain()
                    before = content(path)
                    ds = open_store(path)
                    rows_recorded.append(int(ds.recorded.values.sum()))
                    ds.resid_post.load()
                    assert content(path) == before
                    early = ds.isel(stage=[-1])
                never_shows_what_was_not_written(path)
    sizes = [min(6, synthetic_writer.ENTITIES - 6 * (i % 4)) for i in range(12)]
    assert rows_recorded == np.cumsum(sizes).tolist()
    assert early.recorded.values.all()


def test_a_read_only_store_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    stream(path)
    for folder, _, files in os.walk(path):
        for name in files:
            Path(folder, name).chmod(0o444)
        Path(folder).chmod(0o555)
    try:
        assert open_store(path).recorded.values.all()
        assert verify_store(path).ok
    finally:
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o755)
