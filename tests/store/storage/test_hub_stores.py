"""Stores in repositories of the hub, pushed and read with the real client; refusals of every kind of URL."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, open_store, verify_store
from stratalens.store.errors import DamagedError, InputError, StratalensError, UnreachableError
from stratalens.store.interop.push import push_store
from support.hub_datasets import Hub
from support.range_server import Faults, range_server
from support.shared_stores import BLOCK, ROWS, add_stage, copy_of, create_small, first_slab
from support.synthetic_writer import STAGES

pytestmark = [
    pytest.mark.usefixtures("no_pauses"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


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
    assert hub.nbytes < 1.05 * expected.size * 2

    ds = open_store(f"{url}@{sent['commit']}")
    with ActivationWriter(store) as writer:
        add_stage(writer, "s3", 3)
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


def without_token(folder: Path, hub: Hub) -> None:
    hub.fail[:] = [["/api/repos/create", 401, 9]]
    push_store(folder / "small.zarr", "hf://datasets/me/run")


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
        "the hub answers HTTP 503",
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
    "push without a token": (without_token, InputError, r"refuses access to me/run \(HTTP 401\).*HF_TOKEN"),
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
