"""Stores read from a web server and from a repository of the hub: requests, bytes, faults, the local cache."""

from __future__ import annotations

import pickle
import shutil
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, info, open_store, verify_store
from stratalens.store.errors import DamagedError, InputError, StratalensError, UnreachableError
from stratalens.store.format.schema import site_variable
from stratalens.store.interop.push import push_store
from stratalens.store.state.index import INDEX
from stratalens.store.storage import retries
from stratalens.store.storage.http_server import HttpStorage
from stratalens.store.storage.object_store import RemoteStorage
from stratalens.store.writing.create import create
from support.hub_datasets import Hub, commit_of, dataset_hub
from support.range_server import Faults, range_server
from support.stores import fill_randomly, make_labels
from support.synthetic_writer import STAGES, stream

WIDTH, ROWS, BLOCK = 512, 480, 96
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
pytestmark = quiet


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.0)
    monkeypatch.setattr("stratalens.store.storage.hub.FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of several blocks as it was recorded (old), and its shared copy (new)."""
    root = tmp_path_factory.mktemp("shared")
    site = site_variable("resid_post", ["d_model"], [WIDTH], "bfloat16", "blocks.{layer}.hook_out")
    made_of = {"entities": make_labels(ROWS, STAGES), "layers": range(4), "tokens": ["last"], "variables": [site]}
    with ActivationWriter(create(root / "old.zarr", **made_of, block_size=BLOCK)) as writer:
        for order, name in enumerate(STAGES):
            with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending():
                    stage.submit(fill_randomly(stage.buffer(block), writer.store, order))
    push_store(root / "old.zarr", root / "new.zarr")
    stream(root / "small.zarr")
    push_store(root / "small.zarr", root / "small-new.zarr")
    return root


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def first_slab(url: str) -> np.ndarray:
    values: np.ndarray = open_store(url).resid_post.sel(stage="s1", layer=2).values
    return values


def test_the_first_slab_takes_few_requests_and_its_own_bytes(folder: Path) -> None:
    expected = first_slab(str(folder / "old.zarr"))
    slab_nbytes = expected.size * 2  # bfloat16
    with range_server(folder, Faults(latency=0.002)) as (address, counts):
        np.testing.assert_array_equal(first_slab(f"{address}/new.zarr"), expected)
        assert len(counts.requests) == 3 + ROWS // BLOCK  # root, index, labels; one a block
        assert len(counts.requests) < 10
        assert counts.nbytes < 1.05 * slab_nbytes + 16_000  # this store is small: root and labels are 16 kB
        data = [r for r in counts.requests if r[1].startswith("new.zarr/resid_post/")]
        assert sum(nbytes for *_, nbytes in data) < 1.001 * slab_nbytes
        counts.clear()
        np.testing.assert_array_equal(first_slab(f"{address}/old.zarr"), expected)  # recorded before indexes existed
        assert {method for method, *_ in counts.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize("name", ["small.zarr", "small-new.zarr"])
def test_a_web_server_shows_what_the_folder_has(folder: Path, name: str) -> None:
    with range_server(folder) as (address, _):
        url = f"{address}/{name}"
        never_shows_what_was_not_written_at(url, folder / name)
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


def never_shows_what_was_not_written_at(url: str, path: Path) -> None:
    for dtype in ("float32", "bits"):
        for chunks in ("auto", None):
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
                    with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                        for block in stage.pending():
                            stage.submit(fill_randomly(stage.buffer(block), writer.store, seed=order + 50))
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


def create_small(path: Path | str) -> Any:
    from support import synthetic_writer

    return synthetic_writer.make(path)


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


# -- the hub ------------------------------------------------------------------------------
@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with dataset_hub() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.address)
        template = state.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
        yield state


def test_push_to_the_hub_and_read_a_revision(folder: Path, tmp_path: Path, hub: Hub) -> None:
    expected = first_slab(str(folder / "old.zarr"))
    url = "hf://datasets/me/run"
    store = copy_of(folder / "old.zarr", tmp_path / "old.zarr")
    sent = push_store(store, url, extra={"README.md": b"---\nviewer: false\n---\n# run\n"})
    assert sent["files"] == sent["total_files"] == 2 * len(STAGES) * ROWS // BLOCK
    hub.requests.clear()
    np.testing.assert_array_equal(first_slab(url), expected)
    asked = [request for request in hub.requests if not request[1].startswith("/lfs/")]  # large files are redirected
    assert len(asked) == 4 + ROWS // BLOCK < 10  # root, records, index, labels; one a block
    assert hub.nbytes < 1.05 * expected.size * 2 + 20_000

    ds = open_store(f"{url}@{sent['commit']}")
    with ActivationWriter(store) as writer, writer.stage("s3", order=3, fingerprint="sha256:s3") as stage:
        for block in stage.pending():
            stage.submit(fill_randomly(stage.buffer(block), writer.store, seed=3))
    again = push_store(store, url)
    assert again["files"] == 2 * ROWS // BLOCK  # only the new stage
    assert open_store(url).sizes["stage"] == 4
    assert open_store(f"{url}@{sent['commit']}").sizes["stage"] == 3
    np.testing.assert_array_equal(ds.resid_post.sel(stage="s1", layer=2), expected)
    assert push_store(store, url)["files"] == 0
    assert verify_store(url).ok
    restored = pickle.loads(pickle.dumps(ds))
    np.testing.assert_array_equal(restored.resid_post.sel(stage="s1", layer=2), expected)


def test_a_push_that_breaks_off_shows_nothing_and_resumes(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratalens.store.interop.push_hub.BATCH_FILES", 7)
    url = "hf://datasets/me/run@draft"
    hub.fail.append(["/commit/", 403, 0])
    sent: list[int] = []

    def stop_after_two(done: int, total: int) -> None:
        sent.append(done)
        if len(sent) == 2:
            hub.fail[0][2] = 1

    with pytest.raises(InputError, match="refuses access"):
        push_store(folder / "old.zarr", url, progress=stop_after_two)
    with pytest.raises(InputError, match="there is no store at hf://datasets/me/run@draft"):
        open_store(url)
    assert push_store(folder / "old.zarr", url)["files"] == 30 - 14
    np.testing.assert_array_equal(first_slab(url), first_slab(str(folder / "old.zarr")))
    with pytest.raises(InputError, match="holds another store"):
        push_store(folder / "small.zarr", url)
    assert hub.repositories["me/run"][0].keys() == {".gitattributes"}


def test_the_hub_is_asked_again_after_passing_errors(folder: Path, hub: Hub) -> None:
    push_store(folder / "small.zarr", "hf://datasets/me/run")
    for status in (503, 0):
        hub.fail[:] = [["/resolve/", status, 2]]
        xr.testing.assert_equal(open_store("hf://datasets/me/run"), open_store(folder / "small.zarr"))
        assert hub.fail[0][2] == 0


# -- refusals -----------------------------------------------------------------------------
Case = Callable[[Path, Hub], Any]


def revoked(status: str) -> Case:
    """Return a case: an address that stops to work after the first blocks of the slab."""

    def case(folder: Path, hub: Hub) -> None:
        count = [0]

        def answer(path: str, number: int) -> str:
            count[0] += "resid_post/c" in path
            return status if count[0] > 2 else ""

        with range_server(folder, Faults(answer)) as (address, _):
            first_slab(f"{address}/new.zarr?signature=secret")

    return case


def served(name: str, fault: str = "") -> Case:
    def case(folder: Path, hub: Hub) -> None:
        with range_server(folder, Faults(lambda path, number: fault)) as (address, _):
            open_store(f"{address}/{name}")

    return case


def without_private_folder(folder: Path, hub: Hub) -> None:
    hidden = Faults(lambda path, number: "404" if ".stratalens" in path else "")
    with range_server(folder, hidden) as (address, _):
        open_store(f"{address}/new.zarr")


def pushed(url: str, **changes: Any) -> Case:
    def case(folder: Path, hub: Hub) -> None:
        push_store(folder / "small.zarr", "hf://datasets/me/run")
        for name, value in changes.items():
            setattr(hub, name, value)
        open_store(url)

    return case


REFUSALS: dict[str, tuple[Case, type[StratalensError], str]] = {
    "no server": (lambda f, h: open_store("http://127.0.0.1:9/run.zarr"), UnreachableError, "check the address"),
    "no such host": (lambda f, h: open_store("http://no.invalid/run.zarr"), UnreachableError, "check the address"),
    "no store": (served("elsewhere.zarr"), InputError, "it has no zarr.json. Check the address"),
    "a page for every address": (served("new.zarr", "page"), InputError, "it is not JSON"),
    "server fails": (served("new.zarr", "500"), UnreachableError, "HTTP 500"),
    "no hidden files": (without_private_folder, DamagedError, "leaves hidden folders out"),
    "revoked in mid-read": (revoked("403"), InputError, r"refuses access \(HTTP 403\).* get a new one"),
    "gone in mid-read": (revoked("410"), InputError, r"is gone \(HTTP 410\)"),
    "needs credentials": (served("new.zarr", "401"), InputError, "needs credentials .*FSSPEC_HTTPS"),
    "missing repository": (pushed("hf://datasets/me/rum"), InputError, "no dataset repository me/rum that you can see"),
    "gated repository": (pushed("hf://datasets/me/run", gated={"me/run"}), InputError, "consent of its owners"),
    "unknown revision": (pushed("hf://datasets/me/run@v9"), InputError, "has no revision 'v9'"),
    "no store in the repository": (pushed("hf://datasets/me/run/sub"), InputError, "it has no zarr.json"),
    "hub does not answer": (
        pushed("hf://datasets/me/run", fail=[["/resolve/", 503, 99]]),
        UnreachableError,
        "the hub does not answer",
    ),
    "no name": (lambda f, h: open_store("hf://datasets/me"), InputError, "names no repository: give hf://datasets"),
    "push to a web server": (
        lambda f, h: push_store(f / "small.zarr", "https://example.com/a.zarr"),
        InputError,
        "a web server takes no files",
    ),
    "push to a model repository": (
        lambda f, h: push_store(f / "small.zarr", "hf://me/model"),
        InputError,
        "is no dataset repository",
    ),
    "push no store": (lambda f, h: push_store(f, "hf://datasets/me/run"), InputError, "holds no store"),
    "record to the hub": (
        lambda f, h: ActivationWriter(create_small("hf://datasets/me/run")),
        InputError,
        "cannot be written: a repository of the hub",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, folder: Path, hub: Hub) -> None:
    case, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message) as caught:
        case(folder, hub)
    assert type(caught.value) is kind
    assert "secret" not in str(caught.value)


def test_offline_mode_is_named(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        open_store("hf://datasets/me/run")


def test_a_commit_is_read_even_if_the_branch_moves(folder: Path, hub: Hub) -> None:
    push_store(folder / "small.zarr", "hf://datasets/me/run")
    ds = open_store("hf://datasets/me/run")
    hub.repositories["me/run"].append({"zarr.json": b"{}"})
    hub.branches["me/run"]["main"] = len(hub.repositories["me/run"]) - 1
    xr.testing.assert_equal(ds, open_store(folder / "small.zarr"))
    assert commit_of("me/run", 1)
