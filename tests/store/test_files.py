"""A leading ~ is the home folder in every path, and no folder is called ~."""

from pathlib import Path

import pytest

from stratalens.analyses.results import read_results, write_results
from stratalens.store import open_store, verify_store
from stratalens.store.files import user_path, write_text_atomic
from stratalens.store.interop.export import export_array
from stratalens.store.storage.resolve import storage_at
from support.stores import make_store


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for path in ("~/run.zarr", "file://~/run.zarr", Path("~/run.zarr")):
        assert storage_at(path).root == home / "run.zarr"
    for path in ("./~/run.zarr", "a/~/run.zarr", "run~.zarr"):
        assert user_path(path) == Path(path)
    make_store("~/run.zarr", 2, 1, 4)
    ds = open_store("~/run.zarr")
    assert ds.attrs["path"] == str(home / "run.zarr")
    assert verify_store("~/run.zarr").ok
    export_array("~/run.zarr", site="resid_post", layer=0, target="~/x.npy")
    write_results({"x": ds.loss.mean("entity")}, "~/results")
    assert list(read_results("~/results")) == ["x"]
    write_text_atomic("~/page.html", "text")
    assert sorted(path.name for path in home.iterdir()) == ["page.html", "results", "run.zarr", "x.npy", "x.npy.json"]
    assert list(here.iterdir()) == []
