"""Stores on fsspec URLs: memory://, and an S3 server on loopback if moto and s3fs are installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, info, open_store, relabel, verify_store
from stratalens.store.errors import DamagedError, InputError, StoreBusyError, StoreExistsError, StratalensError
from stratalens.store.state.manifest import load
from stratalens.store.storage import leases as leases_module
from stratalens.store.storage.object_store import RemoteStorage
from support import s3, synthetic_writer
from support.paths import TESTS
from support.synthetic_writer import STAGES, content, never_shows_what_was_not_written, stream
from support.thorough import thorough

quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[dict[str, Any]]:
    """Settings of fsspec for an S3 server on loopback."""
    with s3.served() as options:
        yield options


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    return f"{request.param}://strata/{uuid.uuid4().hex}/run.zarr"


# The server on loopback takes ten times as long as the memory; other tests here have shown that both give the same.
mostly_in_memory = pytest.mark.parametrize("url", ["memory", pytest.param("s3", marks=thorough)], indirect=True)


def objects(url: str) -> dict[str, bytes]:
    """Content of every object of a store by key, except the history."""
    fs, base = fsspec.core.url_to_fs(url, use_listings_cache=False)
    contents = {name[len(base) + 1 :]: fs.cat_file(name) for name in fs.find(base)}
    return {k: v for k, v in contents.items() if not k.endswith("history.jsonl")}


def stages_for(url: str) -> tuple[str, ...]:
    """Fewer stages on S3, where every object costs a request of milliseconds."""
    return STAGES if url.startswith("memory") else STAGES[:2]


@quiet
def test_the_same_objects_as_on_a_disk(tmp_path: Path, url: str) -> None:
    stages = stages_for(url)
    stream(url, stages=stages)
    stream(tmp_path / "local.zarr", stages=stages)
    local = {k: v for k, v in content(tmp_path / "local.zarr").items() if not k.endswith("lock")}
    assert objects(url) == local  # neither leases nor temporary objects remain
    never_shows_what_was_not_written(url)
    report = verify_store(url)
    assert report.ok
    assert report.files == 4 * 4 * len(stages)  # 3 variables and the flag, 4 blocks
    for dtype in ("float32", "bits"):
        for chunks in ("auto", None) if url.startswith("memory") or dtype == "float32" else (None,):
            remote = open_store(url, dtype=dtype, chunks=chunks)  # type: ignore[arg-type]
            here = open_store(tmp_path / "local.zarr", dtype=dtype)  # type: ignore[arg-type]
            xr.testing.assert_equal(remote, here)
            some = {"entity": [1, 7, 20], "layer": [0, 2]}
            np.testing.assert_array_equal(remote.resid_post.isel(some).values, here.resid_post.isel(some).values)
    facts, there = info(url), info(tmp_path / "local.zarr")
    assert facts["path"] == open_store(url).attrs["path"] == url
    assert (facts["complete"], facts["bytes"]) == (True, there["bytes"])
    plain = xr.open_zarr(url)
    np.testing.assert_array_equal(plain.resid_post.values, open_store(url, dtype="bits").resid_post.values)


@quiet
def test_one_put_for_each_file_then_one_commit_record(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{uuid.uuid4().hex}/run.zarr"
    store = synthetic_writer.make(url)
    puts: list[str] = []
    real = RemoteStorage._put
    monkeypatch.setattr(RemoteStorage, "_put", lambda self, key, data: (puts.append(key), real(self, key, data))[1])
    with ActivationWriter(store) as writer, writer.stage("s0", order=0, fingerprint="f") as stage:
        puts.clear()
        block = next(stage.pending())
        stage.submit(synthetic_writer.fill_randomly(stage.buffer(block), writer.store, 0))
        writer.background.drain()
        files = [layout.key(0, 0) for layout in writer.store.layouts.values()]
        assert sorted(puts[:-1]) == sorted(files)
        assert puts[-1] == ".stratalens/commits/0000.0.0000000"


@quiet
@mostly_in_memory
def test_interrupted_anywhere_and_resumed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stages_for(url)
    stream(tmp_path / "local.zarr", stages=stages)
    local = {k: v for k, v in content(tmp_path / "local.zarr").items() if not k.endswith("lock")}
    real = RemoteStorage._put
    for moment in (9, 40, 70) if len(stages) == 3 else (60,):
        left = [moment]

        def failing(self: RemoteStorage, key: str, data: bytes, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] <= 0 and not key.startswith(".stratalens/leases"):
                raise self._failed("writing to", key, OSError("connection lost"))
            real(self, key, data)

        monkeypatch.setattr(RemoteStorage, "_put", failing)
        with pytest.raises(Exception, match="connection lost"):
            stream(url, stages=stages)
        monkeypatch.setattr(RemoteStorage, "_put", real)
        if RemoteStorage(url).get("zarr.json"):
            never_shows_what_was_not_written(url)
    stream(url, stages=stages)
    assert objects(url) == local


@quiet
def test_killed_writer_on_s3_and_its_lease(s3_server: dict[str, Any]) -> None:
    url = f"s3://strata/{uuid.uuid4().hex}/run.zarr"
    code = (
        "import os, signal, sys; from stratalens.store import ActivationWriter; from support import synthetic_writer\n"
        "writer = ActivationWriter(synthetic_writer.make(sys.argv[1]))\n"
        "stage = writer.stage('s0', order=0, fingerprint='sha256:s0')\n"
        "block = next(stage.pending())\n"
        "stage.submit(synthetic_writer.fill_randomly(stage.buffer(block), writer.store, 0))\n"
        "writer.background.drain()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {
        **os.environ,
        "FSSPEC_S3": json.dumps(s3_server),
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
    }
    run = subprocess.run([sys.executable, "-c", code, url], env=environment, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert any("leases" in key for key in objects(url))
    assert open_store(url).recorded.values.sum() == 6
    stream(url, stages=STAGES[:1])  # the process that owns the lease has ended
    assert open_store(url).recorded.values.all()
    assert not any("leases" in key for key in objects(url))


@quiet
def test_writers_exclude_each_other(url: str) -> None:
    store = synthetic_writer.make(url)
    with ActivationWriter(url):
        for shared in (False, True):
            with pytest.raises(StoreBusyError, match=rf"being written by process {os.getpid()} on"):
                ActivationWriter(url, shared=shared)
    with ActivationWriter(url, shared=True) as one, ActivationWriter(url, shared=True) as two:
        with pytest.raises(StoreBusyError):
            ActivationWriter(url)
        first, second = (w.stage("s0", order=0, fingerprint="sha256:s0") for w in (one, two))
        block = next(first.pending())
        buffer = first.buffer(block)
        with pytest.raises(StoreBusyError, match="block 0 of stage 's0'"):
            second.buffer(block)
        buffer.discard()
        for stage, rank in ((first, 0), (second, 1)):
            for mine in stage.pending(rank, 2):
                stage.submit(synthetic_writer.fill_randomly(stage.buffer(mine), store, 0))
        first.close()
        second.close()
    assert open_store(url).recorded.values.all()


@quiet
def test_a_lease_from_another_machine_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{uuid.uuid4().hex}/run.zarr"
    synthetic_writer.make(url)
    note = {"pid": 1, "started": "1", "place": ["elsewhere", "b", "p"], "token": "t"}
    storage = RemoteStorage(url)
    storage.put(".stratalens/leases/lock/x.000007", json.dumps(note).encode())
    with pytest.raises(StoreBusyError, match="process 1 on elsewhere"):
        ActivationWriter(url)
    monkeypatch.setattr(leases_module, "LEASE", -1.0)
    ActivationWriter(url).close()
    assert storage.list(".stratalens/leases") == []


@quiet
@mostly_in_memory
def test_damage_is_named_and_repaired(url: str) -> None:
    stages = stages_for(url)
    stream(url, stages=stages)
    storage = RemoteStorage(url)
    key = load(storage).layouts["resid_post"].key(1, 2)
    data = bytearray(storage.get(key) or b"")
    data[40] ^= 1
    storage.put(key, bytes(data))
    (damage,) = verify_store(url).damaged
    assert (damage.stage, damage.site, damage.layer, damage.rows) == ("s1", "resid_post", 0, (12, 18))
    with pytest.raises(DamagedError, match="stage 's1', resid_post, layer 0, entity rows 12 to 17 is damaged"):
        open_store(url).resid_post.load()
    before = objects(url)
    assert verify_store(url, repair=True).ok
    assert open_store(url).recorded.values.sum() == len(stages) * synthetic_writer.ENTITIES - 6
    stream(url, stages=stages)
    changed = {k for k, v in objects(url).items() if before.get(k) != v}
    assert changed == {key}


@quiet
def test_missing_and_foreign_stores(url: str) -> None:
    with pytest.raises(InputError, match="there is no store at"):
        open_store(url)
    fs, base = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{base}/notes.txt", b"x")
    with pytest.raises(StoreExistsError, match=r"holds no store \(notes.txt\)"):
        synthetic_writer.make(url)
    with pytest.raises(InputError, match="nosuch://x cannot be opened"):
        open_store("nosuch://x")


@quiet
def test_labels_are_changed(url: str) -> None:
    stream(url, stages=synthetic_writer.STAGES[:1])
    ds = open_store(url)
    for value in ("one", "two"):
        assert relabel(url, {"entity": ds.entity.values, "trained_stage": [value] * 22, "note": [value] * 22})
        assert set(open_store(url).trained_stage.values) == set(xr.open_zarr(url).note.values) == {value}
        assert verify_store(url).ok


@quiet
def test_an_object_that_is_too_large_is_not_read(url: str) -> None:
    storage = RemoteStorage(url)
    for content_of in (b"", b"abcdef"):
        storage.put("a", content_of)
        assert storage.get("a") == storage.get("a", 6) == content_of
    with pytest.raises(DamagedError, match=r"/a has more than the 5 bytes.*not read"):
        storage.get("a", 5)


class NoCredentialsError(Exception):
    """As that of botocore, which is no OSError."""


@pytest.mark.parametrize(
    ("error", "kind"), [(NoCredentialsError("none"), InputError), (KeyError("x"), StratalensError)]
)
def test_every_error_of_a_client_is_one_of_ours(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = RemoteStorage(f"memory://{uuid.uuid4().hex}")

    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("pipe_file", "cat_file", "ls", "info", "modified", "cat_ranges"):
        monkeypatch.setattr(storage._fs, name, fail)
    for call in (
        lambda: storage.put("a", b""),
        lambda: storage.get("a"),
        lambda: storage.list("a"),
        lambda: storage.size("a"),
        lambda: storage.modified("a"),
        lambda: storage.read_ranges("a", [(0, 1)]),
        lambda: storage.create("a", b""),
    ):
        with pytest.raises(kind, match="memory://"):
            call()
