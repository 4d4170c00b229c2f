"""A store in an icechunk repository: one commit for each stage, and every commit can be opened."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from stratalens.store import open_store, relabel
from stratalens.store.errors import DamagedError, InputError, MismatchError
from stratalens.store.interop.icechunk import commit_stages, open_commits
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at
from support.stores import add_stage, make_store
from support.synthetic_writer import content

icechunk = pytest.importorskip("icechunk")


@pytest.fixture(params=["bfloat16", "int8"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tokens = ("last",) if request.param == "int8" else tuple(range(-3, 0))
    return make_store(tmp_path / "run.zarr", 3, entities=22, tokens=tokens, dtype=request.param, block_size=6)


def same(ours: xr.Dataset, theirs: xr.Dataset) -> None:
    names = [n for n in ours.variables if n != "exposure"]
    assert set(names) == set(theirs.variables)
    for name in names:
        assert (ours[name].values.astype(object) == theirs[name].values.astype(object)).all() or (
            ours[name].equals(theirs[name].astype(ours[name].dtype))
        ), name


def test_one_commit_for_each_stage(tmp_path: Path, store: Path) -> None:
    place, before = tmp_path / "versions", content(store)
    assert commit_stages(store, place) == ["untrained", "s1", "s2"]
    assert commit_stages(store, place) == []
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(place)))
    messages = [c.message for c in repo.ancestry(branch="main")]
    assert messages[:-1] == ["stage s2", "stage s1", "stage untrained"]
    ours = open_store(store, dtype="bits", chunks=None)
    same(ours, open_commits(place))
    same(ours.isel(stage=[0, 1]), open_commits(place, "s1"))
    add_stage(store, "s3", 3)
    assert commit_stages(store, place) == ["s3"]
    same(open_store(store, dtype="bits", chunks=None), open_commits(place))
    after = content(store)
    assert {k for k in before if "/c." in k and before[k] != after[k]} == set()


def test_a_stage_that_is_not_complete_waits(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 3, entities=22, block_size=6)
    record = path / ".stratalens" / "commits" / "0001.0"
    raw = record.read_bytes()
    record.unlink()
    assert commit_stages(path, tmp_path / "v") == ["untrained", "s2"]
    assert open_commits(tmp_path / "v").stage.values.tolist() == ["untrained", "s2"]
    record.write_bytes(raw)
    assert commit_stages(path, tmp_path / "v") == ["s1"]
    ours, theirs = open_store(path, chunks=None), open_commits(tmp_path / "v")
    assert theirs.stage_order.values.tolist() == [0, 2, 1]
    same(ours, theirs.isel(stage=[0, 2, 1]))


def test_damage_and_what_does_not_belong_together(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=22, block_size=6)
    file = path / load(storage_at(path)).layouts["resid_post"].key(1, 2)
    good = file.read_bytes()
    file.write_bytes(b"x" + good[1:])
    with pytest.raises(DamagedError, match=r"stage 's1', resid_post, layer 0, entity rows 12 to 17.*not committed"):
        commit_stages(path, tmp_path / "v")
    assert open_commits(tmp_path / "v").stage.values.tolist() == ["untrained"]
    file.write_bytes(good)
    assert commit_stages(path, tmp_path / "v") == ["s1"]
    other = make_store(tmp_path / "other.zarr", 2, entities=21, block_size=6)
    with pytest.raises(MismatchError, match=r"entities differs.*21.*22.*repository of this store"):
        commit_stages(other, tmp_path / "v")
    ids = open_store(path).entity.values
    relabel(path, {"entity": ids, "trained_stage": [f"x{i}" for i in ids]})
    with pytest.raises(
        MismatchError, match=r"label_digest differs.*labels were changed since, commit to a new reposit"
    ):
        commit_stages(path, tmp_path / "v")
    assert commit_stages(path, tmp_path / "w") == ["untrained", "s1"]
    same(open_store(path, chunks=None), open_commits(tmp_path / "w"))
    with pytest.raises(InputError, match="no commit of stage 's9'"):
        open_commits(tmp_path / "v", "s9")
    with pytest.raises(InputError, match="there is no icechunk repository at"):
        open_commits(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no place for a repository"):
        commit_stages(path, "memory://x")


def test_from_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from stratalens.plugin.cli.app import app

    path = make_store(tmp_path / "run.zarr", 2, entities=22, block_size=6)
    asked = ["commit", str(path), str(tmp_path / "run.icechunk")]
    first = CliRunner().invoke(app, asked)
    assert (first.exit_code, "committed stage untrained" in first.stderr) == (0, True)
    assert open_commits(tmp_path / "run.icechunk").stage.values.tolist() == ["untrained", "s1"]
    again = CliRunner().invoke(app, asked)
    assert (again.exit_code, "nothing new" in again.stderr) == (0, True)
    wrong = CliRunner().invoke(app, ["commit", str(tmp_path / "nowhere"), str(tmp_path / "run.icechunk")])
    assert (wrong.exit_code, "there is no store at" in wrong.stderr) == (2, True)
    wrong = CliRunner().invoke(app, ["commit", str(path), "gs://bucket/prefix"])
    assert (wrong.exit_code, "is no place for a repository" in wrong.stderr) == (2, True)
