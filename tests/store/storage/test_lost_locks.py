"""A writer whose store was replaced, or whose lease is over, stops before it writes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import fsspec
import numpy as np
import pytest

from stratalens.store import ActivationWriter, open_store, relabel, verify_store
from stratalens.store.errors import InputError, MismatchError, StratalensError
from stratalens.store.state.manifest import load
from stratalens.store.storage import leases
from stratalens.store.storage.local import LocalStorage
from stratalens.store.storage.local_locks import FileLock
from stratalens.store.storage.object_store import RemoteStorage
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.label_columns import write_labels
from support.crash_scenarios import contents, labels, make, record, true_values


def fill(stage: object, writer: ActivationWriter, block: object, name: str) -> object:
    buffer = stage.buffer(block)  # type: ignore[attr-defined]
    for variable in block.variables:  # type: ignore[attr-defined]
        if writer.store.layouts[variable].variable.attrs.get("kind") != "flag":
            rows = range(block.start, block.stop)  # type: ignore[attr-defined]
            buffer.write(variable, rows, true_values(variable, name, block.index, writer.store))  # type: ignore[attr-defined]
    return buffer


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "moved"])
def test_a_writer_notices_that_its_folder_is_another_one(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    with (  # noqa: PT012 - any of these calls may raise the error of the background thread
        pytest.raises(MismatchError, match="moved, removed or replaced"),
        ActivationWriter(path) as writer,
        writer.stage("s0", order=0, fingerprint="f-s0") as stage,
    ):
        for block in stage.pending():
            stage.submit(fill(stage, writer, block, "s0"))
            if block.index == 0:
                writer.background.drain()
                path.rename(tmp_path / "moved.zarr")
                if replaced:
                    record(path, stages=("s1",))
                    before = open_store(path, chunks=None).resid_post.values
    assert open_store(tmp_path / "moved.zarr").recorded.values.sum() == 4
    assert verify_store(tmp_path / "moved.zarr").ok
    if replaced:
        assert verify_store(path).ok
        np.testing.assert_array_equal(before, open_store(path, chunks=None).resid_post.values)


def test_labels_are_not_written_into_a_store_that_was_put_here(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path)
    with ActivationWriter(path) as writer:
        path.rename(tmp_path / "moved.zarr")
        record(path)
        before = contents(path)
        with pytest.raises(MismatchError, match="moved, removed or replaced"):
            write_labels(writer.store, {"split": np.array(["a"] * 10, dtype=object)})
        with pytest.raises(MismatchError, match="moved, removed or replaced"):
            writer.store.storage.delete(["zarr.json"])
    assert contents(path) == before


def test_verify_and_compaction_ignore_the_records_of_another_stage(tmp_path: Path) -> None:
    path, other = tmp_path / "run.zarr", tmp_path / "other.zarr"
    record(path, stages=("s0",))
    record(other, stages=("s1",))
    name = ".stratalens/commits/0000.0"
    (path / name).write_bytes((other / name).read_bytes())
    assert not open_store(path).recorded.values.any()
    report = verify_store(path)
    assert report.blocks == 0
    assert any("commit records of other stages are ignored: 0000.0 of stage 's1'" in note for note in report.notes)


def test_a_suspended_writer_of_an_object_store_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://suspended.zarr"
    make(url)  # type: ignore[arg-type]
    now = [1000.0]
    monkeypatch.setattr(leases, "clocks", lambda: (now[0], now[0]))
    old = ActivationWriter(url)
    stage = old.stage("s0", order=0, fingerprint="f-s0")
    block = next(stage.pending())
    buffer = fill(stage, old, block, "s0")
    filesystem = fsspec.filesystem("memory")
    for key in filesystem.find("/suspended.zarr/.stratalens/leases"):  # the machine is suspended for a long time
        filesystem.store[key].modified = filesystem.store[key].modified.replace(year=2000)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases, "_machine", lambda: ["another machine"])
        record(url)  # type: ignore[arg-type]
    files = {key: filesystem.cat(key) for key in filesystem.find("/suspended.zarr") if "/leases/" not in key}
    stage.submit(buffer)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="over or was taken"):
        old.close()
    assert files == {key: filesystem.cat(key) for key in filesystem.find("/suspended.zarr") if "/leases/" not in key}
    assert verify_store(url).ok


def test_a_lease_that_is_over_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(leases, "clocks", lambda: (now[0], 0.0))
    lock = leases.LeaseLock(RemoteStorage("memory://lease.zarr"), "leases/lock")
    assert lock.try_acquire()
    lock.check()
    now[0] = leases.LEASE - 1
    lock.renew()
    now[0] = 2 * leases.LEASE - 2
    lock.check()
    now[0] = 2 * leases.LEASE
    lock.renew()
    with pytest.raises(MismatchError, match="stood still"):
        lock.check()
    lock.release()


@pytest.mark.parametrize("name", ["lock", "structure.lock", "history.jsonl"])
def test_no_link_in_a_store_is_written_through(tmp_path: Path, name: str) -> None:
    path, target = tmp_path / "run.zarr", tmp_path / "mine.txt"
    record(path)
    target.write_text("mine")
    (path / ".stratalens" / name).unlink()
    (path / ".stratalens" / name).symlink_to(target)
    with contextlib.suppress(InputError):  # a history is replaced, which does not follow the link
        relabel(path, {"entity": labels()["entity"], "split": ["a"] * 10})
    assert target.read_text() == "mine"


@pytest.mark.parametrize("folder", ["trained_stage", "resid_post", ".stratalens/commits", ".stratalens/tmp"])
def test_no_linked_folder_in_a_store_is_written_to(tmp_path: Path, folder: str) -> None:
    path, outside = tmp_path / "run.zarr", tmp_path / "outside"
    record(path, stages=("s0",))
    (path / folder).rename(outside)
    (path / folder).symlink_to(outside)
    before = sorted((p, p.read_bytes()) for p in outside.iterdir())
    for change in (
        lambda: record(path),
        lambda: relabel(path, {"entity": labels()["entity"], "trained_stage": ["n"] * 10}),
        lambda: relabel(path, {"entity": labels()["entity"], "trained_stage": ["m"] * 10}),
    ):
        with contextlib.suppress(StratalensError):
            change()
    assert sorted((p, p.read_bytes()) for p in outside.iterdir()) == before


def test_many_files_of_one_write_need_few_descriptors(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    storage = LocalStorage(tmp_path)
    storage.make_folders([".stratalens/tmp", "x"])
    in_use = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 200, hard))
    try:
        storage.put_many((f"x/{number}", (b"%d" % number,)) for number in range(700))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(storage.list("x")) == 700
    assert storage.get("x/699") == b"699"
    assert storage.list(".stratalens/tmp") == []


def test_every_failure_of_a_lock_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StratalensError, match=str(tmp_path)):
        FileLock(tmp_path / "lock").try_acquire()
    with pytest.raises(StratalensError, match=str(tmp_path)):
        FileLock(tmp_path / "absent" / "lock").try_acquire()
    with pytest.raises(StratalensError, match=r"run\.zarr"):
        LocalStorage(tmp_path / "run.zarr").append("absent/history", b"x")


def test_the_child_of_a_dead_writer_is_not_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path, stages=("s0",))
    lock = storage_at(path).writer_lock()
    assert lock.try_acquire()
    lock.note()
    note = path / ".stratalens/lock"
    note.write_bytes(note.read_bytes().replace(b'"pid": ', b'"pid": 99999'))
    assert "itself has ended" in lock.holder()
    lock.release()
    assert load(storage_at(path)).stages
