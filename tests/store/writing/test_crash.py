"""A killed or interrupted writer, a full or failing disk: no block is lost, incomplete or recorded twice."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from stratalens.store import open_store, verify_store
from stratalens.store.errors import NoSpaceError, StratalensError
from stratalens.store.format import shards
from stratalens.store.state.manifest import load
from stratalens.store.storage.disk import DiskOperations
from stratalens.store.storage.local import LocalStorage
from stratalens.store.writing import writer as stagewriter
from stratalens.store.writing.writer import ActivationWriter
from support import synthetic_writer
from support.crashing_storage import CountingDisk, DyingDisk, forked
from support.paths import TESTS
from support.synthetic_writer import committed_files, content, never_shows_what_was_not_written, stream
from support.thorough import THOROUGH

KILLS = int(os.environ.get("STRATALENS_KILLS", "40" if THOROUGH else "15"))


def start(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-m", "support.synthetic_writer", str(path), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def whole(module_path: Path) -> dict[str, bytes]:
    stream(module_path / "whole.zarr")
    return content(module_path / "whole.zarr")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_any_change_of_the_disk(tmp_path: Path, whole: dict[str, bytes]) -> None:
    counting = CountingDisk()
    stream(tmp_path / "count.zarr", LocalStorage(tmp_path / "count.zarr", counting))
    generator = random.Random(0)
    path = tmp_path / "run.zarr"
    killed = 0
    committed: dict[str, tuple[int, int]] = {}
    while killed < KILLS:
        # Mostly from nothing to the end in steps, each kill somewhere in what is left.
        dying = DyingDisk(generator.randint(1, counting.changes), generator.random() < 0.5)
        if forked(partial(stream, path, LocalStorage(path, dying))):
            killed += 1
            if (path / "zarr.json").exists():
                never_shows_what_was_not_written(path)
                assert verify_store(path).ok
                xr.open_zarr(path).close()
        now = committed_files(path)
        assert committed.items() <= now.items(), "a block was lost, or recorded twice"
        committed = now
        if generator.random() < 0.25:
            stream(path)
            assert committed.items() <= committed_files(path).items()
            assert content(path) == whole
            shutil.rmtree(path)
            committed = {}
    stream(path)
    assert content(path) == whole
    assert verify_store(path).ok


def test_killed_from_outside(tmp_path: Path, whole: dict[str, bytes]) -> None:
    path = tmp_path / "run.zarr"
    for _ in range(3):
        process = start(path)
        while process.poll() is None and not any((path / ".stratalens" / "commits").glob("*")):
            pass
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        never_shows_what_was_not_written(path)
    stream(path)
    assert content(path) == whole


class FailingDisk(DiskOperations):
    """Fails the n-th write, fsync or rename with an errno."""

    def __init__(self, moment: int, code: int) -> None:
        self.left, self.code, self.gate = moment, code, threading.Lock()

    def tick(self) -> None:
        with self.gate:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code))

    def write(self, descriptor: int, data: memoryview) -> int:
        self.tick()
        return super().write(descriptor, data)

    def fsync(self, descriptor: int, path: Path) -> None:
        self.tick()
        super().fsync(descriptor, path)

    def rename(self, source: Path, target: Path) -> None:
        self.tick()
        super().rename(source, target)


@pytest.fixture(params=["alone", "prefetched"])
def sealed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let another thread checksum small files, in many slices, as it does for large files."""
    if request.param == "prefetched":
        monkeypatch.setattr(stagewriter, "PREFETCH_BYTES", 0)
        monkeypatch.setattr(stagewriter, "cores", lambda: 2)
        monkeypatch.setattr(shards, "WRITE_BYTES", 64)
    return str(request.param)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_disk(tmp_path: Path, whole: dict[str, bytes], code: int, sealed: str) -> None:
    generator = random.Random(code)
    for number in range(12):
        path = tmp_path / f"{number}.zarr"
        expected = NoSpaceError if code == errno.ENOSPC else StratalensError
        with pytest.raises(expected, match="again"):
            stream(path, LocalStorage(path, FailingDisk(generator.randint(1, 240), code)))
        if (path / "zarr.json").exists():
            never_shows_what_was_not_written(path)
            temporaries = path / ".stratalens" / "tmp"
            assert not list(temporaries.iterdir())
        stream(path)
        assert content(path) == whole


def test_file_size_limit_is_a_full_disk(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """The kernel itself refuses a write in the middle of a shard."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from support.synthetic_writer import stream, make\n"
        "make(Path(sys.argv[1]))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))\n"
        "stream(Path(sys.argv[1]))\n"
    )
    path = tmp_path / "run.zarr"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert "NoSpaceError: no space left" in run.stderr
    never_shows_what_was_not_written(path)
    stream(path)
    assert content(path) == whole


def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """A tmpfs of several sizes is too small; with enough space the same call gives the uninterrupted store."""
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    probe = [*command, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let this user mount a tmpfs")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    for kibibytes in (96, 260):
        folder = tmp_path / str(kibibytes) / "disk"
        folder.mkdir(parents=True)
        run = subprocess.run(
            [*command, sys.executable, "-m", "support.full_disk", str(folder), str(kibibytes)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.stdout.startswith("full "), run.stderr[-2000:]


def test_ctrl_c(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for blocks in range(5):
        path = tmp_path / f"{blocks}.zarr"
        store = synthetic_writer.make(path)

        def interrupted(store: Any, blocks: int) -> None:
            with ActivationWriter(store) as writer, writer.stage("s0", order=0, fingerprint="sha256:s0") as stage:
                for number, block in enumerate(stage.pending()):
                    buffer = synthetic_writer.fill_randomly(stage.buffer(block), writer.store, seed=0)
                    if number == blocks:
                        raise KeyboardInterrupt
                    stage.submit(buffer)
                if blocks == 4:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted(store, blocks)
        assert open_store(path).recorded.values.sum() == min(6 * blocks, synthetic_writer.ENTITIES)
        never_shows_what_was_not_written(path)
        stream(path)
        assert content(path) == whole


def test_an_error_in_the_background_surfaces_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    synthetic_writer.make(path)
    disk = FailingDisk(10**9, errno.EIO)
    writer = ActivationWriter(load(LocalStorage(path, disk)))
    stage = writer.stage("s0", order=0, fingerprint="sha256:s0")
    blocks = list(stage.pending())
    disk.left = 3
    stage.submit(synthetic_writer.fill_randomly(stage.buffer(blocks[0]), writer.store, 0))
    writer.background.drain()
    with pytest.raises(StratalensError, match=r"writing to .* failed"):
        stage.buffer(blocks[1])
    with pytest.raises(StratalensError, match=r"writing to .* failed"):
        writer.close()
    assert not open_store(path).recorded.values.any()
