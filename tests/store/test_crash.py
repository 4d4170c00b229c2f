"""Killed, interrupted, out of space, failing disk, loss of power: nothing half, nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from stratalens.store import open_store, relabel, verify_store
from stratalens.store.errors import NoSpaceError, StratalensError
from stratalens.store.manifest import load
from stratalens.store.storage import LocalStorage
from stratalens.store.writer import ActivationWriter
from support import streamer
from support.streamer import committed_files, content, never_shows_what_was_not_written, stream

TESTS = Path(__file__).parents[1]
KILLS = int(os.environ.get("STRATALENS_KILLS", "40"))


def start(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-m", "support.streamer", str(path), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def whole(module_path: Path) -> dict[str, bytes]:
    stream(module_path / "whole.zarr")
    return content(module_path / "whole.zarr")


class Dying(LocalStorage):
    """Kills its process at the n-th change of the disk, before or in the middle of it."""

    def __init__(self, root: Any, moment: int, half: bool) -> None:
        super().__init__(root)
        self.left, self.half, self.gate = moment, half, threading.Lock()

    def tick(self) -> None:
        with self.gate:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, descriptor: int, data: memoryview) -> int:
        if self.half and self.left == 1 and data.nbytes > 1:
            os.write(descriptor, data[: data.nbytes // 2])
        self.tick()
        return super()._write(descriptor, data)

    def _open(self, path: Path) -> int:
        self.tick()
        return super()._open(path)

    def _fsync(self, descriptor: int, path: Path) -> None:
        self.tick()
        super()._fsync(descriptor, path)

    def _rename(self, source: Path, target: Path) -> None:
        self.tick()
        super()._rename(source, target)

    def _fsync_folder(self, path: Path) -> None:
        self.tick()
        super()._fsync_folder(path)

    def _mkdir(self, path: Path) -> None:
        self.tick()
        super()._mkdir(path)

    def _unlink(self, path: Path) -> None:
        self.tick()
        super()._unlink(path)


class Counting(Dying):
    """Counts the changes of the disk."""

    def __init__(self, root: Any) -> None:
        super().__init__(root, 0, False)

    def tick(self) -> None:
        with self.gate:
            self.left += 1


def killed_at(path: Path, moment: int, half: bool) -> bool:
    """Run the writer in a forked process that kills itself at that moment; whether it did."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            stream(path, Dying(path, moment, half))
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "the writer failed instead of being killed"
    return status != 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_any_change_of_the_disk(tmp_path: Path, whole: dict[str, bytes]) -> None:
    counting = Counting(tmp_path / "count.zarr")
    stream(tmp_path / "count.zarr", counting)
    generator = random.Random(0)
    path = tmp_path / "run.zarr"
    killed = 0
    held: dict[str, tuple[int, int]] = {}
    while killed < KILLS:
        # Mostly from nothing to the end in steps, each kill somewhere in what is left.
        if killed_at(path, generator.randint(1, counting.left), generator.random() < 0.5):
            killed += 1
            if (path / "zarr.json").exists():
                never_shows_what_was_not_written(path)
                assert verify_store(path).ok or (path / ".stratalens").exists()
                xr.open_zarr(path).close()
        now = committed_files(path)
        assert held.items() <= now.items(), "a block was lost, or recorded twice"
        held = now
        if generator.random() < 0.25:
            stream(path)
            assert held.items() <= committed_files(path).items()
            assert content(path) == whole
            shutil.rmtree(path)
            held = {}
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


class Failing(LocalStorage):
    """Fails the n-th write, fsync or rename with an errno."""

    def __init__(self, root: Any, moment: int, code: int) -> None:
        super().__init__(root)
        self.left, self.code, self.gate = moment, code, threading.Lock()

    def _tick(self) -> None:
        with self.gate:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code))

    def _write(self, descriptor: int, data: memoryview) -> int:
        self._tick()
        return super()._write(descriptor, data)

    def _fsync(self, descriptor: int, path: Path) -> None:
        self._tick()
        super()._fsync(descriptor, path)

    def _rename(self, source: Path, target: Path) -> None:
        self._tick()
        super()._rename(source, target)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_disk(tmp_path: Path, whole: dict[str, bytes], code: int) -> None:
    generator = random.Random(code)
    for number in range(12):
        path = tmp_path / f"{number}.zarr"
        expected = NoSpaceError if code == errno.ENOSPC else StratalensError
        with pytest.raises(expected, match="again"):
            stream(path, Failing(path, generator.randint(1, 240), code))
        if (path / "zarr.json").exists():
            never_shows_what_was_not_written(path)
            temporaries = path / ".stratalens" / "tmp"
            assert not list(temporaries.iterdir())
        stream(path)
        assert content(path) == whole


def test_file_size_limit_is_a_full_disk(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """The kernel itself refuses a write in the middle of a shard."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from support.streamer import stream, make\n"
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
    """A tmpfs too small for the store, at several sizes; with room the same call ends as the uninterrupted store."""
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    probe = [*command, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a tmpfs")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    for kibibytes in (96, 260):
        folder = tmp_path / str(kibibytes) / "disk"
        folder.mkdir(parents=True)
        run = subprocess.run(
            [*command, sys.executable, "-m", "support.full_disk", str(folder), str(kibibytes)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.stdout.startswith("full "), run.stderr[-2000:]


def test_ctrl_c(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for blocks in range(5):
        path = tmp_path / f"{blocks}.zarr"
        store = streamer.make(path)

        def interrupted(store: Any, blocks: int) -> None:
            with ActivationWriter(store) as writer, writer.stage("s0", order=0, fingerprint="sha256:s0") as stage:
                for number, block in enumerate(stage.pending()):
                    buffer = streamer.fill_randomly(stage.buffer(block), writer.store, seed=0)
                    if number == blocks:
                        raise KeyboardInterrupt
                    stage.submit(buffer)
                if blocks == 4:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted(store, blocks)
        assert open_store(path).recorded.values.sum() == min(6 * blocks, streamer.ENTITIES)
        never_shows_what_was_not_written(path)
        stream(path)
        assert content(path) == whole


def test_an_error_in_the_background_surfaces_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    streamer.make(path)
    storage = Failing(path, 10**9, errno.EIO)
    writer = ActivationWriter(load(storage))
    stage = writer.stage("s0", order=0, fingerprint="sha256:s0")
    blocks = list(stage.pending())
    storage.left = 3
    stage.submit(streamer.fill_randomly(stage.buffer(blocks[0]), writer.store, 0))
    writer.background.drain()
    with pytest.raises(StratalensError, match=r"writing to .* failed"):
        stage.buffer(blocks[1])
    with pytest.raises(StratalensError, match=r"writing to .* failed"):
        writer.close()
    assert not open_store(path).recorded.values.any()


def table(path: Path) -> dict[str, list[Any]]:
    """Label columns as our reader sees them, and a plain one."""
    ours, plain = open_store(path), xr.open_zarr(path)
    names = [str(name) for name in ours.coords if ours[name].dims == ("entity",)]
    assert {n: plain[n].values.tolist() for n in names} == {n: ours[n].values.tolist() for n in names}
    return {n: ours[n].values.tolist() for n in names}


def change(store: Any) -> None:
    """Two columns changed, one added, one dropped, all at once."""
    rows = range(streamer.ENTITIES)
    ids = [f"r{i:06d}" for i in rows]
    labels = {"trained_stage": [f"new {i}" for i in rows], "entity_id": [f"n{i}" for i in rows], "score": list(rows)}
    relabel(store, {"entity": ids, **labels}, drop=["template"])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("times", [0, 1])
def test_labels_killed_at_every_change_of_the_disk(tmp_path: Path, times: int) -> None:
    """Old labels or new ones, never some of both, whichever of the two places holds the old ones."""
    clean = tmp_path / "clean.zarr"
    stream(clean, stages=streamer.STAGES[:1])
    for number in range(times):
        relabel(
            clean, {"entity": [f"r{i:06d}" for i in range(22)], "trained_stage": [f"{number} {i}" for i in range(22)]}
        )
    shutil.copytree(clean, tmp_path / "count.zarr")
    counting = Counting(tmp_path / "count.zarr")
    change(load(counting))
    old, new = table(clean), table(tmp_path / "count.zarr")
    assert old["trained_stage"] != new["trained_stage"]
    seen = []
    for moment in range(1, counting.left + 1):
        path = tmp_path / "run.zarr"
        shutil.copytree(clean, path)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                change(load(Dying(path, moment, half=moment % 2 == 0)))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        held = table(path)
        assert held in (old, new)
        seen.append(held == new)
        with ActivationWriter(path):  # the next writer puts right what is left
            pass
        assert verify_store(path).ok
        assert table(path) == held
        if held == old:
            change(path)
        assert table(path) == new
        assert verify_store(path).ok
        shutil.rmtree(path)
    assert seen == sorted(seen)  # from one moment on they are the new ones
    assert set(seen) == {False, True}
