"""Stores read from a web server and from a bucket: requests, bytes, faults, the local cache."""

from __future__ import annotations

import pickle
import shutil
import threading
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, info, open_store, verify_store
from stratalens.store.errors import DamagedError, InputError
from stratalens.store.interop.push import push_store
from stratalens.store.state.index import INDEX
from stratalens.store.storage.http_server import HttpStorage
from stratalens.store.storage.object_store import RemoteStorage
from support.range_server import Faults, range_server
from support.shared_stores import BLOCK, ROWS, WIDTH, add_stage, copy_of, create_small, first_slab
from support.stores import fill_randomly
from support.synthetic_writer import STAGES

pytestmark = [
    pytest.mark.usefixtures("no_pauses"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def test_the_first_slab_takes_few_requests_and_its_own_bytes(folder: Path) -> None:
    expected = first_slab(str(folder / "old.zarr"))
    slab_nbytes = expected.size * 2  # bfloat16
    with range_server(folder, Faults(latency=0.002)) as (address, counts):
        np.testing.assert_array_equal(first_slab(f"{address}/new.zarr"), expected)
        assert len(counts.requests) == 3 + ROWS // BLOCK  # root, index, labels; one a block
        assert len(counts.requests) < 10
        assert counts.nbytes < 1.05 * slab_nbytes
        data = [r for r in counts.requests if r[1].startswith("new.zarr/resid_post/")]
        assert sum(nbytes for *_, nbytes in data) < 1.001 * slab_nbytes
        counts.clear()
        np.testing.assert_array_equal(first_slab(f"{address}/old.zarr"), expected)  # recorded before indexes existed
        assert {method for method, *_ in counts.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize("name", ["small.zarr", "small-new.zarr", "zstd.zarr", "zstd-new.zarr"])
def test_a_web_server_shows_what_the_folder_has(folder: Path, name: str) -> None:
    with range_server(folder) as (address, _):
        url = f"{address}/{name}"
        check_values_at(url, folder / name)
        here, there = info(folder / name), info(url)
        assert there.pop("path") == url
        here.pop("path")
        assert there == here
        with pytest.raises(InputError, match="cannot be listed"):
            verify_store(url)
        with pytest.raises(InputError, match="cannot be written: a web server takes no files"):
            ActivationWriter(url)
        again = pickle.loads(pickle.dumps(open_store(url)))
        xr.testing.assert_equal(again, open_store(folder / name))


def check_values_at(url: str, path: Path) -> None:
    for dtype, chunks in (("float32", "auto"), ("bits", None)):
        there = open_store(url, dtype=dtype, chunks=chunks)  # type: ignore[arg-type]
        xr.testing.assert_equal(there, open_store(path, dtype=dtype))  # type: ignore[arg-type]
    some = {"entity": [1, 7, 20], "layer": [0, 2]}
    ds = open_store(url)
    for _ in range(2):  # chunks are checked the first time
        np.testing.assert_array_equal(ds.resid_post.isel(some).values, open_store(path).resid_post.isel(some).values)


def test_a_partial_store_is_read_with_and_without_index(folder: Path, tmp_path: Path) -> None:
    store = copy_of(folder / "small.zarr", tmp_path / "partial.zarr")
    (store / ".stratalens/commits/0002.0").unlink()  # the last stage has no record
    push_store(store, tmp_path / "pushed.zarr")
    with range_server(tmp_path) as (address, counts):
        for name in ("partial.zarr", "pushed.zarr"):
            counts.clear()
            ds = open_store(f"{address}/{name}")
            assert (len(counts.requests) == 3) == (name == "pushed.zarr")
            assert ds.recorded.sum("entity").values.tolist() == [22, 22, 0]
            assert "stage 's2'" in ds.recorded.attrs["missing"][0]


def test_blocks_are_requested_at_the_same_time(folder: Path) -> None:
    together = threading.Barrier(ROWS // BLOCK, timeout=30)

    def answer(path: str, number: int) -> str:
        if "resid_post/c" in path:
            together.wait()  # for a request for every block
        return ""

    with range_server(folder, Faults(answer)) as (address, _):
        np.testing.assert_array_equal(first_slab(f"{address}/new.zarr"), first_slab(str(folder / "old.zarr")))


def test_a_bucket_is_opened_with_few_requests_and_never_from_an_old_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    calls: list[str] = []

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: (calls.append(name), real(*args, **options))[1]

    for name in ("cat_file", "cat_ranges", "ls", "info"):
        monkeypatch.setattr(MemoryFileSystem, name, counting(name, getattr(MemoryFileSystem, name)))
    url = f"memory://{uuid.uuid4().hex}/run.zarr"
    push_store(folder / "old.zarr", url)
    calls.clear()
    np.testing.assert_array_equal(first_slab(url), first_slab(str(folder / "old.zarr")))
    requests = [name for name in calls if name != "cat_file"]  # MemoryFileSystem.cat_ranges calls cat_file
    assert calls.count("ls") == 1
    assert len(requests) <= 1 + 1 + ROWS // BLOCK  # commit records, labels, blocks; and root and index by cat_file

    partial = f"memory://{uuid.uuid4().hex}/run.zarr"
    store = create_small(partial)
    with ActivationWriter(store) as writer, writer.stage("s0", order=0, fingerprint="f") as stage:
        block = next(stage.pending())
        stage.submit(fill_randomly(stage.buffer(block), writer.store, 0))
    shared = f"memory://{uuid.uuid4().hex}/run.zarr"
    push_store(partial, shared)
    storage = RemoteStorage(shared)
    index = storage.get(INDEX)
    assert index is not None
    assert open_store(shared).recorded.values.sum() == 6
    with ActivationWriter(shared) as writer, writer.stage("s0", order=0, fingerprint="f") as stage:
        assert storage.get(INDEX) is None
        for block in stage.pending():
            stage.submit(fill_randomly(stage.buffer(block), writer.store, 0))
    storage.put(INDEX, index)  # as a writer of an older version would leave it
    assert open_store(shared).recorded.values.all()


@pytest.mark.parametrize("fault", ["cut", "500", "503", "429", "drop"])
def test_passing_errors_are_repeated(folder: Path, fault: str) -> None:
    expected = first_slab(str(folder / "old.zarr"))
    faults = Faults(lambda path, number: fault if number % 3 == 0 else "")
    with range_server(folder, faults) as (address, _):
        np.testing.assert_array_equal(first_slab(f"{address}/new.zarr"), expected)


def test_a_wrong_bit_on_the_way_is_read_again_and_one_on_the_disk_is_named(folder: Path) -> None:
    expected = first_slab(str(folder / "old.zarr"))
    flipped = Faults(lambda path, number: "flip" if "resid_post/c" in path and number == 0 else "")
    with range_server(folder, flipped) as (address, _):
        np.testing.assert_array_equal(first_slab(f"{address}/new.zarr"), expected)
    always = Faults(lambda path, number: "flip" if "resid_post/c" in path else "")
    with range_server(folder, always) as (address, _), pytest.raises(DamagedError, match=r"layer 2.*push it again"):
        first_slab(f"{address}/new.zarr")


def test_a_server_that_ignores_ranges_is_read_with_a_warning(folder: Path) -> None:
    expected = first_slab(str(folder / "old.zarr"))
    ignoring = range_server(folder, Faults(ranges=False))
    with ignoring as (address, _), pytest.warns(UserWarning, match="ignores ranges"):
        np.testing.assert_array_equal(first_slab(f"{address}/new.zarr"), expected)


def test_a_signed_address_is_used_and_not_shown(folder: Path) -> None:
    asked: list[str] = []
    with range_server(folder, Faults(lambda path, number: asked.append(path) or "")) as (address, _):  # type: ignore[func-returns-value]
        ds = open_store(f"{address}/small-new.zarr?signature=secret")
        assert "secret" not in str(ds.attrs)
        storage = HttpStorage(f"{address}/small-new.zarr?signature=secret")
        assert "secret" not in repr(storage)
        assert "secret" in storage._at("zarr.json")
        assert pickle.loads(pickle.dumps(storage))._at("a b") == storage._at("a b")


class TestTheCache:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("STRATALENS_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("STRATALENS_CACHE_SIZE", "10 MB")
        return tmp_path / "cache"

    def test_chunks_are_read_once(self, folder: Path) -> None:
        expected = first_slab(str(folder / "old.zarr"))
        with range_server(folder) as (address, counts):
            url = f"{address}/new.zarr"
            first_slab(url)
            counts.clear()
            np.testing.assert_array_equal(first_slab(url), expected)
            ds = open_store(url)
            np.testing.assert_array_equal(
                ds.resid_post.sel(stage="s1", layer=2).isel(entity=[3, 200]), expected[[3, 200]]
            )
            assert not [r for r in counts.requests if "resid_post/c" in r[1]]
            layers = ds.resid_post.sel(stage="s1").values  # layer 2 of each block is there; two ranges for the others
            np.testing.assert_array_equal(layers[2], expected)
            assert all(start != 2 * (BLOCK * WIDTH * 2 + 4) for _, path, start, _ in counts.requests if "resid" in path)

    def test_damaged_entries_are_never_returned(self, folder: Path, cache: Path) -> None:
        expected = first_slab(str(folder / "old.zarr"))
        with range_server(folder) as (address, counts):
            first_slab(f"{address}/new.zarr")
            entries = [file for file in cache.rglob("*") if file.is_file()]
            assert len(entries) == ROWS // BLOCK
            for number, file in enumerate(entries):
                data = bytearray(file.read_bytes())
                if number % 2:
                    data[len(data) // 3] ^= 1
                file.write_bytes(data if number % 2 else data[: number * 100])
            counts.clear()
            ds = open_store(f"{address}/new.zarr", verify=False)
            np.testing.assert_array_equal(ds.resid_post.sel(stage="s1", layer=2), expected)
            assert len([r for r in counts.requests if "resid_post/c" in r[1]]) == len(entries)

    def test_a_store_that_changed_is_read_again(self, folder: Path, tmp_path: Path) -> None:
        store = copy_of(folder / "small.zarr", tmp_path / "served" / "a.zarr")
        with range_server(tmp_path / "served") as (address, _):
            before = open_store(f"{address}/a.zarr").resid_post.values
            shutil.rmtree(store)
            with ActivationWriter(create_small(store)) as writer:
                for order, name in enumerate(STAGES):
                    add_stage(writer, name, order, seed=order + 50)
            after = open_store(f"{address}/a.zarr").resid_post.values
            np.testing.assert_array_equal(after, open_store(store).resid_post.values)
            assert not np.array_equal(before, after)

    def test_no_cache_of_size_zero_and_no_nonsense(
        self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with range_server(folder) as (address, _):
            monkeypatch.setenv("STRATALENS_CACHE_SIZE", "0")
            first_slab(f"{address}/new.zarr")
            assert not cache.exists()
            monkeypatch.setenv("STRATALENS_CACHE_SIZE", "much")
            with pytest.raises(InputError, match="STRATALENS_CACHE_SIZE is 'much'"):
                first_slab(f"{address}/new.zarr")


def test_an_old_or_damaged_index_is_not_used(folder: Path, tmp_path: Path) -> None:
    expected = open_store(folder / "small.zarr").load()
    store = copy_of(folder / "small-new.zarr", tmp_path / "a.zarr")
    index = (store / INDEX).read_bytes()
    with range_server(tmp_path) as (address, _):
        for content in (index[:-40], index.replace(b"s1", b"s7", 1), b"", b"<html>"):
            (store / INDEX).write_bytes(content)
            with pytest.warns(UserWarning, match=r"index .* is damaged .* `stratalens push` writes it again"):
                xr.testing.assert_equal(open_store(f"{address}/a.zarr"), expected)
        shutil.copyfile(folder / "new.zarr" / INDEX, store / INDEX)  # of another store, and intact
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            xr.testing.assert_equal(open_store(f"{address}/a.zarr"), expected)
        (store / INDEX).write_bytes(index)
        (store / ".stratalens/labels.bin").write_bytes(b"x" * 10_000)  # label files are read one by one
        xr.testing.assert_equal(open_store(f"{address}/a.zarr"), expected)
    with ActivationWriter(store):
        assert not (store / INDEX).exists()
