"""Lost records, histories, hidden folders and older metadata are found; missing rows have a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stratalens.store import ActivationWriter, info, open_store, relabel, verify_store
from stratalens.store.errors import DamagedError, StratalensError
from stratalens.store.interop.export import export_array
from stratalens.store.state.capture_plan import plan_stages
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at
from support.crash_scenarios import contents, labels, make, record
from support.synthetic_writer import content, stream


@pytest.fixture(scope="module")
def whole(module_path: Path) -> Path:
    record(module_path / "whole.zarr")
    return module_path / "whole.zarr"


@pytest.fixture
def store(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run.zarr"))


def test_a_copy_without_the_hidden_folder_says_so_and_is_rebuilt(store: Path, whole: Path) -> None:
    shutil.rmtree(store / ".stratalens")
    for call in (open_store, info, ActivationWriter, record):
        with pytest.raises(DamagedError, match=r"has no folder \.stratalens"):
            call(store)  # type: ignore[operator]
    report = verify_store(store)
    assert any("has no folder .stratalens" in str(damage) for damage in report.damaged)
    report = verify_store(store, repair=True)
    assert report.ok
    assert not report.missing
    np.testing.assert_array_equal(open_store(store).resid_post, open_store(whole).resid_post)
    record(store)
    assert contents(store) == contents(whole)


def test_a_rebuilt_store_of_several_groups_lacks_only_its_damaged_block(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    stream(path)
    expected = content(path)
    shutil.rmtree(path / ".stratalens")
    damaged = next((path / "resid_post").glob("c.1.*"))
    damaged.write_bytes(damaged.read_bytes()[:-5])
    report = verify_store(path, repair=True)
    assert report.ok
    assert len(report.missing) == 1
    assert "repaired" in open_store(path).recorded.attrs["missing"][0]
    stream(path)
    assert content(path) == expected


def test_a_deleted_commit_record_is_found_and_rebuilt(store: Path, whole: Path) -> None:
    (store / ".stratalens/commits/0001.0").unlink()
    (reason,) = open_store(store).recorded.attrs["missing"]
    assert reason.startswith("stage 's1', entity rows 0 to 9: damaged (their commit record was lost")
    (damage,) = verify_store(store).damaged
    assert damage.kind == "commit"
    assert "3 of 3 blocks is missing" in str(damage)
    assert verify_store(store, repair=True).ok
    assert contents(store) == contents(whole)


def test_a_deleted_history_is_found(store: Path) -> None:
    (store / ".stratalens/history.jsonl").unlink()
    assert [damage.kind for damage in verify_store(store).damaged] == ["history"]
    assert verify_store(store, repair=True).ok


def test_older_metadata_is_found_by_the_history(tmp_path: Path) -> None:
    path, copy = tmp_path / "run.zarr", tmp_path / "copy.zarr"
    record(path, stages=("s0",))
    shutil.copytree(path, copy)
    record(path)
    for name in ("zarr.json", ".stratalens/root.json", *(f"{n}/zarr.json" for n in ("stage", "resid_post"))):
        shutil.copy(copy / name, path / name)
    assert any("names stage 's1'" in str(damage) for damage in verify_store(path).damaged)


def test_older_labels_are_found_by_the_history(store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store, tmp_path / "copy.zarr")
    relabel(store, {"entity": labels()["entity"], "trained_stage": ["n"] * 10})
    relabel(store, {"entity": labels()["entity"], "trained_stage": ["m"] * 10})
    assert verify_store(store).ok
    for name in ("zarr.json", ".stratalens/root.json", "trained_stage/zarr.json", "trained_stage/c.0"):
        shutil.copy(copy / name, store / name)
    assert any("names other labels" in str(damage) for damage in verify_store(store).damaged)


def test_superseded_and_foreign_files_are_notes(store: Path) -> None:
    relabel(store, {"entity": labels()["entity"], "trained_stage": ["n"] * 10})
    (store / "notes.txt").write_text("mine")
    (store / ".stratalens/extra").write_text("mine")
    (store / "resid_post/c.9.0.0.0.0").write_bytes(b"x")
    report = verify_store(store)
    assert report.ok
    notes = "\n".join(report.notes)
    assert "label column 'trained_stage' has one file of superseded labels" in notes
    for name in ("'notes.txt'", "'extra'", "'c.9.0.0.0.0'"):
        assert name in notes


def test_missing_rows_have_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    with ActivationWriter(path) as writer, writer.stage("s0", order=0, fingerprint="f") as stage:
        block = next(stage.pending())
        buffer = stage.buffer(block)
        for name in ("resid_post", "resid_post_l2"):
            shape = writer.store.layouts[name].variable.shape
            buffer.write(name, range(4), np.zeros((2, 4, 1, *shape), np.float32))
        stage.submit(buffer)
    plan_stages(load(storage_at(path)), ["s0", "s1"])
    missing = open_store(path).recorded.attrs["missing"]
    assert missing[0].startswith("stage 's0', entity rows 4 to 9: interrupted (")
    assert missing[1].startswith("stage 's1': not started (")
    file = next((path / "resid_post").glob("c.0.*"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(DamagedError, match="is damaged"):
        open_store(path).resid_post.load()
    verify_store(path, repair=True)
    repaired, interrupted, _ = sorted(
        open_store(path).recorded.attrs["missing"], key=lambda text: "repaired" not in text
    )
    assert repaired.startswith("stage 's0', entity rows 0 to 3: repaired (`verify --repair` removed")
    assert "entity rows 4 to 9: interrupted" in interrupted
    with pytest.raises(StratalensError, match="entity rows 0 to 3: repaired"):
        export_array(path, site="resid_post", layer=0, target=tmp_path / "x.npy")
