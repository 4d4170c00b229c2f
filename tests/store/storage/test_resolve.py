"""A store that is moved, copied or replaced, or without descriptors: no wrong values, no report of damage."""

from __future__ import annotations

import os
import resource
import shutil
import tarfile
import time
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from stratalens.store import create, open_store, relabel, verify_store
from stratalens.store.errors import DamagedError, InputError, MismatchError, StratalensError
from stratalens.store.reading import staleness as watch
from stratalens.store.state import history
from stratalens.store.writing.writer import ActivationWriter
from support import synthetic_writer
from support.synthetic_writer import content, never_shows_what_was_not_written, stream


@pytest.fixture
def path(tmp_path: Path) -> Path:
    stream(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def another(path: Path) -> None:
    """Record the same table and sites from other weights, with other values."""
    with ActivationWriter(synthetic_writer.make(path)) as writer:
        for order, name in enumerate(synthetic_writer.STAGES):
            with writer.stage(name, order=order, fingerprint=f"other:{name}") as stage:
                for block in stage.pending():
                    stage.submit(synthetic_writer.fill_randomly(stage.buffer(block), writer.store, seed=order + 50))


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_another_store_at_the_same_place(path: Path, chunks: Literal["auto"] | None) -> None:
    ds = open_store(path, chunks=chunks)
    before = ds.resid_post.isel(stage=0).values
    shutil.rmtree(path)
    with pytest.raises(InputError, match="was moved or removed since it was opened: open it where it is now"):
        ds.resid_post.isel(stage=1).load()
    another(path)
    with pytest.raises(MismatchError, match=r"another store was made at .* since it was opened: open it again"):
        ds.resid_post.isel(stage=1).load()
    with pytest.raises(MismatchError, match="another store"):
        ds.recorded.load()
    assert not np.array_equal(open_store(path).resid_post.isel(stage=0).values, before)


def test_a_store_that_grows_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    stream(path, stages=synthetic_writer.STAGES[:1])
    ds = open_store(path, chunks=None)
    before = ds.resid_post.values
    stream(path)
    np.testing.assert_array_equal(ds.resid_post.values, before)
    assert ds.stage.values.tolist() == ["s0"]


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_labels_changed_while_it_is_open(
    path: Path, chunks: Literal["auto"] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratalens.store.reading.open.EAGER_LABELS", 5)  # labels are read lazily
    ds = open_store(path, chunks=chunks)
    other = open_store(path, chunks=chunks)
    assert ds.trained_stage.values[0] == "s1"
    ids = ds.entity.values
    for change in ("one", "two"):  # the second change uses the file names of the original labels
        relabel(path, {"entity": ids, "trained_stage": [change] * len(ids)})
        for opened in (ds, other):
            for read in (opened.resid_post, opened.recorded, opened.template, opened.exposure):
                with pytest.raises(
                    MismatchError, match=r"the labels of .*run.zarr were changed since it was opened: op"
                ):
                    read.load()
    assert open_store(path, chunks=chunks).resid_post.values.any()


def test_a_removed_remote_store_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://places/run.zarr"
    stream(url)
    ds = open_store(url, chunks=None)
    monkeypatch.setattr(watch, "SECONDS", 0.0)
    assert ds.recorded.values.all()
    import fsspec

    fsspec.filesystem("memory").rm("places/run.zarr", recursive=True)
    with pytest.raises(InputError, match="moved or removed"):
        ds.recorded.load()


def test_moved_while_it_is_open_and_written(path: Path, tmp_path: Path) -> None:
    ds = open_store(path, chunks=None)
    path.rename(tmp_path / "moved.zarr")
    with pytest.raises(InputError, match="moved or removed"):
        ds.resid_post.load()
    assert verify_store(tmp_path / "moved.zarr").ok
    store = synthetic_writer.make(path)
    with (  # noqa: PT012 - any of these calls may raise the error of the background thread
        pytest.raises(StratalensError, match="moved, removed or replaced"),
        ActivationWriter(store) as writer,
        writer.stage("s0", order=0, fingerprint="sha256:s0") as stage,
    ):
        for number, block in enumerate(stage.pending()):
            stage.submit(synthetic_writer.fill_randomly(stage.buffer(block), writer.store, 0))
            if number == 1:
                writer.background.drain()
                path.rename(tmp_path / "half.zarr")
    assert not path.exists()
    assert open_store(tmp_path / "half.zarr").recorded.values.sum() == 12
    stream(tmp_path / "half.zarr")
    assert content(tmp_path / "half.zarr") == content(tmp_path / "moved.zarr")


def test_copied_while_it_is_written(tmp_path: Path) -> None:
    path, copies = tmp_path / "run.zarr", 0
    with ActivationWriter(synthetic_writer.make(path)) as writer:
        for order, name in enumerate(synthetic_writer.STAGES):
            with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending():
                    stage.submit(synthetic_writer.fill_randomly(stage.buffer(block), writer.store, order))
                    writer.background.drain()
                    copy = tmp_path / "copy.zarr"
                    shutil.copytree(path, copy)
                    never_shows_what_was_not_written(copy)
                    assert verify_store(copy).ok
                    copies += 1
                    if copies in (2, 7):
                        stream(copy)
                        (tmp_path / f"{copies}").mkdir()
                        copy.rename(tmp_path / f"{copies}" / "run.zarr")
                    else:
                        shutil.rmtree(copy)
    assert content(tmp_path / "2" / "run.zarr") == content(tmp_path / "7" / "run.zarr") == content(path)


def test_archives_and_hard_links(path: Path, tmp_path: Path) -> None:
    whole, history = content(path), (path / ".stratalens" / "history.jsonl").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(path, "tar.zarr")
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    with zipfile.ZipFile(shutil.make_archive(str(tmp_path / "a"), "zip", path)) as packed:
        packed.extractall(tmp_path / "zip.zarr")
    shutil.copytree(path, tmp_path / "links.zarr", copy_function=os.link)
    for name in ("tar.zarr", "zip.zarr", "links.zarr"):
        assert verify_store(tmp_path / name).ok
        with (
            ActivationWriter(synthetic_writer.make(tmp_path / name)) as writer,
            writer.stage("s3", order=3, fingerprint="sha256:s3") as stage,
        ):
            for block in stage.pending():
                stage.submit(synthetic_writer.fill_randomly(stage.buffer(block), writer.store, 3))
        assert verify_store(tmp_path / name).ok
    assert content(path) == whole
    assert (path / ".stratalens" / "history.jsonl").read_bytes() == history


def test_a_clock_that_goes_backwards(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.zarr"
    stream(other, stages=synthetic_writer.STAGES[:1])
    real = time.time
    monkeypatch.setattr(history.time, "time", lambda: real() - 1e9)
    stream(other)
    assert content(other) == content(path)
    assert verify_store(other).ok


@contextmanager
def descriptors(free: int) -> Iterator[None]:
    """Allow only `free` more open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        try:
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            for _ in range(free):
                os.close(opened.pop())
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_nothing_is_called_damaged(path: Path, tmp_path: Path) -> None:
    whole = content(path)
    ds = open_store(path, chunks=None)
    errors: list[StratalensError] = []
    for free in range(4):
        with descriptors(free):
            for work in (lambda: ds.resid_post.values, lambda: verify_store(path, repair=True, workers=2)):
                try:
                    work()
                except StratalensError as error:
                    errors.append(error)
        assert content(path) == whole
    assert errors
    assert not any(isinstance(error, DamagedError) for error in errors)
    assert all("ulimit -n" in str(error) for error in errors)
    other = tmp_path / "other.zarr"
    store = synthetic_writer.make(other)
    with pytest.raises(StratalensError), ActivationWriter(store) as writer:  # noqa: PT012, SIM117
        with writer.stage("s0", order=0, fingerprint="sha256:s0") as stage:
            buffer = synthetic_writer.fill_randomly(stage.buffer(next(stage.pending())), writer.store, 0)
            with descriptors(0):
                stage.submit(buffer)
                writer.background.drain()
    stream(other)  # the writer released its lock
    assert content(other) == whole


def test_names_that_look_alike(path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    with ActivationWriter(path) as writer:
        writer.stage(composed, order=3, fingerprint="3")
        with pytest.raises(InputError, match=r"looks like stage .* but has other code points"):
            writer.stage(decomposed, order=4, fingerprint="4")
    columns = {"entity": np.array(["a"], object), "entity_id": np.array(["x"], object)}
    for one, other in ((composed, decomposed), ("Split", "split"), ("RESID_POST", "resid_post"), ("Layer", "layer")):
        with pytest.raises(InputError, match="would be one folder on a file system"):
            create(
                path.with_name("other.zarr"),
                entities={
                    **columns,
                    one: np.arange(1),
                    **({other: np.arange(1)} if other in (decomposed, "split") else {}),
                },
                layers=[0],
                tokens=["last"],
                variables=synthetic_writer.variables(),
            )
    assert not path.with_name("other.zarr").exists()
